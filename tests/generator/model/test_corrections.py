"""Corrections: what a model is told of its answer, and what it makes of that."""

from dataclasses import replace

import pytest
import torch

from generator.model.context import NetworkContext
from generator.model.corrections import Corrections, direction_of, gradient_on_examples, undecided
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.prompts.examples import NO_LABEL, Examples
from generator.prompts.prompt import Prompt
from generator.sampler import corrected
from generator.tokens.tokenizer import NeuronTokenizer
from tests.generator.test_pipeline import make_pipeline
from zoo import get_task

KIND = {"shape": (1, 8, 8), "num_symbols": 0, "num_classes": 10, "num_features": 64}
ONE_PASS = {"diffusion": False, "use_start": False, "use_latent": False}


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(5,))


@pytest.fixture(scope="module")
def params(task):
    return task.init(torch.Generator().manual_seed(0), 3)


def shown(task, targets, is_given=True):
    inputs = task.dataset.train.inputs[:6].expand(3, 6, 1, 8, 8)
    return Examples(inputs, targets.expand(3, 6), torch.full((3,), is_given))


def test_the_gradient_is_of_the_loss_on_labelled_examples_and_of_what_is_undecided_on_others(task, params):
    inputs, targets = task.dataset.train.inputs[:6], task.dataset.train.targets[:6].clone()
    targets[4:] = NO_LABEL
    wanted = params.clone().requires_grad_()
    outputs = task.predict(wanted, inputs)
    labelled = task.objective.loss(outputs[:, :4], targets[:4]) * 4 / 6
    others = undecided(task.objective.log_probs(outputs), targets.expand(3, 6) == NO_LABEL)
    (labelled + others).sum().backward()
    found = gradient_on_examples(task, params, shown(task, targets))
    torch.testing.assert_close(found, wanted.grad, rtol=1e-4, atol=1e-6)


def test_without_examples_there_is_no_gradient(task, params):
    targets = task.dataset.train.targets[:6]
    for labels in (targets, torch.full_like(targets, NO_LABEL)):
        assert not gradient_on_examples(task, params, shown(task, labels, is_given=False)).any()
    unlabelled = shown(task, torch.full_like(targets, NO_LABEL))
    assert gradient_on_examples(task, params, unlabelled).any()
    assert not gradient_on_examples(task, params, unlabelled, unlabelled=False).any()


def test_what_is_undecided_is_the_information_of_outputs_on_inputs_that_is_missing():
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    probs = logits.softmax(-1)
    for found, some in zip(undecided(logits.log_softmax(-1), counts), (probs[0], probs[1, :4]), strict=True):
        by_kl = (some * (some / some.mean(0)).log()).sum(1).mean()
        torch.testing.assert_close(found, -by_kl)
    sure = torch.eye(5).expand(2, 5, 5).clamp(min=1e-30).log()
    same = sure[:, :1].expand(2, 5, 5)
    every = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(undecided(sure, every), -torch.full((2,), 5.0).log())
    torch.testing.assert_close(undecided(same, every), torch.zeros(2))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_first_change_is_a_step_along_the_gradient_whose_size_tells_nothing(task, params, rate):
    tokenizer = NeuronTokenizer(task.layout)
    corrections = Corrections(model_widths([tokenizer])[0], 8, 2, rate)
    gradient = torch.randn(params.shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.randn(3, sum(group.size for group in tokenizer.groups), 8)
    change, rates = corrections.change(tokenizer, tokens)
    assert not change.any()
    if not rate:
        assert rates is None
        return
    steps = [-rates * tokenizer.decode(direction_of(tokenizer, size * gradient)) for size in (0.1, 10.0)]
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)
    for block in tokenizer.node_blocks:
        step, slope = (tokenizer.encode(values)[block.name] for values in (steps[0], gradient))
        assert (step * slope <= 0).all()
        torch.testing.assert_close(step.square().mean((1, 2)).sqrt(), torch.full((3,), rate), rtol=1e-4, atol=1e-6)


def test_a_trained_model_goes_over_few_examples_as_often_as_over_many(task):
    pipe = make_pipeline(
        task.layout,
        examples=KIND,
        num_corrections=1,
        correction_rate=0.1,
        correction_passes=2.0,
        step_examples=4,
        **ONE_PASS,
    )
    inputs, targets, _ = task.batch(torch.arange(16), 1)

    def answered(count, steps, labelled=True):
        pipe.model.register_to_config(correction_passes=0.0 if steps else 2.0, correction_steps=steps or 1)
        prompt = {"examples": (inputs[:count], targets[:count] if labelled else None)}
        return pipe(prompt=prompt, task=task, generator=torch.Generator().manual_seed(0)).params

    for count, steps in ((4, 2), (8, 4), (16, 8)):
        torch.testing.assert_close(answered(count, 0), answered(count, steps), rtol=0, atol=0)
    assert not torch.allclose(answered(16, 0), answered(16, 2))
    torch.testing.assert_close(*[answered(16, steps, labelled=False) for steps in (2, 8)], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_in_half_precision_are_the_same_but_for_rounding(task, dtype):
    inputs, targets, _ = task.batch(torch.arange(6), 1)
    for labels in (targets, torch.full_like(targets, NO_LABEL)):
        pipe = make_pipeline(task.layout, examples=KIND, num_corrections=2, **ONE_PASS)
        exact = pipe(prompt={"examples": (inputs, labels)}, task=task).params
        other = pipe.to(dtype)(prompt={"examples": (inputs, labels)}, task=task).params
        assert (other - exact).norm() < 0.01 * exact.norm()


def test_in_diffusion_samples_of_one_prompt_are_corrected_each_by_its_own_gradient(task, params):
    pipe = make_pipeline(task.layout, examples=KIND, num_corrections=1, use_start=False)
    context = NetworkContext.of(pipe.normalizer, task.layout, task)
    prompt = replace(Prompt.of(None, pipe.metrics, 3), examples=shown(task, task.dataset.train.targets[:6]))
    told = {"examples": context.observed(prompt.examples, pipe.model.example_kind)}
    reading = pipe.model.read(context.tokenizer, prompt, **told).repeat(2)
    answers, times = torch.cat((params, -params)), torch.linspace(0, 1, 6)
    together = corrected(pipe.model, context, prompt, reading, answers, timestep=times)
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    swapped = corrected(pipe.model, context, prompt, reading, answers[order], timestep=times[order])
    torch.testing.assert_close(swapped, together[order], rtol=1e-4, atol=1e-5)
    late = corrected(pipe.model, context, prompt, reading, answers, timestep=torch.ones(6))
    assert (late - together)[:5].abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("options", [{"noisy_as_start": True, "diffusion": True}, {"window": 4}, {"examples": None}])
def test_corrections_are_of_whole_answers_to_examples(task, options):
    nodes, edges = model_widths([NeuronTokenizer(task.layout)])
    options = {"examples": KIND, **ONE_PASS, "use_latent": True, **options}
    with pytest.raises(ValueError, match="num_corrections needs examples"):
        RecurrentDiffusionTransformer(nodes, edges, {"val_loss": (0.1, 2.0)}, num_corrections=1, **options)
