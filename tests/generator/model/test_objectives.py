from dataclasses import replace

import pytest
import torch
from scipy.stats import energy_distance

from generator.model.context import NetworkContext
from generator.model.objectives import (
    PREDICTIONS,
    ObjectiveConfig,
    clean_of,
    deterministic_step,
    energy_score,
    log_loss_gap,
    prediction_target,
    return_gap,
    signal_and_noise,
)
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.prompts.prompt import Prompt
from generator.sampler import make_scheduler, sample_params
from generator.tokens.normalizer import ParamNormalizer
from generator.training.losses import training_losses
from generator.training.pairs import PairConfig, batch_rng, draw_pairs
from generator.trajectories import Trajectories
from zoo.tasks.registry import get_task


@pytest.fixture(scope="module")
def task():
    return get_task("digits", hidden=(4,))


@pytest.fixture(scope="module")
def runs(task):
    params = task.init(torch.Generator().manual_seed(0), 6)[:, None].repeat(1, 3, 1)
    params[:, 1:] *= 2
    return Trajectories(task.layout, params, {"val_loss": torch.rand(6, 3) + 0.1})


def make_parts(task, runs, kind="neuron", **options):
    normalizer = ParamNormalizer.fit(kind, [task.layout], [runs.sample(20, torch.Generator().manual_seed(0))])
    context = NetworkContext.of(normalizer, task.layout, task)
    torch.manual_seed(0)
    model = RecurrentDiffusionTransformer(
        *model_widths([context.tokenizer]), {"val_loss": (0.1, 1.1)}, width=16, num_blocks=1, num_heads=2, **options
    )
    return model, context


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clean_parameters_are_recovered_from_the_target(prediction):
    clean, gaussian = torch.randn(2, 5, 7)
    time = torch.linspace(0.05, 0.95, 5)
    signal, noise = signal_and_noise(prediction, time[:, None])
    target = prediction_target(prediction, clean, gaussian, time)
    torch.testing.assert_close(clean_of(prediction, target, signal * clean + noise * gaussian, time), clean)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_step_from_a_true_prediction_stays_on_the_path(prediction):
    clean, gaussian = torch.randn(2, 5, 7)
    before, after = torch.linspace(0.3, 0.95, 5), torch.linspace(0.0, 0.9, 5)
    signal, noise = signal_and_noise(prediction, before[:, None])
    output = prediction_target(prediction, clean, gaussian, before)
    stepped = deterministic_step(prediction, signal * clean + noise * gaussian, output, before, after)
    signal, noise = signal_and_noise(prediction, after[:, None])
    torch.testing.assert_close(stepped, signal * clean + noise * gaussian, rtol=1e-4, atol=1e-4)


def test_self_fed_steps_are_trained_on_what_the_model_itself_predicts(task, runs):
    model, context = make_parts(task, runs)
    batch = draw_pairs(runs, PairConfig(batch_size=6), batch_rng(0, 0))
    losses = {}
    for share in (0.0, 1.0):
        config = ObjectiveConfig(function_examples=16, self_fed_share=share)
        rng = batch_rng(0, 0, 1)
        losses[share] = training_losses(model, context, batch, config, rng=rng, precision=torch.enable_grad())["total"]
        losses[share].backward()
    assert losses[0.0].item() != losses[1.0].item()
    assert all(param.grad.isfinite().all() for param in model.parameters())
    with pytest.raises(ValueError, match="prediction='sample'"):
        ObjectiveConfig(prediction="flow", self_fed_share=0.5)


def test_energy_score_is_least_for_the_true_distribution():
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(40_000, 1, generator=rng)

    def expected(std, shift):
        first, second = (torch.randn(40_000, 1, generator=rng) * std + shift for _ in range(2))
        return energy_score(first, second, target).mean()

    true = expected(1.0, 0.0)
    assert all(expected(*other) > true + 0.01 for other in ((0.0, 0.0), (0.4, 0.0), (2.0, 0.0), (1.0, 0.7)))


def test_energy_score_agrees_with_scipy():
    """E d(p, x) * 2 - E d(p, p') - E d(x, x') is scipy's squared energy distance."""
    rng = torch.Generator().manual_seed(0)
    first, second, target, other = torch.randn(4, 100_000, 1, generator=rng)
    first, second = first * 2 + 1, second * 2 + 1
    ours = energy_score(first, second, target).mean() - (target - other).abs().mean()
    theirs = energy_distance(first[:, 0].numpy(), target[:, 0].numpy()) ** 2
    assert ours.item() == pytest.approx(theirs, abs=0.02)


def test_log_loss_gap_is_zero_for_equal_losses_and_symmetric_on_the_log_scale():
    losses = torch.tensor([0.5, 0.05, 2.0])
    assert not log_loss_gap(losses, losses).any()
    torch.testing.assert_close(log_loss_gap(losses * 2, losses), log_loss_gap(losses, losses * 2))


def test_return_gap_pulls_towards_longer_or_shorter_episodes():
    task = get_task("cartpole", hidden=(4,), horizon=60)
    params = 3 * task.init(torch.Generator().manual_seed(0), 8)
    returns = task.evaluate(params, "train")["return"]
    worse, better = params[returns.argmin()][None], params[returns.argmax()][None]
    for predicted, real, sign in ((worse, better, 1), (better, worse, -1), (worse, worse, 0)):
        leaf = predicted.clone().requires_grad_()
        gap = return_gap(task, leaf, real, 16, batch_rng(0, 0))
        (grad,) = torch.autograd.grad(gap.sum(), leaf)
        chosen = torch.randint(len(task.dataset.train), (16,), generator=batch_rng(0, 0))
        losses, policy_gradient = task.loss_and_grad(torch.cat((predicted, real)), task.batch(chosen, 2))
        torch.testing.assert_close(gap.detach(), (losses[:1] - losses[1:]).abs())
        assert bool(gap > 0) == (sign != 0)
        torch.testing.assert_close(grad, sign * policy_gradient[:1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_objective_gives_gradients_to_every_parameter(task, runs, prediction):
    model, context = make_parts(task, runs)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    batch = draw_pairs(runs, PairConfig(batch_size=6), batch_rng(0, 0))
    config = ObjectiveConfig(prediction=prediction, function_examples=16)
    losses = training_losses(model, context, batch, config, rng=batch_rng(0, 0, 1), precision=torch.enable_grad())
    assert set(losses) == {"params", "function", "function_energy", "total"}
    losses["total"].backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", ["neuron", "chunk"])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "digits", "architecture": "cnn", "channels": (3, 4)},
        {"name": "digits_subset", "hidden": (4,)},
        {"name": "warped_images", "base": "digits", "hidden": (4,)},
        {"name": "cartpole", "hidden": (4,), "horizon": 20},
        {"name": "python_source", "size": 20_000, "context": 8, "width": 8, "num_blocks": 1, "num_heads": 2},
    ],
    ids=lambda options: options["name"] + options.get("architecture", ""),
)
def test_every_kind_of_network_can_be_trained_on(options, kind):
    task = get_task(**options)
    params = task.init(torch.Generator().manual_seed(0), 4)[:, None].repeat(1, 2, 1)
    runs = Trajectories(task.layout, params, {"val_loss": torch.rand(4, 2) + 0.1})
    model, context = make_parts(task, runs, kind)
    batch = draw_pairs(runs, PairConfig(batch_size=2), batch_rng(0, 0))
    config = ObjectiveConfig(function_examples=4)
    losses = training_losses(model, context, batch, config, rng=batch_rng(0, 0, 1), precision=torch.enable_grad())
    losses["total"].backward()
    assert losses["total"].isfinite()
    assert any(param.grad.abs().max() > 0 for param in model.parameters() if param.grad is not None)


@pytest.mark.parametrize("split", ["train", "val", "train_val"])
def test_examples_come_from_the_splits_that_are_named_and_never_from_test(task, split):
    config = ObjectiveConfig(function_split=split)
    drawn = task.draw_examples(500, batch_rng(0, 0), config.function_splits).inputs.flatten(1)
    rows = {tuple(row.tolist()) for row in drawn}
    known = {
        name: {tuple(row.tolist()) for row in task.dataset.split(name).inputs.flatten(1)} for name in split.split("_")
    }
    assert rows <= set().union(*known.values())
    assert all(rows & some for some in known.values())


@pytest.mark.parametrize("family", [None, "digits_subset", "warped_images"])
def test_perfect_predictions_have_no_function_loss(task, runs, family):
    """The reference is the real target network on the same examples, of its own member, so the truth scores zero."""
    if family:
        options = {"base": "digits"} if family == "warped_images" else {}
        task = get_task(family, hidden=(4,), **options)
        params = task.init(torch.Generator().manual_seed(0), 8)[:, None].repeat(1, 2, 1)
        params[:, 1] *= 1.5
        runs = Trajectories(task.layout, params, {"val_loss": torch.rand(8, 2) + 0.1})
    model, context = make_parts(task, runs, use_latent=False)
    batch = draw_pairs(runs, PairConfig(batch_size=6), batch_rng(0, 0))
    assert of_the_truth(model, context, batch)["total"].item() == pytest.approx(0, abs=1e-4)


def test_where_words_alone_ask_for_a_network_it_is_to_have_the_least_loss_or_that_of_its_target(task, runs):
    model, context = make_parts(task, runs, use_latent=False)
    batch = draw_pairs(runs, PairConfig(batch_size=6, prompt_dropout=1.0), batch_rng(0, 0))
    batch = replace(batch, prompt=replace(batch.prompt, description=torch.ones(6, 1)))
    least = of_the_truth(model, context, batch)["function"].item()
    assert least > 0.1
    assert of_the_truth(model, context, batch, function_aim="target")["function"].item() == pytest.approx(0, abs=1e-4)
    made_up = replace(batch, has_target=torch.zeros(6))
    assert of_the_truth(model, context, made_up, function_aim="target")["function"].item() == pytest.approx(least)
    with pytest.raises(ValueError, match="function_aim must be"):
        ObjectiveConfig(function_aim="most")


def of_the_truth(model, context, batch, **options):
    """Losses of a model that predicts the targets."""

    class Oracle(torch.nn.Module):
        config = model.config
        window = 0

        def read(self, *args, **kwargs):
            return model.read(*args, **kwargs)

        def forward(self, *args, **kwargs):
            return context.scale.normalize(batch.target)

    config = ObjectiveConfig(energy_score=False, function_energy_weight=0.0, **options)
    return training_losses(Oracle(), context, batch, config, rng=batch_rng(0, 0), precision=torch.enable_grad())


def test_null_prompts_are_left_out_of_the_function_loss(task, runs):
    model, context = make_parts(task, runs)
    batch = draw_pairs(runs, PairConfig(batch_size=6, prompt_dropout=1.0), batch_rng(0, 0))
    losses = training_losses(
        model, context, batch, ObjectiveConfig(), rng=batch_rng(0, 0), precision=torch.enable_grad()
    )
    assert losses["function"].item() == 0


def test_windows_score_a_part_of_the_network(task, runs):
    model, context = make_parts(task, runs, kind="chunk", window=2, use_latent=False)
    batch = draw_pairs(runs, PairConfig(batch_size=3), batch_rng(0, 0))
    options = {"energy_score": False, "function_weight": 0.0, "function_energy_weight": 0.0}
    config = ObjectiveConfig(**options, windows_per_step=2)
    loss = training_losses(model, context, batch, config, rng=batch_rng(0, 0), precision=torch.enable_grad())["total"]
    assert loss.isfinite()
    bad = ObjectiveConfig(windows_per_step=2)
    with pytest.raises(ValueError, match="windows_per_step"):
        training_losses(model, context, batch, bad, rng=batch_rng(0, 0), precision=torch.enable_grad())


ZERO = {"params_weight": 0.0, "function_weight": 0.0}


def test_unusable_options_are_refused():
    for options in (
        {"prediction": "epsilon"},
        {"function_split": "test"},
        {"energy_score": False},
        ZERO,
    ):
        with pytest.raises(ValueError, match=r"must be|needs|positive"):
            ObjectiveConfig(**options)


@pytest.mark.parametrize("num_steps", [4, 8, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_schedulers_equal_the_direct_formula(task, runs, prediction, num_steps):
    """Deterministic sampling in continuous time: keep the estimated noise, change the level."""
    model, context = make_parts(task, runs, use_latent=False)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    prompt = Prompt.of({"loss": 0.5}, ["val_loss"], 3)
    ours = sample_params(
        model.eval(),
        context,
        make_scheduler(prediction),
        prompt,
        num_inference_steps=num_steps,
        generator=torch.Generator().manual_seed(1),
    )
    values = torch.randn(3, task.layout.num_params, generator=torch.Generator().manual_seed(1))
    times = torch.linspace(1, 0, num_steps + 1)
    for now, then in zip(times[:-1].expand(3, -1).T, times[1:].expand(3, -1).T, strict=True):
        with torch.no_grad():
            output = model(context.tokenizer, prompt, noisy=values, timestep=now)
        clean = clean_of(prediction, output, values, now)
        signal, noise = signal_and_noise(prediction, now[:, None])
        next_signal, next_noise = signal_and_noise(prediction, then[:, None])
        values = next_signal * clean + next_noise * (values - signal * clean) / noise
    torch.testing.assert_close(ours, context.scale.denormalize(values), rtol=1e-3, atol=1e-3)


def test_guidance_moves_away_from_the_null_prompt(task, runs):
    model, context = make_parts(task, runs, diffusion=False, use_latent=False)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    start = runs.sample(2, torch.Generator().manual_seed(3))
    asked, null = Prompt.of({"loss": 0.5}, ["val_loss"], 2), Prompt.of(None, ["val_loss"], 2)
    plain, free, guided = (
        context.scale.normalize(
            sample_params(model.eval(), context, make_scheduler("sample"), prompt, start=start, guidance_scale=scale)
        )
        for prompt, scale in ((asked, 1.0), (null, 1.0), (asked, 2.0))
    )
    torch.testing.assert_close(guided, 2 * plain - free, rtol=1e-3, atol=1e-4)
