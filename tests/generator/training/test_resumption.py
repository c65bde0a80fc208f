"""A second training in one folder is the first one resumed, or it is refused with what differs."""

import json
import warnings
from dataclasses import replace

import pytest
import torch

from generator import (
    GeneratorConfig,
    ObjectiveConfig,
    OptimizationConfig,
    PairConfig,
    ParameterPipeline,
    train_generator,
)
from zoo import build_zoo, get_task
from zoo.settings import SettingsMismatchError
from zoo.storage.selection import SelectedZoo

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
PLAN = {
    "num_steps": 4,
    "snapshot_steps": (0, 2, 4),
    "block_size": 8,
    "split_fractions": {"train": 0.6, "val": 0.2, "test": 0.2},
}
CONFIG = GeneratorConfig(
    model={"width": 16, "num_blocks": 1, "num_heads": 2},
    pairs=PairConfig(batch_size=4),
    objective=ObjectiveConfig(function_examples=8),
    optimization=OptimizationConfig(num_steps=2, num_epochs=1, precision="float32"),
    num_validation_starts=0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resumption")


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(3,))


@pytest.fixture(scope="module")
def zoo(folder, task):
    return build_zoo(folder / "zoo", task, num_runs=24, **PLAN)


@pytest.fixture(scope="module")
def out(folder, zoo):
    train(zoo, folder / "generator")
    return folder / "generator"


def train(zoo, out, config=CONFIG, **options):
    return train_generator([zoo], config, out=out, trainer_options=QUIET, **options)


def weights(pipe):
    return torch.cat([value.flatten() for value in pipe.model.state_dict().values()])


def test_the_same_training_is_resumed(folder, zoo, out, task):
    before = json.loads((out / "settings.json").read_text())
    same = replace(
        CONFIG,
        metrics=["val_loss"],  # which "loss" is short for
        model={"recurrence": 1, **CONFIG.model},  # an option's default
        calibrate_prompts=False,  # done after every training
    )
    for tasks in (None, [task]):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", module="lightning")
            again = train(zoo, out, same, tasks=tasks)
        assert torch.equal(weights(again), weights(train(zoo, folder / "fresh")))
    assert json.loads((out / "settings.json").read_text()) == before


def test_a_finished_training_is_given_calibrated_latents(folder, zoo):
    out, config = folder / "calibrated", replace(CONFIG, num_validation_starts=2)
    plain = train(zoo, out, config)
    given = train(zoo, out, replace(config, calibrate_latents=True))
    assert torch.equal(weights(given), weights(plain))
    assert {kind["latent_scale"] for kind in plain.config["calibrations"][0].values()} == {1.0}
    assert given.config["calibrations"][0]["noise"]["latent_scale"] > 1.0

    loaded = ParameterPipeline.from_pretrained(out)
    assert loaded.config["calibrations"] == given.config["calibrations"]
    one, again, other = (
        pipe(prompt={"loss": 2.3}, num_samples=3, generator=torch.Generator().manual_seed(0)).params
        for pipe in (given, loaded, plain)
    )
    torch.testing.assert_close(again, one)
    assert not torch.allclose(other, one)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimization": replace(CONFIG.optimization, seed=1)}, r"config\.optimization\.seed: begun with 0, now 1"),
        ({"optimization": replace(CONFIG.optimization, num_steps=4)}, r"config\.optimization\.num_steps"),
        ({"optimization": replace(CONFIG.optimization, precision="bfloat16")}, r"config\.optimization\.precision"),
        ({"pairs": replace(CONFIG.pairs, even_share=0.5)}, r"config\.pairs\.even_share: begun with 0\.0, now 0\.5"),
        ({"objective": replace(CONFIG.objective, function_weight=2.0)}, r"config\.objective\.function_weight"),
        ({"model": {**CONFIG.model, "recurrence": 2}}, r"config\.model\.recurrence: begun with 1, now 2"),
        ({"metrics": ["error"]}, r'config\.metrics: begun with \["val_loss"\], now \["val_error"\]'),
        ({"max_runs": 5}, r"config\.max_runs: begun with null, now 5"),
        ({"num_held_out": 6}, r"config\.num_held_out: begun with 0, now 6"),
    ],
)
def test_other_settings_are_refused(zoo, out, changes, field):
    with pytest.raises(SettingsMismatchError, match=field):
        train(zoo, out, replace(CONFIG, **changes))


def test_another_zoo_is_refused(folder, task, zoo, out):
    grown = build_zoo(folder / "grown", task, num_runs=32, **PLAN)
    other = build_zoo(folder / "other", task, num_runs=24, seed=1, **PLAN)
    for one, field in (
        (grown, r"zoos\[0\]\.num_runs: begun with 24, now 32; zoos\[0\]\.num_done"),
        (other, r"zoos\[0\]\.seed: begun with 0, now 1"),
        (SelectedZoo(zoo, runs=range(12)), r"zoos\[0\]\.checksums"),
        (SelectedZoo(zoo, keep=zoo.inner_step != 2), r"zoos\[0\]\.checksums"),
    ):
        with pytest.raises(SettingsMismatchError, match=field):
            train(one, out)
    with pytest.raises(SettingsMismatchError, match=r"zoos: begun with \["):
        train_generator([zoo, other], CONFIG, out=out, trainer_options=QUIET)


def test_options_that_are_gone_keep_out_only_trainings_that_used_them(zoo, out):
    record = json.loads((out / "settings.json").read_text())
    config = record["settings"]["config"]
    for num_references in (0, 8):
        old = config | {"num_references": num_references, "model": config["model"] | {"references": []}}
        (out / "settings.json").write_text(json.dumps(record | {"settings": record["settings"] | {"config": old}}))
        if num_references:
            with pytest.raises(SettingsMismatchError, match="num_references: begun with 8, now 0"):
                train(zoo, out)
        else:
            train(zoo, out)
    (out / "settings.json").write_text(json.dumps(record))


def test_a_zoo_that_was_built_again_is_the_same(folder, task, zoo, out):
    train(build_zoo(folder / "again", task, num_runs=24, **PLAN), out)


def test_another_task_is_refused(zoo, out):
    with pytest.raises(SettingsMismatchError, match=r"tasks\[0\]\.activation: begun with \"relu\", now \"tanh\""):
        train(zoo, out, tasks=[get_task("digits", hidden=(3,), activation="tanh")])


def test_other_software_is_pointed_out(zoo, out):
    record = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**record, "software": {**record["software"], "torch": "1.0"}}))
    with pytest.warns(UserWarning, match=r"other software \(torch 1\.0 -> "):
        train(zoo, out)
    (out / "settings.json").write_text(json.dumps(record))


def test_a_training_of_a_release_without_record_is_resumed_with_a_word(folder, zoo):
    first = train(zoo, folder / "earlier")
    (folder / "earlier/settings.json").unlink()
    with pytest.warns(UserWarning, match="did not record its settings"):
        again = train(zoo, folder / "earlier")
    assert torch.equal(weights(again), weights(first))
    with pytest.raises(SettingsMismatchError, match="max_runs"):
        train(zoo, folder / "earlier", replace(CONFIG, max_runs=5))


def test_settings_that_came_to_no_checkpoint_keep_no_others_out(folder, zoo):
    train(zoo, folder / "failed", replace(CONFIG, max_runs=5))
    (folder / "failed/checkpoints/last.ckpt").unlink()
    train(zoo, folder / "failed")
    train(zoo, folder / "failed")
