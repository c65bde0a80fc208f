"""A generator of adapters, prompted by examples, from its training to a folder for PEFT."""

import copy
import warnings
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch

from generator import WeightReader
from generator.evaluation.unseen_tasks import unseen_tasks_report
from generator.model.context import NetworkContext
from generator.model.objectives import ObjectiveConfig, product_distance, product_sizes
from generator.networks import in_one_form
from generator.pipeline import ParameterPipeline
from generator.prompts.plausibility import FEWEST_LABELLED
from generator.prompts.prompt import Prompt
from generator.sampler import make_scheduler, sample_params
from generator.training.assembly import assemble
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.pairs import MADE_UP_RUNS, PairConfig, batch_rng, draw_pairs
from generator.training.reader import Labelled
from generator.training.tasks import task_of
from generator.training.train import train_generator
from generator.trajectories import Trajectories
from tests.generator.model.test_examples import adapters_on
from tests.zoo.checkpoints.test_adapters import digits_task
from zoo import build_zoo, get_task
from zoo.networks import low_rank
from zoo.networks.layout import LayoutMismatchError
from zoo.networks.randomness import seeded_module
from zoo.storage.selection import SelectedZoo

SMALL = {"width": 16, "num_blocks": 1, "num_heads": 2, "diffusion": False, "use_start": False, "use_latent": False}
SMALL["num_corrections"] = 1
PAIRS = {"batch_size": 4, "start_share": 0.0, "num_examples": (4, 8), "label_dropout": 0.3, "prompt_dropout": 0.5}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def adapter_task(rank=2, seed=0, **options):
    whole = get_task("warped_images", base="digits", hidden=(6,))
    base = seeded_module(whole.make_model, seed).state_dict()
    return get_task("warped_images", base="digits", hidden=(6,), adapter={"base": base, "rank": rank}, **options)


def make_config(description_weight=0.0, **pairs):
    return GeneratorConfig(
        num_validation_starts=0,
        model=SMALL,
        pairs=PairConfig(
            **{"batch_size": 4, "start_share": 0.0, "num_examples": (4, 8), "label_dropout": 0.3, "prompt_dropout": 0.5}
            | pairs
        ),
        objective=ObjectiveConfig(
            energy_score=False, function_energy_weight=0.0, function_examples=8, description_weight=description_weight
        ),
        optimization=OptimizationConfig(num_steps=6, num_epochs=3, warmup_steps=1, precision="float32"),
    )


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    plan = {"num_runs": 8, "num_steps": 4, "num_snapshots": 3, "batch_size": 8, "evaluated_splits": ["val"]}
    plan["split_fractions"] = {"train": 0.8, "test": 0.2}
    return [build_zoo(folder / str(rank), adapter_task(rank), **plan) for rank in (2, 3)]


@pytest.fixture(scope="module")
def pipe(zoos, tmp_path_factory):
    out = tmp_path_factory.mktemp("generator")
    train_generator(zoos, make_config(1.0, share_without_targets=0.5), out=out, trainer_options=QUIET)
    pipe = ParameterPipeline.from_pretrained(out)
    for decoder in (*pipe.model.decoders.values(), *pipe.model.corrections.decoders.values()):
        torch.nn.init.normal_(decoder.weight)  # a training this short leaves them near zero
    return pipe


@pytest.fixture(scope="module")
def examples():
    inputs, targets, _ = adapter_task().for_members([5]).batch(torch.arange(12), 1)
    return inputs[0], targets[0]


@pytest.fixture(scope="module")
def layout(zoos):
    return zoos[0].layout


def test_the_order_of_examples_and_the_other_prompts_of_a_batch_do_not_matter(pipe, layout, examples):
    inputs, targets = examples
    whole = pipe(prompt={"loss": 1.0, "examples": examples}, layout=layout).params
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = pipe(prompt={"loss": 1.0, "examples": (inputs[order], targets[order])}, layout=layout).params
    torch.testing.assert_close(shuffled, whole, rtol=1e-4, atol=1e-5)
    pair = (torch.stack((inputs, -inputs)), torch.stack((targets, targets)))
    both = pipe(prompt={"loss": 1.0, "examples": pair}, num_samples=2, layout=layout).params
    torch.testing.assert_close(both[:1], whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_examples_metrics_and_labels_can_each_be_left_out(pipe, layout, examples):
    prompts = [None, {"loss": 1.0}, {"examples": examples}, {"examples": (examples[0], None)}]
    networks = torch.cat([pipe(prompt=prompt, layout=layout).params for prompt in prompts])
    assert torch.pdist(networks).min() > 1e-3


def test_a_prompt_without_examples_is_one_whose_examples_are_left_out(pipe, layout, examples):
    left_out = pipe(prompt={"loss": 1.0, "examples": examples}, guidance_scale=0, layout=layout).params
    torch.testing.assert_close(pipe(layout=layout).params, left_out, rtol=0, atol=1e-6)


def test_answers_that_do_not_fit_their_prompt_are_warned_of(pipe, layout):
    assert pipe.config["usual_losses"] == [None, None]  # zoos without validation runs
    inputs, targets, _ = adapter_task().for_members([5]).batch(torch.arange(FEWEST_LABELLED), 1)
    examples = (inputs[0], targets[0])
    made = pipe(prompt={"examples": examples}, layout=layout).params
    loss = adapter_task().objective.loss(adapter_task().predict(made, inputs), targets).item()
    pipe.register_to_config(usual_losses=[loss - 0.01] * 2)
    with pytest.warns(UserWarning, match="1 of 1 generated networks have a loss"):
        pipe(prompt={"examples": examples}, layout=layout)
    pipe.register_to_config(usual_losses=[loss + 0.01] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(prompt={"examples": examples}, layout=layout)
    pipe.register_to_config(usual_losses=[loss - 0.01] * 2)
    shown = {"input_shape": (1, 8, 8), "num_outputs": 10, "num_inputs": 4}
    pipe.reader = WeightReader([layout.to_json()], {"val_loss": 0.001}, **shown)
    assert pipe.read(made, layout=layout).values["val_loss"].isfinite().all(), "on the base of the pipeline"
    with pytest.warns(UserWarning, match="2 of 2 generated networks have a loss"):
        pipe(prompt={"examples": examples}, layout=layout, num_samples=2, best_of=3)
    pipe.reader = None
    pipe.register_to_config(usual_losses=[None, None])


def test_a_reader_can_be_asked_which_task_an_adapter_is_for(zoos):
    names = [f"task_{place}" for place in range(5)]
    known = Labelled.of(zoos[0], "train", names)
    wanted = task_of(zoos[0]).describe(known.runs.runs.tolist())
    rows, snapshots = known.everything()
    values = known.at(rows, snapshots)[1]
    assert torch.equal(torch.stack([values[name] for name in names], 1), wanted[rows])
    with pytest.raises(ValueError, match="does not record"):
        Labelled.of(zoos[0], "train", ["task_5"])
    last = Labelled.of(
        SelectedZoo(zoos[0], keep=np.tile(np.arange(3) == 2, (8, 1))), "train", names
    )  # the others are missing
    assert torch.equal(last.at(rows[::3], torch.zeros_like(rows[::3]))[0], known.at(rows[::3], snapshots[2::3])[0])


def test_one_model_makes_adapters_of_every_rank(pipe, examples):
    for rank in (2, 3, 4):  # 4 was not trained
        task = adapter_task(rank)
        params = pipe(prompt={"examples": examples}, task=task, num_samples=2).params
        assert params.shape == (2, task.layout.num_params)
        assert task.evaluate(params)["loss"].isfinite().all()


@pytest.mark.parametrize("base", ["cnn", "vit"])
def test_adapters_of_convolutions_and_of_transformers_are_generated_too(base, tmp_path):
    task, network = adapters_on(base)
    zoo = build_zoo(tmp_path / "zoo", task, num_runs=4, num_steps=3, num_snapshots=2, batch_size=8)
    train_generator([zoo], make_config(), out=tmp_path / "out", tasks=[task], trainer_options=QUIET)
    pipe = ParameterPipeline.from_pretrained(tmp_path / "out")
    inputs, targets, _ = task.for_members([5, 6]).batch(torch.arange(12), 2)
    generated = pipe(prompt={"examples": (inputs, targets)}, num_samples=2)
    assert (generated.params[0] - generated.params[1]).abs().max() > 1e-6
    adapted = task.make_model().eval()
    adapted.load_state_dict(generated.state_dicts()[0], strict=False)
    torch.testing.assert_close(adapted(inputs[0]), task.predict(generated.params[:1], inputs[:1])[0])
    assert not torch.allclose(adapted(inputs[0]), network(inputs[0]), atol=1e-6)


def test_unseen_tasks_are_reported_by_their_examples(pipe, zoos):
    report = unseen_tasks_report(pipe, zoos[0])
    assert list(report) == ["unseen tasks", "held-out runs"]
    assert all(row["num_tasks"] == len(zoos[0].split("test")) for row in report.values())
    assert all(0 <= row["worst"] <= row["mean"] <= 1 for row in report.values())


def test_an_adapter_is_saved_for_peft(pipe, layout, examples, tmp_path):
    peft = pytest.importorskip("peft")
    generated = pipe(prompt={"examples": examples}, layout=layout, num_samples=2)
    pipe.save_adapter(tmp_path / "adapter", generated, index=1)
    network = get_task("warped_images", base="digits", hidden=(6,)).make_model()
    network.load_state_dict(pipe.base)
    loaded = peft.PeftModel.from_pretrained(network, tmp_path / "adapter")
    expected = adapter_task().predict(generated.params[1:], examples[0])[0]
    torch.testing.assert_close(loaded(examples[0]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no network 2"):
        pipe.save_adapter(tmp_path / "other", generated, index=2)


def test_adapters_of_peft_with_magnitudes_and_biases_are_generated_and_saved(tmp_path):
    peft = pytest.importorskip("peft")
    network = seeded_module(get_task("digits", hidden=(6,)).make_model, 0)
    config = peft.LoraConfig(r=2, target_modules=["layers.0", "layers.1"], use_dora=True, bias="all")
    task = digits_task(lambda: peft.get_peft_model(copy.deepcopy(network), copy.deepcopy(config)))
    zoo = build_zoo(tmp_path / "zoo", task, num_runs=4, num_steps=3, num_snapshots=2, batch_size=8)
    train_generator([zoo], make_config(), out=tmp_path / "out", tasks=[task], trainer_options=QUIET)
    pipe = ParameterPipeline.from_pretrained(tmp_path / "out")
    inputs, targets = (some[:12] for some in (task.dataset.train.inputs, task.dataset.train.targets))
    generated = pipe(prompt={"examples": (inputs, targets)}, task=task)
    pipe.save_adapter(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(network, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(inputs), task.predict(generated.params, inputs[None])[0], rtol=1e-4, atol=1e-5)


def test_adapters_of_another_base_are_refused(pipe, examples):
    with pytest.raises(LayoutMismatchError, match="base"):
        pipe(prompt={"examples": examples}, task=adapter_task(seed=1))


def test_adapters_of_another_scale_are_refused(pipe, examples):
    options = {"base": pipe.base, "rank": 2, "alpha": 32}
    with pytest.raises(LayoutMismatchError, match=r"scaled by 16, .* by 1; give the task their alpha"):
        pipe(prompt={"examples": examples}, task=get_task("warped_images", base="digits", hidden=(6,), adapter=options))


def test_the_answer_follows_from_what_examples_tell_of_their_task(pipe, layout, examples):
    first = pipe(prompt={"examples": examples}, layout=layout).params
    unconditional = pipe(layout=layout).params
    bias = pipe.model.example_describer.estimates.bias
    assert len(bias) == 2 * adapter_task().describe([5]).shape[1]
    try:
        with torch.no_grad():
            bias.add_(1.0)
        assert not torch.allclose(pipe(prompt={"examples": examples}, layout=layout).params, first, atol=1e-4)
        assert torch.equal(pipe(layout=layout).params, unconditional)
    finally:
        with torch.no_grad():
            bias.sub_(1.0)


def test_made_up_tasks_have_runs_of_their_own_and_no_target(zoos):
    runs = Trajectories.from_zoo(zoos[0], "train", ("val_loss",))
    config = make_config(share_without_targets=0.5).pairs
    batch = draw_pairs(runs, replace(config, batch_size=64), batch_rng(0, 0))
    assert torch.equal(batch.runs >= MADE_UP_RUNS, batch.has_target == 0)
    assert 16 < batch.has_target.sum() < 48
    assert batch.prompt.target[batch.has_target == 0].isnan().all()
    ends = {int(run): runs.read(torch.tensor([i]), runs.counts[i : i + 1] - 1) for i, run in enumerate(runs.runs)}
    is_best = batch.has_examples & ~batch.prompt.asks_metric & (batch.has_target > 0)
    assert is_best.any()
    for i in is_best.nonzero()[:, 0].tolist():
        assert torch.equal(batch.target[i], ends[int(batch.runs[i])][0])


def test_each_prompt_of_a_batch_has_examples_of_its_own(tmp_path, monkeypatch):
    task, seen = get_task("digits_subset", hidden=(2,)), []
    zoo = build_zoo(tmp_path / "zoo", task, num_runs=8, num_steps=2, num_snapshots=2)

    def observed(context, examples, kind, **options):
        seen.append(examples)
        return observe(context, examples, kind, **options)

    observe = NetworkContext.observed
    monkeypatch.setattr(NetworkContext, "observed", observed)
    train_generator(zoo, make_config(), out=tmp_path / "out", trainer_options=QUIET)
    drawn = [examples for examples in seen if len(examples.inputs) == PAIRS["batch_size"]]
    assert len(drawn) == 6
    for examples in drawn:
        first, second = examples.inputs[:2].flatten(2)
        assert not any(torch.equal(first[i], second[i]) for i in range(len(first)))


def test_centred_answers_begin_at_the_mean_of_the_zoos_adapters(zoos, tmp_path, examples):
    still = OptimizationConfig(num_steps=1, num_epochs=1, learning_rate=1e-9, muon_learning_rate=0, warmup_steps=0)
    config = replace(make_config(), centred=True, optimization=still)
    train_generator(zoos[0], config, out=tmp_path / "out", tasks=[adapter_task()], trainer_options=QUIET)
    pipe = ParameterPipeline.from_pretrained(tmp_path / "out")
    answers = torch.cat([pipe(prompt=prompt).params for prompt in (None, {"examples": examples})])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-6)
    real = torch.from_numpy(zoos[0].params[zoos[0].split("train")]).flatten(0, 1)
    mean = low_rank.mean(zoos[0].layout, real)[None]
    spread = low_rank.distances(zoos[0].layout, real, mean).mean()
    assert low_rank.distances(zoos[0].layout, answers, mean).max() < 0.25 * spread
    with pytest.raises(ValueError, match="one zoo of adapters"):
        train_generator(zoos, config, out=tmp_path / "both", trainer_options=QUIET)


def test_tasks_are_made_up_only_by_families_without_end(tmp_path):
    zoo = build_zoo(tmp_path / "zoo", get_task("digits_subset", hidden=(2,)), num_runs=8, num_steps=2, num_snapshots=2)
    with pytest.raises(ValueError, match="family without end"):
        train_generator(zoo, make_config(share_without_targets=0.5), out=tmp_path / "out", trainer_options=QUIET)


def test_resumed_training_equals_uninterrupted(zoos, tmp_path):
    class Interrupt(lightning.pytorch.callbacks.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise RuntimeError("interrupted")

    config = make_config(share_without_targets=0.3)
    whole = train_generator(zoos[0], config, out=tmp_path / "whole", trainer_options=QUIET)
    with pytest.raises(RuntimeError, match="interrupted"):
        train_generator(zoos[0], config, out=tmp_path / "part", trainer_options=QUIET | {"callbacks": [Interrupt()]})
    resumed = train_generator(zoos[0], config, out=tmp_path / "part", trainer_options=QUIET)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_distance_of_adapters_is_that_of_their_products():
    layout, rng = adapter_task().layout, torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, layout.num_params, generator=rng) for _ in range(2))
    ones = {group.name: 1.0 for group in low_rank.linear_groups(layout)}
    ours = product_distance(layout, ones)(first, second)
    theirs = low_rank.distances(layout, first, second).diagonal()
    torch.testing.assert_close(ours.double().square(), theirs.square() / len(ones), rtol=1e-4, atol=1e-4)
    same = low_rank.apply(layout, first, low_rank.sample(layout, 5, rng))
    assert product_distance(layout, ones)(first, same).max() < 0.02
    assert product_distance(layout, product_sizes(layout, 0 * first))(first, second).isfinite().all()
    expected = low_rank.inner_products(layout, first).diagonal().mean().item()
    assert sum(product_sizes(layout, first).values()) == pytest.approx(expected, rel=1e-4)


def test_trajectories_and_starts_have_one_form(zoos):
    runs = Trajectories.from_zoo(zoos[0], "train", ("val_loss",))
    networks = runs.read(torch.arange(2), torch.full((2,), 2))
    mixed = low_rank.apply(runs.layout, networks, low_rank.sample(runs.layout, 2, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(in_one_form(runs.layout, mixed), networks, rtol=1e-3, atol=1e-4)


def test_adapters_that_begin_at_one_keep_their_factors_and_what_is_untrained_answers_near_it():
    task, rng = adapter_task(), torch.Generator().manual_seed(0)
    start = torch.randn(task.layout.num_params, generator=rng)
    later = start + 0.01 * torch.randn(6, 1, len(start), generator=rng)
    params = torch.cat((start.expand(6, 1, -1), later), dim=1)
    runs = Trajectories(task.layout, params, {}, as_trained=True)
    assert torch.equal(runs.read(torch.arange(6), torch.ones(6, dtype=torch.int64)), params[:, 1])
    with pytest.raises(ValueError, match="all runs begin at one adapter"):
        Trajectories(task.layout, params.flip(1), {}, as_trained=True)
    with pytest.raises(ValueError, match=r"needs pairs\.start_share=0"):
        GeneratorConfig(statistics_per_number=True)
    config = replace(make_config(), metrics=(), statistics_per_number=True)
    model, _, (context,) = assemble([runs], [task], config)
    inputs, targets, _ = task.for_members(range(6)).batch(torch.arange(8), 6)
    prompt = Prompt.of({"examples": (inputs, targets)}, [], 6, kind=model.example_kind)
    made = sample_params(model, context, make_scheduler("sample"), prompt)
    torch.testing.assert_close(made, start.expand(6, -1), rtol=0, atol=0.02)
