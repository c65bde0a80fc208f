import json
import logging

import lightning
import pytest
import torch

from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from generator.training.assembly import assemble
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.module import GeneratorModule, PairDataModule, by_width, split_params
from generator.training.pairs import PairConfig, batch_rng, draw_pairs, numbered_batch
from generator.training.train import keep_last_checkpoint, lightning_without_hints, make_trainer
from generator.trajectories import Trajectories
from zoo.tasks.registry import get_task

SMALL = {"width": 16, "num_blocks": 1, "num_heads": 2, "edge_width": 8}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def make_runs(task, num_runs=8, num_snapshots=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    params = task.init(rng, num_runs)[:, None].repeat(1, num_snapshots, 1)
    params *= torch.linspace(1, 2, num_snapshots)[None, :, None]
    return Trajectories(task.layout, params, {"val_loss": torch.rand(num_runs, num_snapshots, generator=rng) + 0.1})


@pytest.fixture(scope="module")
def tasks():
    return [get_task("digits", hidden=(4,)), get_task("digits", hidden=(4, 3))]


def make_config(**optimization):
    defaults = {"num_steps": 8, "num_epochs": 4, "warmup_steps": 2, "precision": "float32"}
    return GeneratorConfig(
        model=SMALL,
        pairs=PairConfig(batch_size=4),
        objective=ObjectiveConfig(function_examples=8),
        optimization=OptimizationConfig(**{**defaults, **optimization}),
    )


def train(tasks, config, out, *, checkpoint=None, callbacks=()):
    runs = [make_runs(task, seed=i) for i, task in enumerate(tasks)]
    model, normalizer, contexts = assemble(runs, tasks, config)
    module = GeneratorModule(model, contexts, config.objective, config.optimization)
    data = PairDataModule(runs, config.pairs, config.optimization)
    options = {**QUIET, "enable_checkpointing": bool(callbacks)}
    trainer = make_trainer(config.optimization, out, callbacks, options=options)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return module, normalizer


def test_targets_come_later_in_the_run_of_the_start(tasks):
    runs = make_runs(tasks[0], num_snapshots=5)
    for index in range(5):
        batch = draw_pairs(runs, PairConfig(batch_size=64, start_share=1.0), batch_rng(0, index))
        ratio = batch.target.norm(dim=1) / batch.start.norm(dim=1)
        assert (ratio > 1.1).all()
        cosine = torch.nn.functional.cosine_similarity(batch.start, batch.target)
        torch.testing.assert_close(cosine, torch.ones(64))
        known = ~batch.prompt.target.isnan() & ~batch.prompt.start.isnan()
        assert (batch.prompt.target != batch.prompt.start)[known].all()


def test_some_starts_already_meet_their_prompt(tasks):
    runs = make_runs(tasks[0], num_snapshots=5)
    config = PairConfig(batch_size=400, start_share=1.0, initial_share=0.5, stay_share=0.4, start_metric_dropout=0.0)
    batch = draw_pairs(runs, config, batch_rng(0, 0))
    stays = (batch.start == batch.target).all(1)
    assert 0.15 < stays.double().mean() < 0.25
    known = stays & ~batch.prompt.target.isnan().any(1)
    assert torch.equal(batch.prompt.start[known], batch.prompt.target[known])


def test_without_a_start_every_snapshot_is_a_target(tasks):
    runs = make_runs(tasks[0], num_snapshots=3)
    batch = draw_pairs(runs, PairConfig(batch_size=200, start_share=0.0, prompt_dropout=0.0), batch_rng(0, 0))
    assert not batch.has_start.any()
    assert batch.prompt.start.isnan().all()
    assert len(batch.prompt.target.unique()) == 24


def test_batches_follow_from_seed_and_index_alone(tasks):
    runs = [make_runs(task) for task in tasks]
    config = PairConfig(batch_size=4)
    again = [numbered_batch(runs, config, 3, index) for index in range(6)]
    assert torch.equal(again[5].target, numbered_batch(runs, config, 3, 5).target)
    assert not torch.equal(again[5].target, numbered_batch(runs, config, 4, 5).target)
    assert [batch.zoo for batch in again[:4]] == [0, 1, 0, 1]


def test_muon_gets_the_matrices_of_the_blocks():
    model = RecurrentDiffusionTransformer({"a": 5}, {"b": 1}, {"val_loss": (0.1, 1.0)}, width=16, num_blocks=1)
    matrices, others = split_params(model, use_muon=True)
    assert len(matrices) + len(others) == len(list(model.parameters()))
    inside = {id(param) for param in model.blocks.parameters()}
    assert matrices
    assert all(id(param) in inside and param.ndim == 2 for param in matrices)
    assert not split_params(model, use_muon=False)[0]


def test_what_reads_more_changes_no_more_in_a_step():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(width, 4) for width in (8, 64, 4096)]
    params = [param for layer in layers for param in layer.parameters()]
    assert [group["lr"] for group in by_width(params, 0.01, None)] == [0.01]
    groups = by_width(params, 0.01, 64)
    assert sum(len(group["params"]) for group in groups) == len(params)
    optimizer = torch.optim.AdamW(groups, 0.01, weight_decay=0.0)
    inputs = [torch.ones(1, layer.in_features) for layer in layers]
    before = [layer(x).detach() for layer, x in zip(layers, inputs, strict=True)]
    torch.stack([layer(x).sum() for layer, x in zip(layers, inputs, strict=True)]).sum().backward()
    optimizer.step()
    moved = [(layer(x) - old).abs().max() for layer, x, old in zip(layers, inputs, before, strict=True)]
    torch.testing.assert_close(moved[2], moved[1], rtol=1e-2, atol=0)
    assert moved[0] < 0.2 * moved[1]


def test_training_on_two_depths_moves_every_parameter(tasks, tmp_path):
    config = make_config()
    before = assemble([make_runs(task, seed=i) for i, task in enumerate(tasks)], tasks, config)[0].state_dict()
    module, _ = train(tasks, config, tmp_path)
    after = module.model.state_dict()
    stayed = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not stayed
    assert all(value.isfinite().all() for value in after.values())
    averaged = module.averaged.state_dict()
    assert any(not torch.equal(averaged[name], value) for name, value in after.items())
    assert (tmp_path / "log" / "version_0" / "metrics.csv").exists()


def test_resumed_training_equals_uninterrupted(tasks, tmp_path):
    class Interrupt(lightning.pytorch.callbacks.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise RuntimeError("interrupted")

    config = make_config()
    whole, _ = train(tasks, config, tmp_path / "whole")
    keep = keep_last_checkpoint(tmp_path)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(tasks, config, tmp_path / "part", callbacks=[keep, Interrupt()])
    resumed, _ = train(tasks, config, tmp_path / "rest", checkpoint=str(tmp_path / "checkpoints" / "last.ckpt"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_targets_can_be_even_where_snapshots_crowd(tasks):
    """Of 21 snapshots 19 have returns below 20: drawn evenly, half of the targets are above the middle of the range."""
    task = tasks[0]
    returns = torch.cat((torch.linspace(10, 20, 19), torch.tensor([300.0, 500.0]))).repeat(8, 1)
    params = torch.arange(21.0)[None, :, None].repeat(8, 1, task.layout.num_params)
    runs = Trajectories(task.layout, params, {"val_return": returns}, counts=torch.full((8,), 21))
    shares = []
    for share in (0.0, 1.0):
        config = PairConfig(batch_size=512, even_share=share)
        batch = draw_pairs(runs, config, batch_rng(0, 0))
        given = batch.has_start > 0
        assert (batch.target[given, 0] > batch.start[given, 0]).all()
        asked = ~batch.prompt.target[:, 0].isnan()
        assert torch.equal(batch.prompt.target[asked, 0], returns[0, batch.target[asked, 0].long()])
        shares.append((batch.target[:, 0] > 18.5).float().mean().item())
    assert shares[0] < 0.3
    assert shares[1] > 0.6


def test_a_trained_pipeline_can_be_saved(tasks, tmp_path):
    module, normalizer = train(tasks[:1], make_config(num_steps=2, num_epochs=1), tmp_path)
    pipe = ParameterPipeline(module.averaged, normalizer, make_scheduler("sample"))
    pipe.save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["model"] == ["generator", "RecurrentDiffusionTransformer"]
    loaded = ParameterPipeline.from_pretrained(tmp_path / "pipe")
    ours, theirs = (p(prompt={"loss": 0.5}, generator=torch.Generator().manual_seed(0)) for p in (pipe, loaded))
    torch.testing.assert_close(ours.params, theirs.params)


def test_the_trainer_takes_a_logger_and_callbacks_of_the_user(tasks, tmp_path):
    config = make_config(num_steps=2, num_epochs=1)
    mine = lightning.pytorch.callbacks.LambdaCallback()
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path / "mine")
    options = {"enable_progress_bar": False, "logger": logger, "callbacks": mine}
    trainer = make_trainer(
        config.optimization, tmp_path, [keep_last_checkpoint(tmp_path)], device="cpu", options=options
    )
    assert trainer.logger is logger
    assert mine in trainer.callbacks
    assert trainer.strategy.root_device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("auto", {"max_epochs": 3}, r"\['max_epochs'\] are none of lightning.Trainer's, or follow from the config"),
        ("auto", {"acelerator": "cpu"}, r"\['acelerator'\] are none"),
        ("cpu", {"accelerator": "cuda"}, "device='cpu' and accelerator='cuda' of trainer_options differ"),
        ("cuda:99", {}, "there is no device 'cuda:99'"),
    ],
)
def test_options_of_the_trainer_that_do_not_fit_are_refused(tmp_path, device, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(OptimizationConfig(), tmp_path, [], device=device, options=options)


def test_hints_of_lightning_are_off_during_a_training_alone():
    log = logging.getLogger("lightning.pytorch")
    before = log.level
    with lightning_without_hints():
        assert not log.isEnabledFor(logging.INFO)
    assert log.level == before
