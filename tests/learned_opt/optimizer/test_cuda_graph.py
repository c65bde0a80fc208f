"""A whole training step under a CUDA graph, and what makes it possible: nothing waits, and state keeps its place."""

import pytest
import torch
from torch.nn import functional as F

from learned_opt import LearnedOptimizer, MlpRule, NormalizedRule, Pretrained
from zoo.networks.architectures import ByteTransformer

from ...devices import never_waiting

RULES = {
    "mulo": MlpRule(16),
    "mulo-norm": NormalizedRule(embedding_offset=True),
    "basis": NormalizedRule(embedding_offset=True, memory=True, basis=True),
}
NUM_WARMUP, NUM_REPLAYS = 3, 10
every_rule = pytest.mark.parametrize("name", RULES)


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", 0)


def training(name, device, dtype=torch.float32):
    """A model, its optimizer with a learning rate on the device, and a step on a batch (B, L + 1) of symbols."""
    torch.manual_seed(0)
    model = ByteTransformer(16, 8, 32, 2, 2).to(device, dtype)
    rule = RULES[name]
    theta = rule.init_theta(torch.Generator().manual_seed(0))
    theta += 0.01 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))
    lr = torch.tensor(0.5, device=device)
    optimizer = LearnedOptimizer(model, Pretrained(rule, theta), num_training_steps=50, lr=lr, weight_decay=0.1)

    def step(symbols):
        optimizer.zero_grad()
        logits = model(symbols[:, :-1]).float()
        F.cross_entropy(logits.flatten(0, -2), symbols[:, 1:].flatten()).backward()
        optimizer.step()

    return model, optimizer, step


def batches(device):
    rng = torch.Generator().manual_seed(2)
    return [torch.randint(16, (4, 9), generator=rng).to(device) for _ in range(NUM_WARMUP + NUM_REPLAYS)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_rule
def test_replayed_steps_are_eager_steps(cuda, name, dtype):
    model, optimizer, step = training(name, cuda, dtype)
    twin, other, eager_step = training(name, cuda, dtype)
    data = batches(cuda)
    symbols = data[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in data[:NUM_WARMUP]:
            symbols.copy_(batch)
            step(symbols)
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(symbols)
    for i, batch in enumerate(data[NUM_WARMUP:]):
        symbols.copy_(batch)
        optimizer.param_groups[0]["lr"].fill_(0.5 / (i + 1))
        graph.replay()
        if i == 4:
            assert optimizer.state_dict()["param_groups"][0]["inner_step"] == NUM_WARMUP + 5
    for i, batch in enumerate(data):
        if i >= NUM_WARMUP:
            other.param_groups[0]["lr"].fill_(0.5 / (i - NUM_WARMUP + 1))
        eager_step(batch)
    assert optimizer.inner_step == other.inner_step == len(data)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for replayed, eager in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(replayed, eager, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_rule
def test_a_step_neither_waits_nor_moves_what_a_graph_holds(device, name, dtype):
    model, optimizer, _ = training(name, device, dtype)
    counters = ("inner_step", "num_skipped_steps")
    first = None
    for i in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan") if i == 1 else 0.1)
        with never_waiting():
            optimizer.step()
        held = [optimizer.param_groups[0][counter] for counter in counters]
        held += [value for state in optimizer.state.values() for value in state.values()]
        first = first or held
    assert all(a is b for a, b in zip(first, held, strict=True))
    saved = optimizer.state_dict()["param_groups"][0]
    assert [saved[counter] for counter in counters] == [2, 1]
    assert optimizer.param_groups[0]["inner_step"] is first[0]
    assert (optimizer.inner_step, optimizer.num_skipped_steps) == (2, 1)
