import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from generator.model import batch_norm
from generator.model.batch_norm import (
    has_batch_norm,
    recompute_batch_norm,
    run_in_batch_mode,
    with_recomputed_batch_norm,
)
from generator.model.context import NetworkContext
from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from generator.tokens.normalizer import ParamNormalizer
from generator.training.losses import training_losses
from generator.training.pairs import PairConfig, batch_rng, draw_pairs
from generator.trajectories import Trajectories
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

STATISTICS = ("running_mean", "running_var")


@pytest.fixture(scope="module")
def task():
    return get_task("digits", architecture="cnn", channels=(4, 6))


@pytest.fixture(scope="module")
def networks(task):
    return task.init(torch.Generator().manual_seed(0), 3)


def module_of(task, params):
    module = task.make_model()
    module.load_state_dict(task.layout.unflatten(params))
    return module


class Branches(nn.Module):
    """Its way through depends on the inputs, so torch.func cannot run it in batches; returns a dict of logits."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)

    def forward(self, x):
        x = self.norm(x)
        return {"logits": self.head((x if x.sum() > -1e9 else -x).flatten(1))}


def test_networks_that_run_one_after_another_have_a_batch_mode_too():
    plain = get_task("digits", architecture="cnn", channels=(4,))
    with pytest.warns(UserWarning, match="one after another"):
        task = Task("branches", plain.dataset, Branches, OBJECTIVES["cross_entropy"])
    params = task.init(torch.Generator().manual_seed(0), 2).requires_grad_()
    inputs = task.dataset.train.inputs[:20]
    outputs, updated = run_in_batch_mode(task, params, inputs)
    outputs[1].sum().backward()
    module = module_of(task, params[1].detach()).train()
    module.norm.momentum = 1.0
    expected = module(inputs)["logits"]
    expected.sum().backward()
    torch.testing.assert_close(outputs[1], expected)
    torch.testing.assert_close(updated[1, task.layout["norm.running_var"].span], module.norm.running_var)
    torch.testing.assert_close(params.grad[1, task.layout["head.weight"].span], module.head.weight.grad.flatten())
    assert not params.grad[0].any()


def test_images_of_ones_own_have_no_common_statistics():
    task = get_task("warped_images", base="digits", architecture="cnn", channels=(3,))
    with pytest.raises(ValueError, match="networks of 'warped_images' see inputs of their own"):
        recompute_batch_norm(task, task.init_runs([0]))


def test_statistics_are_those_of_update_bn(task, networks, monkeypatch):
    monkeypatch.setattr(batch_norm, "NUM_EXAMPLES", len(task.dataset.train))
    before = torch.get_rng_state()
    ours = recompute_batch_norm(task, networks)
    assert torch.equal(before, torch.get_rng_state())
    module = module_of(task, networks[1])
    update_bn([task.dataset.train.inputs], module)
    theirs = task.layout.flatten(module.state_dict())
    for slot in task.layout:
        expected = theirs if slot.role in STATISTICS else networks[1]
        torch.testing.assert_close(ours[1, slot.span], expected[slot.span], rtol=1e-4, atol=1e-5)


class ReadsNumbersWhileBuilt(nn.Module):
    """As networks with a schedule of drop-path rates do; and holds a table that no state dict has."""

    def __init__(self):
        super().__init__()
        self.scale = torch.linspace(0, 0.1, 3)[-1].item()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.register_buffer("shift", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x):
        return self.head(self.norm(self.conv(x) * self.scale + self.shift).mean((2, 3)))


def test_modules_that_read_numbers_while_they_are_built(task):
    own = Task("own", task.dataset, ReadsNumbersWhileBuilt, OBJECTIVES["cross_entropy"])
    networks = own.init(torch.Generator().manual_seed(0), 2)
    inputs = task.dataset.train.inputs[:32]
    outputs, _ = run_in_batch_mode(own, networks, inputs)
    torch.testing.assert_close(outputs[1], module_of(own, networks[1]).train()(inputs), rtol=1e-4, atol=1e-5)


def test_batch_mode_is_the_module_in_training(task, networks):
    inputs = task.dataset.train.inputs[:32]
    params = networks.clone().requires_grad_()
    outputs, _ = run_in_batch_mode(task, params, inputs)
    torch.testing.assert_close(outputs[2], module_of(task, networks[2]).train()(inputs), rtol=1e-4, atol=1e-5)
    outputs.square().sum().backward()
    kernel = task.layout["convs.0.weight"].span
    assert params.grad[:, kernel].abs().max() > 0
    statistics = [params.grad[:, slot.span] for slot in task.layout if slot.role in STATISTICS]
    assert not torch.cat(statistics, dim=1).any()


def make_runs(task, networks):
    params = networks[:, None].repeat(1, 3, 1)
    metrics = {"val_error": torch.rand(3, 3), "val_loss": torch.rand(3, 3) + 0.1}
    metrics["val_loss"][2, 2] = torch.nan
    return Trajectories(task.layout, params, metrics, counts=torch.tensor([3, 3, 2]))


def test_snapshots_are_measured_with_statistics_of_their_own(task, networks):
    runs = with_recomputed_batch_norm(make_runs(task, networks), task)
    expected = recompute_batch_norm(task, networks)
    torch.testing.assert_close(runs.read(torch.tensor([0, 2]), torch.tensor([2, 1])), expected[[0, 2]])
    measured = task.evaluate(expected, "val")
    torch.testing.assert_close(runs.metrics["val_loss"][:, 0], measured["loss"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(runs.metrics["val_error"][:, 1], measured["error"])
    assert runs.metrics["val_loss"][2, 2].isnan()


@pytest.mark.parametrize("kind", ["neuron", "chunk"])
def test_pipelines_recompute_after_sampling_and_then_need_a_task(kind, task, networks):
    assert has_batch_norm(task.layout)
    normalizer = ParamNormalizer.fit(kind, [task.layout], [networks], chunk_width=16, recompute_batch_norm=True)
    context = NetworkContext.of(normalizer, task.layout, task)
    sizes = {"width": 16, "num_blocks": 1, "num_heads": 2, "use_latent": False}
    model = RecurrentDiffusionTransformer(*model_widths([context.tokenizer]), {"val_loss": (0.1, 1.1)}, **sizes)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    config = ObjectiveConfig(energy_score=False, function_energy_weight=0.0, function_examples=16)
    batch = draw_pairs(make_runs(task, networks), PairConfig(batch_size=4), batch_rng(0, 0))
    losses = training_losses(model, context, batch, config, rng=batch_rng(0, 0), precision=torch.enable_grad())
    losses["function"].backward()
    assert all(param.grad.isfinite().all() for param in model.parameters() if param.grad is not None)

    pipe = ParameterPipeline(model.eval(), normalizer, make_scheduler("sample"))
    rng = torch.Generator().manual_seed(1)
    generated = pipe(None, {"loss": 0.5}, num_samples=2, task=task, num_inference_steps=2, generator=rng).params
    torch.testing.assert_close(generated, recompute_batch_norm(task, generated))
    with pytest.raises(ValueError, match="pass task"):
        pipe(networks[0], {"loss": 0.5}, num_inference_steps=2)


def test_other_networks_are_left_alone():
    mlp = get_task("digits", hidden=(4,))
    networks = mlp.init(torch.Generator().manual_seed(0), 3)
    normalizer = ParamNormalizer.fit("neuron", [mlp.layout], [networks], recompute_batch_norm=True)
    assert not NetworkContext.of(normalizer, mlp.layout).recompute_batch_norm
