import torch
from torch import nn
from torch.nn import functional as F

from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

SEEDS = [5, 2**61 + 1, 7]


def own_task(build, objective=OBJECTIVES["cross_entropy"], **options):
    return Task("own", get_task("digits").dataset, build, objective, **options)


class Tied(nn.Module):
    """The same matrix twice, and a mask that is a buffer of truth values."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.arange(64) % 2 == 0)

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu() * self.mask))


def test_tied_weights_and_boolean_buffers_train_as_the_module_does():
    task = own_task(Tied)
    params = task.init_runs(SEEDS)
    batch = task.batch(torch.arange(20), len(params))
    losses, grads = task.loss_and_grad(params.clone(), batch)
    for i, row in enumerate(params):
        model = task.make_model()
        model.load_state_dict(task.base | task.layout.unflatten(row))
        loss = F.cross_entropy(model(batch.inputs), batch.targets)
        loss.backward()
        named = dict(model.named_parameters())
        expected = torch.cat([named[slot.name].grad.flatten() for slot in task.layout if slot.kind == "param"])
        torch.testing.assert_close(losses[i], loss.detach())
        torch.testing.assert_close(grads[i], expected, rtol=1e-4, atol=1e-6)
    assert task.base["mask"].dtype == torch.bool


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.first, self.head, self.activation = nn.Linear(64, 8), nn.Linear(8, 10), activation

    def forward(self, x):
        return self.head(self.activation(self.first(x.flatten(1))))


def small(module):
    with torch.no_grad():
        module.head.weight *= 0.5
    return module


class Smoothed:
    """Cross-entropy of smoothed labels, under the name that another smoothing has, too."""

    name = "smoothed"

    def __init__(self, smoothing):
        self.smoothing = smoothing

    def loss(self, outputs, targets):
        targets = targets.expand(outputs.shape[:-1])
        losses = F.cross_entropy(outputs.mT, targets, reduction="none", label_smoothing=self.smoothing)
        return losses.flatten(1).mean(1)

    def error(self, outputs, targets):
        return (outputs.argmax(-1) != targets).to(outputs.dtype).flatten(1).mean(1)


def test_own_tasks_are_told_apart_by_what_they_compute():
    descriptions = [
        own_task(lambda: Activated(torch.tanh)).description,
        own_task(lambda: Activated(torch.relu)).description,  # which looks the same
        own_task(lambda: small(Activated(torch.tanh))).description,  # and so does another initialisation
        own_task(lambda: Activated(torch.tanh), Smoothed(0.1)).description,
        own_task(lambda: Activated(torch.tanh), Smoothed(0.2)).description,
        own_task(lambda: Activated(torch.tanh), parametrization="mup").description,
        own_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))).description,
    ]
    assert all(one != other for i, one in enumerate(descriptions) for other in descriptions[:i])
    assert descriptions[0] == own_task(lambda: Activated(torch.tanh)).description
    named = get_task("digits")
    assert named.description == named.config


def test_modules_that_insist_on_float32_have_an_identity():
    def build(shift):
        return Activated(lambda x: (x.float() + shift * torch.ones(8)).float())

    first, again, other = (own_task(lambda shift=shift: build(shift)).description for shift in (1, 1, 2))
    assert first == again
    assert first != other
