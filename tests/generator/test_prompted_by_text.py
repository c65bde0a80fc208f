"""A generator of adapters of a text model, prompted by a text."""

import pytest
import torch

from generator.model.objectives import ObjectiveConfig
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.pairs import PairConfig
from generator.training.train import train_generator
from zoo import build_zoo, get_task
from zoo.networks.randomness import seeded_module

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
MODEL = {"width": 16, "num_blocks": 1, "num_heads": 2, "diffusion": False, "use_start": False, "use_latent": False}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name in "abcdefgh":
        (folder / f"{name}.txt").write_text(f"{name} is not {name.upper()}. " * 20)
    options = {"path": str(folder), "context": 6, "num_windows": 16, "min_bytes": 160}
    options |= {"width": 8, "num_blocks": 1, "num_heads": 2}
    base = seeded_module(get_task("text_domains", **options).make_model, 0).state_dict()
    return get_task("text_domains", **options, adapter={"base": base, "rank": 2, "targets": "down"})


@pytest.fixture(scope="module")
def pipe(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    plan = {"num_runs": 8, "num_steps": 2, "num_snapshots": 2, "batch_size": 4, "evaluated_splits": ["val"]}
    zoo = build_zoo(folder / "zoo", task, **plan, split_fractions={"train": 0.8, "test": 0.2})
    config = GeneratorConfig(
        num_validation_starts=0,
        metrics=(),
        model={**MODEL, "num_corrections": 2, "correction_rate": 0.05},
        pairs=PairConfig(batch_size=2, start_share=0.0, num_examples=(4, 6)),
        objective=ObjectiveConfig(
            params_weight=0.0,
            energy_score=False,
            function_energy_weight=0.0,
            function_examples=4,
            function_split="val",
        ),
        optimization=OptimizationConfig(num_steps=2, num_epochs=1, warmup_steps=1, precision="float32"),
    )
    return train_generator([zoo], config, out=folder / "out", trainer_options=QUIET, tasks=[task])


def test_what_is_generated_follows_from_the_text_and_fits_it(pipe, task):
    text = "h is not H. " * 10
    made = pipe(prompt={"examples": text}, task=task).params
    assert torch.equal(made, pipe(prompt={"examples": text.encode()}, task=task).params)
    other = pipe(prompt={"examples": "G, says G, is g! " * 10}, task=task).params
    assert not torch.allclose(made, other, atol=1e-4)
    windows = torch.tensor([*text.encode()[:49]]).unfold(0, 7, 6)
    losses = task.objective.loss(task.predict(torch.cat((made, other)), windows[:, :-1]), windows[:, 1:])
    assert losses[0] < losses[1] - 1e-4, "steps were taken along the gradient on the text"


def test_another_kind_of_prompt_is_refused(pipe, task):
    with pytest.raises(ValueError, match="must have 25 bytes or more"):
        pipe(prompt={"examples": "too short"}, task=task)
    with pytest.raises(ValueError, match="unconditional"):
        pipe(prompt={"loss": 1.0}, task=task)


def test_what_nothing_short_describes_cannot_be_told_from_examples(task, tmp_path):
    zoo = build_zoo(tmp_path / "zoo", task, num_runs=8, num_steps=1, num_snapshots=2, batch_size=4)
    pairs = PairConfig(batch_size=2, start_share=0.0, num_examples=(4, 6))
    config = GeneratorConfig(objective=ObjectiveConfig(description_weight=1.0), pairs=pairs, num_validation_starts=0)
    with pytest.raises(ValueError, match="'text_domains' is not; set it to 0"):
        train_generator([zoo], config, out=tmp_path / "out", trainer_options=QUIET, tasks=[task])
    with pytest.raises(ValueError, match=r"set pairs\.num_examples"):
        GeneratorConfig(objective=ObjectiveConfig(description_weight=1.0))
