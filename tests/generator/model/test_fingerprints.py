import pytest
import torch

from generator.model.context import NetworkContext
from generator.model.fingerprints import NUM_EXAMPLES, fixed_examples, num_fingerprints, unit_fingerprints
from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from generator.tokens.normalizer import ParamNormalizer
from generator.training.losses import training_losses
from generator.training.pairs import PairConfig, batch_rng, draw_pairs
from generator.trajectories import Trajectories
from zoo.networks import symmetry
from zoo.tasks.registry import get_task


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(5, 4))


@pytest.fixture(scope="module")
def cnn_task():
    return get_task("digits", architecture="cnn", channels=(5, 4))


@pytest.mark.parametrize("kind", ["task", "cnn_task"])
def test_permuting_units_permutes_their_fingerprints(kind, request):
    task = request.getfixturevalue(kind)
    params = task.init(torch.Generator().manual_seed(0), 3)
    perms = symmetry.sample(task.layout, 3, torch.Generator().manual_seed(1))
    examples = fixed_examples(task)
    plain = unit_fingerprints(task, params, examples)
    permuted = unit_fingerprints(task, symmetry.apply(task.layout, params, perms), examples)
    shapes = {name.split(".")[1]: value.shape for name, value in plain.items()}
    assert shapes == {"0": (3, 5, 24), "1": (3, 4, 24)}
    for name, values in plain.items():
        torch.testing.assert_close(permuted[name], values.gather(1, perms[name][..., None].expand_as(values)))


def test_gradients_by_class_are_those_of_autograd(task):
    """The gradient of a class's mean loss by a unit's bias is what the fingerprint holds, up to the layer's scale."""
    params = task.init(torch.Generator().manual_seed(0), 1).requires_grad_()
    examples = task.draw_examples(NUM_EXAMPLES, torch.Generator().manual_seed(2))
    ours = unit_fingerprints(task, params.detach(), examples)
    slot = task.layout["layers.0.bias"]
    for label in (0, 7):
        chosen = examples.targets == label
        log_probs = task.predict(params, examples.inputs[chosen]).log_softmax(-1)
        (grad,) = torch.autograd.grad(-log_probs[..., label].mean(), params)
        theirs = grad[0, slot.span]
        held = ours["hidden.0"][0, :, 3 + 10 + label]
        torch.testing.assert_close(held / held.norm(), theirs / theirs.norm(), rtol=1e-3, atol=1e-4)


def test_fingerprints_of_channels_are_those_of_the_module(cnn_task):
    """Activity and gradient by class of a network of its own, run in batch mode, against hooks on the module."""
    params = cnn_task.init(torch.Generator().manual_seed(0), 2)
    examples = cnn_task.draw_examples(NUM_EXAMPLES, torch.Generator().manual_seed(2))
    ours = unit_fingerprints(cnn_task, params, examples)["channels.1"][1]
    module = cnn_task.make_model().train()
    module.load_state_dict(cnn_task.layout.unflatten(params[1]))
    kept = []
    module.norms[1].register_forward_hook(lambda _, __, output: kept.append(output))
    loss = torch.nn.functional.cross_entropy(module(examples.inputs), examples.targets, reduction="sum")
    (grad,) = torch.autograd.grad(loss, kept)
    activity, grad = kept[0].relu().mean((2, 3)).detach(), grad.sum((2, 3))  # (B, n)
    for label in (0, 7):
        chosen = examples.targets == label
        for first, values in ((3, activity - activity.mean(0)), (13, grad)):
            held, theirs = ours[:, first + label], values[chosen].mean(0)
            torch.testing.assert_close(held / held.norm(), theirs / theirs.norm(), rtol=1e-3, atol=1e-4)


def test_fingerprints_reach_the_prediction_and_need_a_task(task):
    params = task.init(torch.Generator().manual_seed(0), 6)[:, None].repeat(1, 2, 1)
    runs = Trajectories(task.layout, params, {"val_loss": torch.rand(6, 2) + 0.1})
    normalizer = ParamNormalizer.fit("neuron", [task.layout], [params.flatten(0, 1)])
    context = NetworkContext.of(normalizer, task.layout, task)
    model = RecurrentDiffusionTransformer(
        *model_widths([context.tokenizer]),
        {"val_loss": (0.1, 1.1)},
        num_fingerprints=num_fingerprints(task),
        width=16,
        num_blocks=1,
        num_heads=2,
    )
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    batch = draw_pairs(runs, PairConfig(batch_size=4, start_share=1.0), batch_rng(0, 0))
    losses = training_losses(
        model, context, batch, ObjectiveConfig(), rng=batch_rng(0, 0), precision=torch.enable_grad()
    )
    losses["total"].backward()
    assert model.fingerprint_encoder.weight.grad.abs().max() > 0

    pipe = ParameterPipeline(model.eval(), normalizer, make_scheduler("sample"))
    start = params[0, 0]
    assert pipe(start, {"loss": 0.5}, task=task, num_inference_steps=2).params.isfinite().all()
    with pytest.raises(ValueError, match="pass task"):
        pipe(start, {"loss": 0.5}, num_inference_steps=2)


def test_from_noise_the_noisy_network_is_looked_at(cnn_task):
    params = cnn_task.init(torch.Generator().manual_seed(0), 6)[:, None].repeat(1, 2, 1)
    runs = Trajectories(cnn_task.layout, params, {"val_loss": torch.rand(6, 2) + 0.1})
    normalizer = ParamNormalizer.fit("neuron", [cnn_task.layout], [params.flatten(0, 1)], recompute_batch_norm=True)
    context = NetworkContext.of(normalizer, cnn_task.layout, cnn_task)
    options = {"width": 16, "num_blocks": 1, "num_heads": 2, "use_latent": False, "noisy_as_start": True}
    model = RecurrentDiffusionTransformer(
        *model_widths([context.tokenizer]),
        {"val_loss": (0.1, 1.1)},
        num_fingerprints=num_fingerprints(cnn_task),
        start_skip=1.0,
        **options,
    )
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    batch = draw_pairs(runs, PairConfig(batch_size=4, start_share=0.0), batch_rng(0, 0))
    config = ObjectiveConfig(energy_score=False, function_energy_weight=0.0, self_fed_share=0.5)
    losses = training_losses(model, context, batch, config, rng=batch_rng(0, 0), precision=torch.enable_grad())
    losses["total"].backward()
    assert model.fingerprint_encoder.weight.grad.abs().max() > 0

    pipe = ParameterPipeline(model.eval(), normalizer, make_scheduler("sample"))
    prompt = {"loss": torch.full((2,), 0.5)}
    generated = pipe(None, prompt, num_samples=2, task=cnn_task, num_inference_steps=2).params
    assert generated.isfinite().all()
    with pytest.raises(ValueError, match="pass task"):
        pipe(None, prompt, num_samples=2, num_inference_steps=2)


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="switch them off"):
        num_fingerprints(get_task("python_source", context=8, width=8, num_blocks=1, num_heads=1))
