"""What meta-training draws: held-out data never, the promised ranges, and the same again from the same generator."""

from __future__ import annotations

import pytest
import torch

from learned_opt.evaluation.tasks import evaluation_tasks
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.task_distribution import (
    HELD_OUT_SEED,
    TaskDistribution,
    TaskDistributionConfig,
    bucket_families,
    he_normal_,
    mlp_task,
)
from learned_opt.rules.tensor_specs import specs_of
from zoo.networks.architectures import MLP
from zoo.tasks.datasets import get_dataset


def draw(families: dict[str, float], count: int, **options) -> list:
    distribution = TaskDistribution(TaskDistributionConfig(families=families, **options))
    rng = torch.Generator().manual_seed(0)
    return [distribution(rng) for _ in range(count)]


def test_problems_have_the_promised_ranges() -> None:
    drawn = draw({"mlp": 0.7, "wide_input": 0.3}, 60, horizon=(50, 700))
    assert all(50 <= num_steps <= 700 for _, num_steps in drawn)
    assert {family.batch_size for family, _ in drawn} >= {8, 16, 64, 128, 256}
    first = [specs_of(family.layout)[0] for family, _ in drawn]
    widths = [spec.shape[0] for spec in first]
    assert min(widths) < 20
    assert max(widths) > 60
    assert {spec.depth for spec in first} >= {1, 2, 3}
    assert max(spec.fan_in for spec in first) == 400


def test_the_same_generator_draws_the_same_problems() -> None:
    one, other = draw({"mlp": 1.0, "cnn": 1.0}, 8), draw({"mlp": 1.0, "cnn": 1.0}, 8)
    assert [(p.name, t, p.init_scale, p.param_scale) for p, t in one] == [
        (p.name, t, p.init_scale, p.param_scale) for p, t in other
    ]


def test_expensive_problems_are_short() -> None:
    drawn = draw({"wide_input": 1.0}, 30, max_work=50.0)
    cost = {num_steps: family.layout.num_params for family, num_steps in drawn}
    assert max(cost) <= 80 or cost[max(cost)] < max(cost.values())


def test_no_evaluation_data_but_the_digits_is_drawn() -> None:
    drawn = draw({"mlp": 0.6, "wide_input": 0.2, "cnn": 0.2}, 60)
    seen = {task.dataset.name for family, _ in drawn for task in family.tasks}
    seen |= {task.dataset.name for family in bucket_families() for task in family.tasks}
    assert not any(name.startswith("mnist") for name in seen)
    held_out = [task for task in evaluation_tasks(("main", "far", "conv")) if not task.seen_data]
    assert len(held_out) >= 15
    hashes = {task.dataset.data_hash for family, _ in drawn for task in family.tasks}
    assert not hashes & {task.family.tasks[0].dataset.data_hash for task in held_out}


def test_unknown_families_are_named() -> None:
    with pytest.raises(ValueError, match="wide_input"):
        TaskDistributionConfig(families={"vision": 1.0})


def test_teachers_can_be_learned_and_differ_by_seed() -> None:
    one = synthetic_data.teacher_student(HELD_OUT_SEED, 12, 6, 0.0, 400)
    other = synthetic_data.teacher_student(HELD_OUT_SEED + 1, 12, 6, 0.0, 400)
    assert one.data_hash != other.data_hash
    assert one.train.targets.unique().numel() > 5
    assert float(one.train.inputs.std()) == pytest.approx(1, abs=1e-3)


def test_label_subsets_have_two_classes() -> None:
    digits = get_dataset("digits")
    subset = synthetic_data.label_subset(digits, [3, 1])
    assert subset.num_classes == 2
    assert torch.equal(subset.val.targets == 1, (digits.val.targets == 1) | (digits.val.targets == 3))


def test_enlarged_digits_are_standardised() -> None:
    large = synthetic_data.digits_images(14)
    assert large.train.inputs.shape[1:] == (1, 14, 14)
    assert float(large.train.inputs.mean()) == pytest.approx(0, abs=1e-4)


def test_he_initialisation_has_its_variances() -> None:
    torch.manual_seed(0)
    model = he_normal_(MLP(200, (300, 300), 10))
    stds = [float(layer.weight.detach().std()) for layer in model.layers]
    assert stds == pytest.approx([(2 / 200) ** 0.5, (2 / 300) ** 0.5, 32**0.5 / 300], rel=0.05)
    assert not any(layer.bias.detach().any() for layer in model.layers)


def test_initialisation_depends_on_the_seed_alone() -> None:
    task = mlp_task(synthetic_data.teacher_student(1, 12, 6, 0.1, 400), [8])
    assert torch.equal(task.init_runs([3, 4])[1], task.init_runs([4])[0])
