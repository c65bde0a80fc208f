import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.tasks.datasets import Dataset, Split
from zoo.tasks.objectives import OBJECTIVES, make_objective, recorded, shares
from zoo.tasks.task import Task

WEIGHT = [0.5, 2.0, 0.0, 1.5]


def cross_entropy(outputs, targets, **options):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), **options)


def binary(outputs, targets, **options):
    return F.binary_cross_entropy_with_logits(outputs, targets.double(), **options)


# by id: what make_objective takes, and torch's loss of one network
CASES = {
    "cross entropy": ("cross_entropy", cross_entropy),
    "smoothed": (
        {"name": "cross_entropy", "label_smoothing": 0.1},
        lambda outputs, targets: cross_entropy(outputs, targets, label_smoothing=0.1),
    ),
    "weighted": (
        {"name": "cross_entropy", "weight": WEIGHT},
        lambda outputs, targets: cross_entropy(outputs, targets, weight=torch.tensor(WEIGHT).double()),
    ),
    "ignoring": (
        {"name": "cross_entropy", "ignore_index": -100},
        lambda outputs, targets: cross_entropy(outputs, targets, ignore_index=-100),
    ),
    "ignoring a class": (
        {"name": "cross_entropy", "ignore_index": 2},
        lambda outputs, targets: cross_entropy(outputs, targets, ignore_index=2),
    ),
    "all options": (
        {"name": "cross_entropy", "label_smoothing": 0.2, "weight": WEIGHT, "ignore_index": -100},
        lambda outputs, targets: cross_entropy(
            outputs, targets, label_smoothing=0.2, weight=torch.tensor(WEIGHT).double(), ignore_index=-100
        ),
    ),
    "binary": ("binary_cross_entropy", lambda outputs, targets: binary(outputs[..., 0], targets)),
    "weighted binary": (
        {"name": "binary_cross_entropy", "pos_weight": 3},
        lambda outputs, targets: binary(outputs[..., 0], targets, pos_weight=torch.tensor(3.0).double()),
    ),
    "multi label": ("multi_label", binary),
    "weighted multi label": (
        {"name": "multi_label", "pos_weight": WEIGHT},
        lambda outputs, targets: binary(outputs, targets, pos_weight=torch.tensor(WEIGHT).double()),
    ),
    "squared error": ("squared_error", F.mse_loss),
    "l1": ("l1", F.l1_loss),
    "huber": ({"name": "huber", "delta": 0.7}, lambda outputs, targets: F.huber_loss(outputs, targets, delta=0.7)),
    "policy gradient": ("policy_gradient", lambda o, t: -(o.log_softmax(-1) * t).sum(-1).mean()),
}


def example(config, shape):
    objective = make_objective(config)
    rng = torch.Generator().manual_seed(0)
    outputs = 5 * torch.randn(*shape, generator=rng, dtype=torch.float64)
    if objective.name == "cross_entropy":
        targets = torch.randint(shape[-1], shape[:-1], generator=rng)
        if objective.ignore_index == -100:
            targets[torch.rand(shape[:-1], generator=rng) < 0.4] = -100
        return objective, outputs, targets
    if objective.name == "binary_cross_entropy":
        return objective, outputs[..., :1], torch.randint(2, shape[:-1], generator=rng)
    if objective.name == "multi_label":
        return objective, outputs, torch.randint(2, shape, generator=rng)
    return objective, outputs, torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 7, 4), (3, 7, 5, 4)], ids=["examples", "sequences"])
@pytest.mark.parametrize("case", CASES)
class TestObjective:
    def test_loss_equals_torch(self, case, shape):
        config, reference = CASES[case]
        objective, outputs, targets = example(config, shape)
        losses = objective.loss(outputs, targets)
        expected = torch.stack([reference(o, t) for o, t in zip(outputs, targets, strict=True)])
        torch.testing.assert_close(losses, expected)

    def test_shared_targets_equal_repeated_ones(self, case, shape):
        objective, outputs, targets = example(CASES[case][0], shape)
        repeated = targets[:1].expand_as(targets)
        torch.testing.assert_close(objective.loss(outputs, targets[0]), objective.loss(outputs, repeated))
        torch.testing.assert_close(objective.error(outputs, targets[0]), objective.error(outputs, repeated))
        shared, own = (objective.loss_and_grad(outputs, value) for value in (targets[0], repeated))
        torch.testing.assert_close(shared, own)

    def test_written_gradient_equals_autograd(self, case, shape):
        objective, outputs, targets = example(CASES[case][0], shape)
        losses, grad = objective.loss_and_grad(outputs, targets)
        leaf = outputs.requires_grad_()
        expected = objective.loss(leaf, targets)
        torch.testing.assert_close(losses, expected.detach())
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), leaf)[0])

    def test_parts_give_the_whole_with_their_shares(self, case, shape):
        objective, outputs, targets = example(CASES[case][0], shape)
        parts = list(zip(outputs.split(3, 1), targets.split(3, 1), strict=True))
        in_whole = shares(objective, [part for _, part in parts], own=True)
        loss = sum(share * objective.loss(*part) for part, (share, _) in zip(parts, in_whole, strict=True))
        error = sum(share * objective.error(*part) for part, (_, share) in zip(parts, in_whole, strict=True))
        torch.testing.assert_close(loss, objective.loss(outputs, targets), check_dtype=False)
        torch.testing.assert_close(error, objective.error(outputs, targets), check_dtype=False)

    def test_the_record_makes_it_again(self, case, shape):
        objective = make_objective(CASES[case][0])
        assert make_objective(recorded(objective)).__dict__ == objective.__dict__


def test_errors_are_what_one_reads():
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, -1.0], [0.0, 2.0]]])
    assert OBJECTIVES["cross_entropy"].error(logits, torch.tensor([0, 0, 0, 1])).tolist() == [0.25]
    assert OBJECTIVES["binary_cross_entropy"].error(logits[..., :1], torch.tensor([1, 0, 0, 1])).tolist() == [0.5]
    assert OBJECTIVES["squared_error"].error(logits, logits + 1).tolist() == [1.0]
    advantages = torch.tensor([[3.0, 0.0], [-2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert OBJECTIVES["policy_gradient"].error(logits, advantages).tolist() == [0.25]


def test_extreme_logits_stay_finite():
    outputs, targets = torch.tensor([[[1e4, -1e4]]]), torch.tensor([1])
    for name in ("cross_entropy", "binary_cross_entropy"):
        losses, grad = OBJECTIVES[name].loss_and_grad(outputs[..., : 2 if name == "cross_entropy" else 1], targets)
        assert losses.isfinite().all()
        assert grad.isfinite().all()


def test_what_is_ignored_counts_neither_in_loss_nor_in_error():
    objective = make_objective({"name": "cross_entropy", "ignore_index": -100})
    outputs = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, -100, 0, -100])
    kept = [0, 1, 2, 4]
    for values in (objective.loss, objective.error):
        torch.testing.assert_close(values(outputs, targets), values(outputs[:, kept], targets[kept]))
    losses, grads = objective.loss_and_grad(outputs, torch.full((6,), -100))
    assert not losses.any()
    assert not grads.any()


def task(targets, objective, *, outputs=3, num_classes=3, val_targets=None):
    x = torch.randn(len(targets), 5, generator=torch.Generator().manual_seed(0))
    train, other = Split(x, targets), Split(x, targets if val_targets is None else val_targets)
    return Task(
        "own", Dataset("own", train, other, other, num_classes, "own"), lambda: nn.Linear(5, outputs), objective
    )


LABELS = torch.arange(12) % 3


@pytest.mark.parametrize("memory_budget", [None, 1])
def test_evaluation_in_parts_weighs_them(memory_budget):
    targets = torch.where(torch.arange(12) < 7, LABELS, -100)
    options = {"label_smoothing": 0.1, "weight": [1.0, 2.0, 5.0], "ignore_index": -100}
    one = task(targets, {"name": "cross_entropy"} | options)
    params = one.init_runs([0, 1])
    metrics = one.evaluate(params, "val", memory_budget)
    for i in range(2):
        outputs = one.predict(params, one.dataset.val.inputs)[i]
        expected = F.cross_entropy(outputs, targets, **(options | {"weight": torch.tensor([1.0, 2.0, 5.0])}))
        torch.testing.assert_close(metrics["loss"][i], expected)
        torch.testing.assert_close(metrics["error"][i], (outputs.argmax(-1) != targets)[:7].float().mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(LABELS, "mse"), r"objective must be one of \['binary_cross_entropy', .* got 'mse'"),
        (lambda: task(LABELS, {"name": "huber", "beta": 1}), r"'huber' has the options \['delta'\], got \['beta'\]"),
        (lambda: task(LABELS, {"name": "huber", "delta": 0}), "delta of 'huber' must be above 0"),
        (lambda: task(LABELS, {"name": "cross_entropy", "label_smoothing": 2}), "label_smoothing must be from 0 to 1"),
        (lambda: task(LABELS, {"name": "cross_entropy", "label_smoothing": "x"}), "must be from 0 to 1, got 'x'"),
        (lambda: task(LABELS, {"name": "cross_entropy", "ignore_index": "x"}), "ignore_index must be an integer"),
        (lambda: task(LABELS, {"name": "huber", "delta": "x"}), "delta of 'huber' must be above 0, got 'x'"),
        (lambda: task(LABELS, None), "objective must be a name such as 'cross_entropy', a mapping"),
        (lambda: task(LABELS, {"name": "cross_entropy", "weight": [1, -1, 1]}), "weight must be numbers >= 0"),
        (lambda: task(LABELS, {"name": "cross_entropy", "weight": [1, 1]}), "expected 3 weights, one for each class"),
        (lambda: task(LABELS - 100, "cross_entropy"), "from 0 to 2, got .* 'ignore_index': -100"),
        (
            lambda: task(LABELS, {"name": "cross_entropy", "ignore_index": 0}, val_targets=0 * LABELS),
            "val split: expected labels that count, but all are ignored",
        ),
        (lambda: task(LABELS, "multi_label"), r"expected targets \(n, 3\) as the outputs have, got \(n,\)"),
        (
            lambda: task(LABELS[:, None] + torch.zeros(3), "multi_label", num_classes=0),
            "labels from 0 to 1, got .* to 2",
        ),
        (lambda: task(LABELS.float(), "l1", outputs=1), "use targets.unsqueeze"),
    ],
)
def test_options_and_labels_that_do_not_fit_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        make()
