"""Any zoo that holds networks can be trained on; what it lacks for a setting is said before training, in one line."""

import math
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from generator.evaluation.protocol import EvaluationConfig
from generator.evaluation.unseen_starts import alignment_report
from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.pipeline import ParameterPipeline
from generator.tabular.training import TabularConfig
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.pairs import PairConfig
from generator.training.reader import ReaderConfig
from generator.training.train import train_generator
from zoo.building.build import build_zoo
from zoo.checkpoints.importer import import_checkpoints
from zoo.networks.layout import LayoutMismatchError
from zoo.settings import defaults_of
from zoo.tasks.registry import get_task

TASK = get_task("digits", hidden=(3,))
NO_FUNCTIONS = ObjectiveConfig(function_weight=0, function_energy_weight=0)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def make_config(**options) -> GeneratorConfig:
    defaults = {
        "model": {"width": 16, "num_blocks": 1, "num_heads": 2},
        "num_validation_starts": 0,
        "objective": ObjectiveConfig(function_examples=8),
        "pairs": PairConfig(batch_size=8),
        "optimization": OptimizationConfig(num_steps=2, num_epochs=1),
    }
    return GeneratorConfig(**{**defaults, **options})


def train(zoos, config, out, **options) -> ParameterPipeline:
    return train_generator(zoos, config, out=out, trainer_options=QUIET, **options)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_zoo(
        tmp_path_factory.mktemp("zoo") / "small", TASK, num_runs=8, num_steps=20, snapshot_steps=(0, 5, 20)
    )


@pytest.fixture(scope="module")
def finals(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("zoo") / "finals", TASK, num_runs=64, num_steps=20, snapshot_steps=(20,))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Checkpoints of 8 linear layers without a task, three a run."""
    root, rows = tmp_path_factory.mktemp("imported"), []
    for run in range(8):
        (root / f"run{run}").mkdir()
        for step in (0, 10, 20):
            path = root / f"run{run}" / f"step{step}.safetensors"
            save_file(nn.Linear(6, 3).state_dict(), path)
            rows.append({"file": path, "inner_step": step, "val_loss": 2.0 - step / 20 + run / 100})
    return import_checkpoints(root, root / "zoo", metrics=rows)


def test_the_folder_of_a_training_holds_its_pipeline(zoo, tmp_path):
    pipe = train(zoo, make_config(), tmp_path)
    for folder in (tmp_path, tmp_path / "pipeline"):
        loaded = ParameterPipeline.from_pretrained(folder)
        ours, theirs = (
            one(TASK.make_model(), {"loss": 2.3}, generator=torch.Generator().manual_seed(0)).params.shape
            for one in (pipe, loaded)
        )
        assert ours == theirs


def test_a_zoo_without_validation_runs_says_what_to_set(zoo, tmp_path):
    assert not len(zoo.split("val"))
    with pytest.raises(ValueError, match="num_validation_starts=0"):
        train(zoo, make_config(num_validation_starts=4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_imported_checkpoints_need_no_task_without_function_losses(imported, tmp_path):
    chunks = {"tokenizer": "chunk", "chunk_width": 8, "objective": NO_FUNCTIONS}
    with pytest.raises(ValueError, match=r"give tasks=\[...\], or set objective.function_weight=0"):
        train(imported, make_config(tokenizer="chunk"), tmp_path)
    for number, tasks in enumerate((None, [None])):
        pipe = train([imported], make_config(**chunks), tmp_path / str(number), tasks=tasks)
        nn.Linear(6, 3).load_state_dict(pipe(prompt={"loss": 1.5}).state_dicts()[0])
    with pytest.warns(UserWarning, match="prompts are not calibrated"):
        train(imported, make_config(num_validation_starts=4, **chunks), tmp_path / "warned")
    assert alignment_report(pipe, imported, make_config(**chunks)) == {}


def test_final_networks_alone_are_learned_from_noise(finals, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="lightning")
        pairs = PairConfig(batch_size=8, start_share=0.0)
        train(finals, make_config(pairs=pairs, num_validation_starts=0), tmp_path / "asked")
    with pytest.warns(UserWarning, match="no run has two snapshots"):
        pipe = train(finals, make_config(), tmp_path / "default")
    assert pipe(num_samples=2).params.isfinite().all()
    assert alignment_report(pipe, finals, make_config()) == {}
    with pytest.raises(ValueError, match="without a start"):
        pipe(TASK.make_model())
    with pytest.raises(ValueError, match="has no run with 2 snapshots"):
        train(finals, make_config(pairs=PairConfig(start_share=1.0)), tmp_path / "starts")


def test_a_generator_without_metrics_is_unconditional(zoo, tmp_path):
    train(zoo, make_config(metrics=()), tmp_path)
    pipe = ParameterPipeline.from_pretrained(tmp_path)
    assert pipe.metrics == []
    assert pipe(TASK.make_model(), num_samples=2).params.isfinite().all()


def test_what_does_not_fit_is_said(zoo, tmp_path):
    with pytest.raises(ValueError, match=r"does not record \['val_fame'\], only"):
        train(zoo, make_config(metrics=("val_fame",)), tmp_path)
    with pytest.raises(ValueError, match="one for each zoo, got 2 for 1"):
        train(zoo, make_config(), tmp_path, tasks=[TASK, TASK])
    with pytest.raises(LayoutMismatchError, match="task of another zoo"):
        train(zoo, make_config(), tmp_path, tasks=[get_task("digits", hidden=(4,))])
    with pytest.raises(ValueError, match="at least one zoo"):
        train([], make_config(), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": "loss"},
        {"metrics": 3},
        {"max_runs": 0},
        {"task_bits": "mask"},
        {"num_task_bits": 3},
        {"num_validation_starts": -1},
        {"model": {"use_start": False}},
        {"metrics": (), "pairs": PairConfig(even_share=0.5)},
        {"centred": True, "statistics_per_number": True, "pairs": PairConfig(start_share=0.0)},
    ],
)
def test_settings_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValueError, match=r"must|need|belong|without|one of them"):
        make_config(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PairConfig(start_share=1.5),
        lambda: PairConfig(batch_size=0),
        *(partial(PairConfig, num_examples=wrong) for wrong in (48, "48", (4,), (4.5, 8), (4, "8"), (3, 8), (16, 8))),
        lambda: ObjectiveConfig(function_examples=0),
        lambda: OptimizationConfig(learning_rate=0.0),
        lambda: OptimizationConfig(average_decay=1.5),
        lambda: RecurrentDiffusionTransformer({}, {}, {}, width=0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


with_options = pytest.mark.parametrize(
    "make",
    [
        PairConfig,
        ObjectiveConfig,
        OptimizationConfig,
        GeneratorConfig,
        EvaluationConfig,
        ReaderConfig,
        TabularConfig,
        partial(RecurrentDiffusionTransformer, {}, {}, {}),
    ],
)


@with_options
def test_every_number_must_be_finite_and_none_is_negative(make):
    numbers = {name: value for name, value in defaults_of(make).items() if type(value) in (int, float)}
    assert numbers
    for name in numbers:
        for value in [math.nan, math.inf, "1", *([-1] if name != "start_skip" else [])]:
            with pytest.raises(ValueError, match=f"{name} must be .*got") as refused:
                make(**{name: value})
            assert "\n" not in str(refused.value)


@with_options
def test_what_is_true_or_false_is_no_word_or_number(make):
    for name in (name for name, value in defaults_of(make).items() if type(value) is bool):
        for value in ("no", 2, None):
            with pytest.raises(ValueError, match=f"{name} must be true or false, got"):
                make(**{name: value})
