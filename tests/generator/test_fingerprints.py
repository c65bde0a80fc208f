import pytest
import torch

from generator.context import NetworkContext
from generator.dataset import PairConfig, Trajectories, batch_rng
from generator.fingerprints import fixed_examples, num_fingerprints, random_examples, unit_fingerprints
from generator.losses import training_losses
from generator.model import RecurrentDiffusionTransformer, model_widths
from generator.normalizer import ParamNormalizer
from generator.objectives import ObjectiveConfig
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from zoo import symmetry
from zoo.tasks import get_task


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(5, 4))


def test_permuting_units_permutes_their_fingerprints(task):
    params = task.init(torch.Generator().manual_seed(0), 3)
    perms = symmetry.sample(task.layout, 3, torch.Generator().manual_seed(1))
    examples = fixed_examples(task)
    plain = unit_fingerprints(task, params, examples)
    permuted = unit_fingerprints(task, symmetry.apply(task.layout, params, perms), examples)
    assert {name: value.shape for name, value in plain.items()} == {"hidden.0": (3, 5, 24), "hidden.1": (3, 4, 24)}
    for name, values in plain.items():
        torch.testing.assert_close(permuted[name], values.gather(1, perms[name][..., None].expand_as(values)))


def test_gradients_by_class_are_those_of_autograd(task):
    """The gradient of a class's mean loss by a unit's bias is what the fingerprint holds, up to the layer's scale."""
    params = task.init(torch.Generator().manual_seed(0), 1).requires_grad_()
    examples = random_examples(task, torch.Generator().manual_seed(2))
    ours = unit_fingerprints(task, params.detach(), examples)
    slot = task.layout["layers.0.bias"]
    for label in (0, 7):
        chosen = examples.targets == label
        log_probs = task.predict(params, examples.inputs[chosen]).log_softmax(-1)
        (grad,) = torch.autograd.grad(-log_probs[..., label].mean(), params)
        theirs = grad[0, slot.span]
        held = ours["hidden.0"][0, :, 3 + 10 + label]
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
    batch = runs.pairs(PairConfig(batch_size=4, start_share=1.0), batch_rng(0, 0))
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


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="switch them off"):
        num_fingerprints(get_task("digits", architecture="cnn", channels=(4,)))
