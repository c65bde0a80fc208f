import pytest
import torch
from torch.nn import functional as F

from zoo.tasks.objectives import OBJECTIVES


def example(name, shape):
    rng = torch.Generator().manual_seed(0)
    outputs = 5 * torch.randn(*shape, generator=rng, dtype=torch.float64)
    if name == "cross_entropy":
        return outputs, torch.randint(shape[-1], shape[:-1], generator=rng)
    if name == "binary_cross_entropy":
        return outputs[..., :1], torch.randint(2, shape[:-1], generator=rng)
    return outputs, torch.randn(*shape, generator=rng, dtype=torch.float64)


def reference_loss(name, outputs, targets):
    if name == "cross_entropy":
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    if name == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(outputs[..., 0], targets.double())
    if name == "policy_gradient":
        return -(outputs.log_softmax(-1) * targets).sum(-1).mean()
    return F.mse_loss(outputs, targets)


@pytest.mark.parametrize("shape", [(3, 7, 4), (3, 7, 5, 4)], ids=["examples", "sequences"])
@pytest.mark.parametrize("name", OBJECTIVES)
class TestObjective:
    def test_loss_equals_torch(self, name, shape):
        outputs, targets = example(name, shape)
        losses = OBJECTIVES[name].loss(outputs, targets)
        expected = torch.stack([reference_loss(name, o, t) for o, t in zip(outputs, targets, strict=True)])
        torch.testing.assert_close(losses, expected)

    def test_shared_targets_equal_repeated_ones(self, name, shape):
        outputs, targets = example(name, shape)
        objective, repeated = OBJECTIVES[name], targets[:1].expand_as(targets)
        torch.testing.assert_close(objective.loss(outputs, targets[0]), objective.loss(outputs, repeated))
        torch.testing.assert_close(objective.error(outputs, targets[0]), objective.error(outputs, repeated))
        shared, own = (objective.loss_and_grad(outputs, value) for value in (targets[0], repeated))
        torch.testing.assert_close(shared, own)

    def test_written_gradient_equals_autograd(self, name, shape):
        outputs, targets = example(name, shape)
        losses, grad = OBJECTIVES[name].loss_and_grad(outputs, targets)
        leaf = outputs.requires_grad_()
        expected = OBJECTIVES[name].loss(leaf, targets)
        torch.testing.assert_close(losses, expected.detach())
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), leaf)[0])


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
