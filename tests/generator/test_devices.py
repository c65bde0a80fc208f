"""Everything that a generator does gives the CPU's numbers on another device."""

from contextlib import nullcontext
from dataclasses import replace

import lightning
import pytest
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._pytree import tree_map

from generator.alignment import alignment_of
from generator.evaluation.collapse import collapse_report
from generator.evaluation.novelty import novelty_report
from generator.evaluation.testbed import PipelineSampler, Testbed
from generator.model.batch_norm import with_recomputed_batch_norm
from generator.model.objectives import ObjectiveConfig
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from generator.training.assembly import assemble
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.losses import training_losses
from generator.training.pairs import PairConfig, batch_rng, draw_pairs
from generator.training.train import train_generator
from generator.trajectories import Trajectories
from tests.devices import never_waiting
from tests.generator.test_pipeline import make_pipeline
from zoo.building.build import build_zoo
from zoo.tasks.registry import get_task

NO_FUNCTIONS = ObjectiveConfig(energy_score=False, function_weight=0.0, function_energy_weight=0.0)
CONFIG = GeneratorConfig(
    model={"width": 16, "num_blocks": 1, "num_heads": 2, "edge_width": 8},
    pairs=PairConfig(batch_size=4),
    objective=ObjectiveConfig(function_examples=8, function_episodes=2),
    optimization=OptimizationConfig(num_steps=4, num_epochs=2, warmup_steps=0, precision="float32"),
    num_validation_starts=3,
)
MLP = {"name": "digits", "hidden": (4,)}
DEEP = {"name": "digits", "hidden": (4, 3)}
WARPED = {"name": "warped_images", "base": "digits", "hidden": (4,)}
CNN = {"name": "digits", "architecture": "cnn", "channels": (3,)}


def with_model(config=CONFIG, **options):
    return replace(config, model={**CONFIG.model, **options})


CASES = {
    "neurons": ([MLP], CONFIG),
    "several zoos": ([MLP, DEEP], CONFIG),
    "fingerprints": ([DEEP], replace(CONFIG, fingerprints=True)),
    "fingerprints of noise": ([DEEP], with_model(replace(CONFIG, fingerprints=True), noisy_as_start=True)),
    "chunks": ([MLP], replace(CONFIG, tokenizer="chunk", pairs=replace(CONFIG.pairs, permute_units=True))),
    "windows": (
        [MLP],
        with_model(
            replace(CONFIG, tokenizer="chunk", chunk_width=16, objective=replace(NO_FUNCTIONS, windows_per_step=2)),
            window=4,
        ),
    ),
    "mean squared error": ([MLP], replace(CONFIG, objective=NO_FUNCTIONS)),
    "flow": ([MLP], replace(CONFIG, objective=replace(CONFIG.objective, prediction="flow"))),
    "self-fed": ([MLP], replace(CONFIG, objective=replace(CONFIG.objective, self_fed_share=1.0))),
    "regressor": ([MLP], with_model(diffusion=False)),
    "noise alone": ([MLP], replace(CONFIG, pairs=replace(CONFIG.pairs, start_share=0.0))),
    "task bits": ([{"name": "digits_subset", "hidden": (4,)}], replace(CONFIG, task_bits="mask", num_task_bits=10)),
    "batch norm": ([CNN], replace(CONFIG, recompute_batch_norm=True, fingerprints=True)),
    "examples": ([WARPED], replace(CONFIG, pairs=replace(CONFIG.pairs, num_examples=(4, 6)))),
    "adapters by examples": (
        [{**WARPED, "adapter": {"base": "own", "rank": 2}}],
        replace(
            CONFIG,
            model={**CONFIG.model, "diffusion": False, "use_start": False, "use_latent": False},
            pairs=replace(CONFIG.pairs, start_share=0.0, num_examples=(4, 6)),
            objective=replace(CONFIG.objective, energy_score=False, function_energy_weight=0.0),
        ),
    ),
    "networks by examples": (
        [{"name": "digits_subset", "hidden": (4,)}],
        replace(
            CONFIG,
            model={**CONFIG.model, "use_start": False},
            pairs=replace(CONFIG.pairs, start_share=0.0, num_examples=(4, 6)),
        ),
    ),
    "policies": ([{"name": "cartpole"}], replace(CONFIG, metrics=("return",))),
}


def make_runs(task, config, seed=0):
    """Eight runs of three snapshots, which are longer and longer."""
    rng = torch.Generator().manual_seed(seed)
    params = task.init(rng, 8)[:, None] * torch.tensor([1.0, 1.5, 2.0])[:, None]
    if task.layout.base is not None:  # adapters begin with products of zero
        params = params + 0.1 * torch.randn(params.shape, generator=rng)
    bits = (torch.rand(8, config.num_task_bits, generator=rng) < 0.5).float()
    metrics = {name: torch.rand(8, 3, generator=rng) + 0.1 for name in config.metric_names}
    return Trajectories(task.layout, params, metrics, task_bits=bits)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The model, its normalizer and contexts, and the runs and config, of each kind of generator."""
    settings, config = CASES[request.param]
    tasks = [get_task(**one) for one in settings]
    runs = [make_runs(task, config) for task in tasks]
    model, normalizer, contexts = assemble(runs, tasks, config)
    with torch.no_grad():
        for param in model.parameters():  # outputs begin at zero
            param.add_(0.05 * torch.randn(param.shape, generator=torch.Generator().manual_seed(1)))
    return model, normalizer, contexts, runs, config


def on_cpu(tensors):
    return {name: value.detach().cpu() for name, value in tensors.items()}


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_losses_and_gradients(case, device):
    model, _, contexts, runs, config = case
    plays = contexts[0].task.plays_episodes  # which ends when all episodes have, so it has to look

    def step(place, zoo, waiting):
        model.to(place).zero_grad()
        context = contexts[zoo].to(place)
        _ = context.base  # of adapters, which is moved there once
        batch = draw_pairs(runs[zoo], config.pairs, batch_rng(0, 0)).to(place)
        rng = batch_rng(0, 0, 1)
        with waiting:
            losses = training_losses(model, context, batch, config.objective, rng=rng, precision=nullcontext())
            losses["total"].backward()
        grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
        return on_cpu(losses), on_cpu(grads)

    for zoo in range(len(runs)):
        expected = step("cpu", zoo, nullcontext())
        if contexts[zoo].recompute_batch_norm:  # a template is moved to the device once
            step(device, zoo, nullcontext())
        found = step(device, zoo, nullcontext() if plays else never_waiting())
        model.to("cpu").zero_grad()
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_networks_that_are_sampled(case, device):
    model, normalizer, contexts, runs, config = case
    pipe = ParameterPipeline(model, normalizer, make_scheduler(config.objective.prediction))
    pipe.set_progress_bar_config(disable=True)
    bits = [1.0, 0.0] * (config.num_task_bits // 2) or None
    prompt = {config.metrics[0]: 0.3}
    if config.pairs.num_examples is not None:
        prompt["examples"] = contexts[0].task.for_runs([0]).draw_examples(5, torch.Generator().manual_seed(1))[:2]

    def sampled(place):
        pipe.to(place)
        options = {"task": contexts[0].task, "layout": runs[0].layout, "num_inference_steps": 2, "task_bits": bits}
        starts = [None, runs[0].read(torch.arange(2), torch.zeros(2, dtype=torch.long))]
        kept = starts[: 1 + ("start" in config.pairs.modes)]
        results = []
        for start in kept:
            rng = torch.Generator().manual_seed(0)
            out = pipe(start, prompt, num_samples=2, guidance_scale=1.5, generator=rng, **options)
            assert out.params.device.type == torch.device(place).type
            results.append(out.params.cpu())
        return results

    expected = sampled("cpu")
    found = sampled(device)
    pipe.to("cpu")
    assert_same(found, expected)


def test_networks_that_are_edited(device):
    layout = get_task(**MLP).layout
    pipe = make_pipeline(layout)
    networks = torch.randn(2, layout.num_params, generator=torch.Generator().manual_seed(1))

    def edited(place):
        rng = torch.Generator().manual_seed(0)
        options = {"own_prompt": {"val_loss": 0.5}, "num_inference_steps": 4, "generator": rng}
        return pipe.to(place).edit(networks, {"val_loss": 0.3}, **options).params.cpu()

    expected = edited("cpu")
    found = edited(device)
    pipe.to("cpu")
    assert_same(found, expected)


def test_statistics_that_are_recomputed(device):
    task = get_task(**CNN)
    runs = make_runs(task, CONFIG)
    expected = with_recomputed_batch_norm(runs, task)
    found = with_recomputed_batch_norm(runs, task.to(device))
    rows = torch.arange(8), torch.full((8,), 2)
    assert_same(found.read(*rows), expected.read(*rows))
    assert_same(found.metrics, expected.metrics)


def test_measures_of_the_evaluation(device):
    """Pipeline and task are on the device; runs, starts and all figures on the CPU."""
    task = get_task(**DEEP)
    runs = make_runs(task, CONFIG)
    model, normalizer, _ = assemble([runs], [task], CONFIG)
    pipe = ParameterPipeline(model, normalizer, make_scheduler("sample"))

    def figures(place):
        testbed = Testbed(task.to(place), runs, make_runs(task, CONFIG, seed=1))
        starts, prompts = testbed.starts(3), testbed.prompts(2)
        sample = PipelineSampler(pipe.to(place), testbed.task, num_inference_steps=2)
        asked = {"val_loss": prompts.repeat(3)}
        networks = sample(starts.repeat_interleave(2, dim=0), asked, torch.Generator().manual_seed(0))
        alignment = alignment_of(networks, testbed.task, prompts)
        collapse = collapse_report(testbed, starts, networks[::2], prompts[0].item())
        novelty = novelty_report(testbed, networks[::2], prompts[0].item(), torch.Generator().manual_seed(0))
        curves = testbed.real_curves
        measures = {name: one.generated for name, one in collapse.measures.items()}
        sets = {name: [one.distances, one.overlaps, one.accuracies] for name, one in novelty.sets.items()}
        return [alignment.val, alignment.test, measures, sets, curves.train_loss, curves.test_accuracy]

    expected = figures("cpu")
    found = figures(device)
    pipe.to("cpu")
    assert_same(found, expected)


class Pretended(Accelerator):
    """What Lightning's trainer needs to know of the pretended device."""

    def setup_device(self, device):
        assert device.type == "sim"

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device("sim", 0)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "sim"

    def get_device_stats(self, device):
        return {}


class SavedFromCPU(TorchCheckpointIO):
    """PyTorch moves what it loads to another device, but for pretended tensors."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        moved = tree_map(lambda value: value.cpu() if isinstance(value, torch.Tensor) else value, checkpoint)
        super().save_checkpoint(moved, path, storage_options)


class StepsDoNotWait(lightning.Callback):
    """Training steps may not wait for the device; `stop_in` is the epoch in which the training is interrupted."""

    def __init__(self, stop_in=None):
        self.stop_in = stop_in
        self.waiting = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == self.stop_in:
            raise RuntimeError("interrupted")
        assert {batch.target.device, module.device, module.contexts[0].device} == {trainer.strategy.root_device}
        step = type(module).training_step

        def guarded(*args):
            with never_waiting():
                return step(module, *args)

        module.training_step = guarded


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "digits"
    return build_zoo(path, get_task(**MLP), num_runs=60, num_steps=10, snapshot_steps=(0, 5, 10))


def train(zoo, out, device, callback):
    """A whole training."""
    quiet = {"enable_progress_bar": False, "callbacks": callback, "logger": False}
    if torch.device(device).type != "sim":
        return train_generator(zoo, CONFIG, out=out, device=str(device), trainer_options=quiet)
    there = {"accelerator": Pretended(), "strategy": SingleDeviceStrategy(device), "plugins": SavedFromCPU()}
    return train_generator(zoo, CONFIG, out=out, trainer_options=quiet | there)


def assert_same_pipelines(ours, theirs):
    """As a whole, and those that began at zero: orthogonalised updates magnify rounding, a lost epoch does far more."""
    began_at_zero = ("modulation", "decoders", "edge_outputs")
    learned = [
        torch.cat(
            [
                value.flatten()
                for name, value in pipe.model.state_dict().items()
                if any(k in name for k in began_at_zero)
            ]
        )
        for pipe in (ours, theirs)
    ]
    assert (learned[0] - learned[1]).norm() < 0.1 * learned[1].norm()
    for mode, calibration in theirs.config["calibrations"][0].items():
        assert ours.config["calibrations"][0][mode]["meant"] == pytest.approx(calibration["meant"], rel=0.01)


def test_a_training_is_resumed_on_another_device(zoo, tmp_path, device):
    """With its loop, selection on validation starts, calibration and checkpoints."""
    whole = train(zoo, tmp_path / "cpu", "cpu", StepsDoNotWait())
    with pytest.raises(RuntimeError, match="interrupted"):
        train(zoo, tmp_path / "to cpu", device, StepsDoNotWait(stop_in=1))
    assert_same_pipelines(train(zoo, tmp_path / "to cpu", "cpu", StepsDoNotWait()), whole)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(zoo, tmp_path / "to there", "cpu", StepsDoNotWait(stop_in=1))
    assert_same_pipelines(train(zoo, tmp_path / "to there", device, StepsDoNotWait()), whole)
