"""Recorded inner steps are those of Python, resets between them included, in one unroll and in the next."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from learned_opt import MlpRule, NormalizedRule
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.estimators import PES, FullUnrollES
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.task_distribution import cnn_task, mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.rule import UpdateRule
from learned_opt.rules.velo import VeloRule

from ...devices import other_device
from ...pretended_graph import pretended_graphs

RULES: dict[str, UpdateRule] = {  # in plain torch: the kernel in C is the CPU's alone
    "mulo": MlpRule(4, native=False),
    "mulo reference": MlpRule(4, reference=True),
    "mulo-norm": NormalizedRule(),
    "celo2": Celo2Rule(),
    "velo": VeloRule(lstm=6, bank=4),
}
LENGTH, NUM_OUTER_STEPS = 9, 3


def family(kind: str = "mlp") -> TaskFamily:
    if kind == "cnn":
        return TaskFamily([cnn_task(synthetic_data.digits_images(8), (3,))], batch_size=4)
    teachers = [synthetic_data.teacher_student(seed, 6, 5, 0.1, 200) for seed in (1, 2)]
    return TaskFamily([mlp_task(teacher, [5]) for teacher in teachers], batch_size=4, param_scale=2.0)


def persistent(rule: UpdateRule, device: str = "cpu", num_outer_steps: int = NUM_OUTER_STEPS) -> list[Tensor]:
    step = TruncatedStep(rule, family().to(device), LogUniformHorizon(5, 40), num_groups=3)
    estimator = PES([step], truncation_length=LENGTH, std=0.01)
    theta, rng = rule.init_theta(torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    grads = [estimator.estimate(theta + 0.01 * k, rng).grad for k in range(num_outer_steps)]
    state = estimator.states[0]
    assert state is not None
    return [*grads, state.params, *state.optimizer.values()]


def whole(rule: UpdateRule, device: str = "cpu", kind: str = "mlp") -> list[Tensor]:
    tasks = family(kind).to(device)
    estimator = FullUnrollES(rule, lambda _: (tasks, LENGTH), LogLossObjective(), num_pairs=2, std=0.01)
    theta, rng = rule.init_theta(torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    return [estimator.estimate(theta.to(device), rng).grad for _ in range(NUM_OUTER_STEPS)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_truncations_are_recorded_once_and_are_the_same_to_the_bit(rule: UpdateRule) -> None:
    expected = persistent(rule)
    with pretended_graphs() as graphs:
        found = persistent(rule)
    assert (graphs.num_recorded, graphs.num_replayed) == (1, NUM_OUTER_STEPS * LENGTH - 2)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_whole_trainings_are_recorded_once_each_and_are_the_same_to_the_bit(kind: str) -> None:
    expected = whole(RULES["mulo-norm"], kind=kind)
    with pretended_graphs() as graphs:
        found = whole(RULES["mulo-norm"], kind=kind)
    assert (graphs.num_recorded, graphs.num_replayed) == (NUM_OUTER_STEPS, NUM_OUTER_STEPS * (LENGTH - 2))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
def test_memory_is_free_when_an_unroll_is_done() -> None:
    rule, step = RULES["mulo-norm"], TruncatedStep(RULES["mulo-norm"], family(), LogUniformHorizon(9, 9), num_groups=2)
    with pretended_graphs():
        state = step.start(torch.Generator().manual_seed(0))
        step.advance(rule.init_theta(torch.Generator()), state, LENGTH, torch.Generator())
    params = weakref.ref(state.params)
    gc.disable()
    try:
        del state
        assert params() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("name", ["mulo", "mulo-norm"])
def test_nothing_of_an_inner_step_comes_from_the_host(name: str) -> None:
    with other_device("sim"), pretended_graphs() as graphs:
        persistent(RULES[name], "sim", num_outer_steps=1)
    assert graphs.num_recorded == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("error:cannot record")
@pytest.mark.parametrize("estimate", [persistent, whole])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_graph_unrolls_as_its_steps_do(rule: UpdateRule, estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate(rule, "cuda")
    monkeypatch.setattr("zoo.training.recorded_steps.recorder_for", lambda device: None)
    for one, other in zip(found, estimate(rule, "cuda"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)
