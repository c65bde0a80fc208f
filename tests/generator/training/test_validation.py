"""Calibration on validation runs: how large latents are."""

from types import SimpleNamespace

import pytest
import torch

from generator.training import validation
from generator.training.validation import ValidationStarts, calibrations
from generator.trajectories import Trajectories
from tests.generator.test_pipeline import make_pipeline
from zoo.tasks.registry import get_task

FLOOR, LOWEST = 0.2, 0.1


@pytest.fixture(scope="module")
def starts():
    task = get_task("digits", hidden=(4,))
    params = task.init(torch.Generator().manual_seed(0), 6)[:, None].repeat(1, 3, 1)
    losses = torch.tensor([2.0, 0.9, FLOOR]).repeat(6, 1)
    losses[0, 2] = LOWEST
    runs = Trajectories(task.layout, params, {"val_loss": losses})
    return ValidationStarts.of(runs, runs, task, "val_loss", 4)


@pytest.fixture
def pipe(starts):
    return make_pipeline(starts.task.layout, metrics={"val_loss": (LOWEST, 2.0)})


@pytest.mark.parametrize("case", [(0.94, 0.0, 1.05), (1.3, 0.0, 1.0), (0.5, 0.0, 1.1), (0.9, 1.0, 1.0)])
def test_latents_are_as_large_as_real_networks_differ_and_accuracy_allows(pipe, starts, monkeypatch, case):
    apart, cost, scale = case
    real = starts.unseen.read(torch.arange(6), torch.full((6,), 2))

    def sample(*args, latent_scale, **kwargs):
        return real + latent_scale

    monkeypatch.setattr(validation, "sample_params", sample)
    monkeypatch.setattr(
        validation, "_spread", lambda task, params: 1.0 if params.equal(real) else apart * (params - real).mean()
    )
    monkeypatch.setattr(
        validation,
        "measured",
        lambda task, params, split: {"loss": torch.full((6,), FLOOR), "error": cost * (params - real).mean(1)},
    )
    monkeypatch.setattr(Trajectories, "read", lambda *args: real)
    monkeypatch.setattr(
        validation, "measure_alignment", lambda *args, **options: SimpleNamespace(val={"loss": args[3].expand(4, -1)})
    )
    (found,) = calibrations(pipe, [starts], ["noise"], latents=True)
    assert found["noise"]["latent_scale"] == scale
    (found,) = calibrations(pipe, [starts], ["noise"])
    assert found["noise"]["latent_scale"] == 1.0


def test_real_networks_are_those_of_equal_error_where_errors_are_asked_for(monkeypatch):
    task = get_task("digits", hidden=(4,))
    params = task.init(torch.Generator().manual_seed(0), 6)[:, None].repeat(1, 3, 1)
    errors = torch.tensor([0.9, 0.5, 0.1]).repeat(6, 1)
    runs = Trajectories(task.layout, params, {"val_error": errors})
    starts = ValidationStarts.of(runs, runs, task, "val_error", 4)
    pipe = make_pipeline(task.layout, metrics={"val_error": (0.1, 0.9)})
    read, chosen = Trajectories.read, []
    monkeypatch.setattr(Trajectories, "read", lambda self, rows, at: chosen.append(at) or read(self, rows, at))
    found = {"loss": torch.full((6,), 2.0), "error": torch.full((6,), 0.5)}
    monkeypatch.setattr(validation, "measured", lambda *args: found)
    calibrations(pipe, [starts], ["noise"], latents=True)
    assert chosen
    assert all((at == 1).all() for at in chosen)


def test_a_pipeline_draws_latents_of_the_scale_of_its_calibration(pipe):
    def drawn(scale):
        known = {"meant": [0.1, 2.0], "asked": [0.1, 2.0]}
        pipe.register_to_config(calibrations=[{"noise": known | {"latent_scale": scale}}])
        rng = torch.Generator().manual_seed(0)
        return pipe(prompt={"loss": 0.5}, num_samples=3, num_inference_steps=1, generator=rng).params

    one, twice = drawn(1.0), drawn(2.0)
    assert not torch.allclose(one, twice, rtol=0.01)
    pipe.register_to_config(calibrations=None)
    rng = torch.Generator().manual_seed(0)
    torch.testing.assert_close(
        one, pipe(prompt={"loss": 0.5}, num_samples=3, num_inference_steps=1, generator=rng).params
    )
