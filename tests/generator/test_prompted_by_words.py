"""A generator that is told its task in words, from training to a pipeline on the disk."""

from dataclasses import replace

import pytest
import torch

from generator.model.objectives import ObjectiveConfig
from generator.pipeline import ParameterPipeline
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.pairs import PairConfig
from generator.training.train import train_generator
from zoo import build_zoo, get_task
from zoo.settings import SettingsMismatchError

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
CONFIG = GeneratorConfig(
    descriptions="words",
    metrics=(),
    num_validation_starts=0,
    model={"width": 16, "num_blocks": 1, "num_heads": 2, "diffusion": False, "use_start": False, "use_latent": False},
    pairs=PairConfig(batch_size=16, start_share=0.0, examples_dropout=0.0, prompt_dropout=0.0),
    objective=ObjectiveConfig(params_weight=0.0, energy_score=False, function_energy_weight=0.0, function_examples=32),
    optimization=OptimizationConfig(num_steps=40, num_epochs=1, warmup_steps=5, average_decay=0.5, precision="float32"),
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    task = get_task("digits_subset", hidden=(4,), masks=[0b11, 0b1111111100])
    plan = {"num_runs": 4, "num_steps": 2, "num_snapshots": 2, "split_fractions": {"train": 1.0}}
    return build_zoo(tmp_path_factory.mktemp("zoo") / "subset", task, **plan)


@pytest.fixture(scope="module")
def folder(zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("generator")
    train_generator([zoo], CONFIG, out=out, trainer_options=QUIET)
    return out


def test_words_decide_what_a_network_is_for(zoo, folder):
    pipe = ParameterPipeline.from_pretrained(folder)
    task = get_task("digits_subset", hidden=(4,), masks=[0b11]).for_members([0, 0])
    made = pipe(prompt={"description": ["find every 0 or 1", "everything except 0 and 1"]}, num_samples=2, task=task)
    loss = task.evaluate(made.params, "val")["loss"]
    assert loss[0] < loss[1] - 0.05
    again = pipe(prompt={"description": "1 or 0: find EVERY"}, task=task).params
    torch.testing.assert_close(again, made.params[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unconditional"):
        pipe(prompt={"loss": 0.1}, task=task)


def test_runs_and_words_may_be_ones_own(zoo, tmp_path):
    def embed(texts):
        return torch.tensor([[float(word in text) for word in ("small", "large")] for text in texts])

    def describe(run):
        return "small" if run % 2 == 0 else ["large", "large!"]

    config = GeneratorConfig(**{**vars(CONFIG), "descriptions": "mine"})
    pipe = train_generator(
        [zoo], config, out=tmp_path, describe=describe, embed=embed, trainer_options=QUIET | {"max_steps": 1}
    )
    assert pipe.model.config["description_width"] == 2
    made = pipe(prompt={"description": "small"}).params
    loaded = ParameterPipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        loaded(prompt={"description": "small"})
    loaded.embed = embed
    torch.testing.assert_close(loaded(prompt={"description": "small"}).params, made)
    loaded.embed = lambda texts: torch.zeros(len(texts), 3)
    with pytest.raises(ValueError, match="descriptions of 2 numbers, got 3"):
        loaded(prompt={"description": "small"})
    with pytest.raises(SettingsMismatchError, match="descriptions: begun with"):
        train_generator([zoo], config, out=tmp_path, describe=str, embed=embed, trainer_options=QUIET)
    options = {"describe": describe, "embed": lambda texts: 1 - embed(texts), "trainer_options": QUIET}
    with pytest.raises(SettingsMismatchError, match="give the `embed` that it was begun with"):
        train_generator([zoo], config, out=tmp_path, **options)
    with pytest.raises(ValueError, match="describe must be a function"):
        train_generator([zoo], config, out=tmp_path, describe={0: "a"}, embed=embed, trainer_options=QUIET)
    with pytest.raises(ValueError, match="describe and embed are of a training on descriptions"):
        train_generator([zoo], replace(config, descriptions=None), out=tmp_path, embed=embed, trainer_options=QUIET)
