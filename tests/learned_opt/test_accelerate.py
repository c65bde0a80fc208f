"""Accelerate: gradients accumulated, states saved and resumed, and FSDP2 as its plugin sets it up."""

import os
import socket

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from learned_opt import MuLO, NormalizedRule, Pretrained
from learned_opt.rules.velo import VeloRule

pytestmark = pytest.mark.slow
accelerate = pytest.importorskip("accelerate")


def untrained(rule=None) -> Pretrained:
    rule = rule or NormalizedRule()
    return Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))


def model_and_data() -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(192, 6, generator=rng)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)), TensorDataset(x, x[:, :4].argmax(1))


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize("rule", [NormalizedRule(), VeloRule(lstm=8, bank=4)], ids=["mulo-norm", "velo"])
def test_accumulation_is_the_large_batch_and_a_resumed_run_is_the_whole_one(tmp_path, rule):
    def fit(num_parts: int, num_epochs: int, *, resume: bool = False) -> tuple[nn.Module, MuLO]:
        model, data = model_and_data()
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=num_parts)
        loader = DataLoader(data, batch_size=48 // num_parts)
        optimizer = MuLO(model, untrained(rule), num_training_steps=12)
        model, prepared, loader = accelerator.prepare(model, optimizer, loader)
        if resume:
            accelerator.load_state(tmp_path / "state")
        for _ in range(num_epochs):
            total = 0.0
            for x, y in loader:
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    total = total + loss.detach() / num_parts
                    mean = total
                    prepared.step(lambda mean=mean: mean)
                    prepared.zero_grad()
                    if accelerator.sync_gradients:
                        total = 0.0
        if num_epochs == 1:
            accelerator.save_state(tmp_path / "state")
        return model, optimizer

    whole, optimizer = fit(1, 3)
    assert optimizer.inner_step == 12
    accumulated, optimizer = fit(4, 3)
    assert optimizer.inner_step == 12
    fit(4, 1)
    resumed, optimizer = fit(4, 2, resume=True)
    assert optimizer.inner_step == 12
    start = model_and_data()[0]
    for one, other, again, first in zip(*(m.parameters() for m in (whole, accumulated, resumed, start)), strict=True):
        torch.testing.assert_close(other - first, one - first, rtol=1e-2, atol=1e-3)
        assert torch.equal(other, again)


def fsdp(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": f"{port}", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
    plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    accelerator = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin)
    state = accelerate.state.AcceleratorState()  # which takes the plugin up on accelerators only
    state.distributed_type, state.fsdp_plugin = accelerate.DistributedType.FSDP, plugin
    model, data = model_and_data()
    optimizer = MuLO(model, untrained(), num_training_steps=6)
    model, prepared = accelerator.prepare(model, optimizer)
    x, y = data.tensors
    for _ in range(6):
        accelerator.backward(F.cross_entropy(model(x[rank::2]), y[rank::2]))
        prepared.step()
        prepared.zero_grad()
    params = [p.full_tensor().detach() for p in model.parameters()]
    is_sharded = all(isinstance(p, torch.distributed.tensor.DTensor) for p in model.parameters())
    if rank == 0:
        torch.save((is_sharded, params), f"{folder}/params.pt")
    accelerator.end_training()


def test_the_fsdp2_plugin_trains_as_one_process(two_ranks, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    two_ranks(fsdp, port, str(tmp_path))
    is_sharded, params = torch.load(tmp_path / "params.pt")
    assert is_sharded
    model, data = model_and_data()
    optimizer = MuLO(model, untrained(), num_training_steps=6)
    x, y = data.tensors
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for mine, theirs in zip(model.parameters(), params, strict=True):
        torch.testing.assert_close(theirs, mine.detach(), rtol=1e-3, atol=1e-4)
