import pytest
import torch

from generator.tabular.model import TabularGenerator
from generator.tabular.training import TabularConfig, table_loss, train_tabular
from zoo.settings import SettingsMismatchError

SMALL = {
    "num_steps": 4,
    "rows_per_batch": 64,
    "max_rows": 24,
    "num_queries": 8,
    "warmup_steps": 0,
    "checkpoint_steps": 2,
    "model": {"width": 16, "num_blocks": 1},
}


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    class InterruptionError(Exception):
        pass

    def interrupt(done, loss):
        raise InterruptionError

    whole = train_tabular(TabularConfig(**SMALL), out=tmp_path / "whole", device="cpu")
    with pytest.raises(InterruptionError):
        train_tabular(TabularConfig(**SMALL), out=tmp_path / "resumed", device="cpu", on_step=interrupt)
    told = []
    resumed = train_tabular(
        TabularConfig(**SMALL), out=tmp_path / "resumed", device="cpu", on_step=lambda done, _: told.append(done)
    )
    assert told == [4]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    with pytest.raises(SettingsMismatchError, match="seed: begun with 0, now 1"):
        train_tabular(TabularConfig(**SMALL, seed=1), out=tmp_path / "whole", device="cpu")


def test_every_step_has_tables_of_its_own():
    config = TabularConfig(**SMALL)
    torch.manual_seed(0)
    model = TabularGenerator(width=16, num_blocks=1)
    losses = [table_loss(model, config, step, torch.device("cpu")).item() for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="min_rows <= max_rows"):
        TabularConfig(min_rows=300)
