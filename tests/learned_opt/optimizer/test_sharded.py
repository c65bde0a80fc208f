"""Sharded parameters are trained as those of one process: all checks run on the same two processes."""

import copy
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.nn import functional as F

from learned_opt import LearnedOptimizer, MuLO, load_pretrained
from learned_opt.pretrained.files import Pretrained
from learned_opt.rules.normalized import NormalizedRule
from learned_opt.rules.rule import UpdateRule
from zoo.networks.architectures import ByteTransformer
from zoo.tasks.datasets import python_source

CONTEXT, WIDTH, BATCH = 17, 15, 8  # odd numbers of rows on two ranks
NAMES = ("mulo-norm", "mulo")
CHECKS: dict[str, Callable[[int, Path], None]] = {}

load = cache(load_pretrained)


def check(function):
    CHECKS[function.__name__] = function
    return function


class TiedTransformer(nn.Module):
    """One table for embedding and head, and a tensor with fewer rows than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ByteTransformer(128, CONTEXT, WIDTH, 1, 3)
        self.body.head.weight = self.body.token_embedding.weight
        for block in self.body.blocks:
            block.key.register_parameter("bias", None)  # its gradient is nothing but rounding
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(tokens) * self.temperature


@cache
def batches() -> Tensor:
    split = python_source(20_000, CONTEXT).train
    windows = torch.cat([split.inputs, split.targets[:, -1:]], dim=1).long()
    return windows[: len(windows) // BATCH * BATCH].view(-1, BATCH, CONTEXT + 1)


def make_model() -> TiedTransformer:
    torch.manual_seed(0)
    return TiedTransformer()


def sharded(model: nn.Module, **options) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.body.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def make(name: str, model: nn.Module, **options) -> LearnedOptimizer:
    return LearnedOptimizer(model, load(name), **{"num_training_steps": 1000, "lr": 0.05, **options})


def backward(model: nn.Module, step: int, parts: Iterable[int], scale: float) -> None:
    """Gradients of some of the two halves of a batch: sums of both in one process are the mean of two ranks."""
    for part in parts:
        tokens = batches()[step][part::2]
        loss = F.cross_entropy(model(tokens[:, :-1]).float().flatten(0, 1), tokens[:, 1:].flatten())
        (scale * loss).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], rank: int | None = None) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step, *([(0, 1), 0.5] if rank is None else [(rank,), 1.0]))
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def assert_same(model: nn.Module, reference: nn.Module, tolerance: float = 1e-6) -> None:
    """Relative to the scale of the weights."""
    params = [whole(p) for p in reference.parameters()]
    scale = max(float(p.abs().max()) for p in params)
    for got, expected in zip(model.parameters(), params, strict=True):
        torch.testing.assert_close(whole(got), expected, rtol=0, atol=tolerance * scale)


@check
def fifty_steps_are_those_of_one_process(rank: int, path: Path) -> None:
    for name in NAMES:
        reference, models = make_model(), [sharded(make_model())]
        train(reference, make(name, reference), range(50))
        if name == "mulo-norm":
            models.append(nn.parallel.DistributedDataParallel(make_model()))
        for model in models:
            optimizer = make(name, model)
            train(model, optimizer, range(50), rank)
            assert optimizer.inner_step == 50
            assert_same(model, reference)


@check
def averages_are_those_of_one_process(rank: int, path: Path) -> None:
    reference, model = make_model(), sharded(make_model())
    optimizers = [MuLO(net, load("mulo-norm"), lr=0.05) for net in (reference, model)]
    train(reference, optimizers[0], range(5))
    train(model, optimizers[1], range(5), rank)
    for optimizer in optimizers:
        optimizer.eval()
    assert_same(model, reference)
    for optimizer in optimizers:
        optimizer.train()
    train(reference, optimizers[0], range(5, 8))
    train(model, optimizers[1], range(5, 8), rank)
    assert_same(model, reference)


class Experts(nn.Module):
    """Tensors of all kinds: a matrix and its transpose, a convolution, a stack, vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 7)
        self.table = nn.Embedding(11, 4)
        self.conv = nn.Conv2d(6, 5, 3)
        self.up = nn.ConvTranspose2d(6, 4, (1, 3))
        self.experts = nn.Parameter(torch.randn(3, 4, 6))
        self.norm = nn.LayerNorm(7)  # as long as the statistics of a tensor
        self.last = nn.Linear(7, 1)


ROLES = {"first.weight": "input", "conv.weight": "hidden", "up.weight": "hidden", "experts": "hidden"}


class Average(UpdateRule):
    """A rule of somebody else's, which says nothing of its state: steps along averages, which begin at the weights."""

    name, num_theta, uses_horizon, config = "average", 1, False, {}

    def init_state(self, specs, params):
        return {"average": [p.float().clone() for p in params]}

    def update(self, theta, specs, params, grads, state, *, lr, **_):
        for param, grad, average, each in zip(params, grads, state["average"], lr, strict=True):
            average.lerp_(grad, 0.5)
            param.sub_(each * theta.view(-1, *(1,) * (param.ndim - 1)) * average)


@check
def any_placement_of_any_tensor(rank: int, path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    flat = init_device_mesh("cpu", (2,))
    wide, tall = (init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")) for shape in ((1, 2), (2, 1)))
    places = [(flat, [Shard(0)]), (flat, [Shard(-1)]), (flat, [Replicate()])]
    places += [(wide, [Replicate(), Shard(0)]), (tall, [Shard(0), Shard(-1)])]
    rng = torch.Generator().manual_seed(0)
    basis = NormalizedRule(memory=True, basis=True)
    others = (Pretrained(basis, basis.init_theta(rng)), Pretrained(Average(), torch.full((1,), 0.1)))
    for theta in (*map(load, NAMES), *others):
        grads = [[torch.randn(p.shape, generator=rng) for p in Experts().parameters()] for _ in range(2)]
        for step in grads:
            step[0][1] = 0.0  # an expert without tokens
        reference = Experts()
        options = {"roles": ROLES, "num_training_steps": 20, "weight_decay": 0.1}
        optimizer = LearnedOptimizer(reference, theta, **options)
        for step in grads:
            for p, grad in zip(reference.parameters(), step, strict=True):
                p.grad = grad.clone()
            optimizer.step()
        for mesh, placements in places:
            model = Experts()
            for module in model.modules():
                for name, p in list(module.named_parameters(recurse=False)):
                    module.register_parameter(name, nn.Parameter(distribute_tensor(p.data, mesh, placements)))
            optimizer = LearnedOptimizer(model, theta, **options)
            for step in grads:
                for p, grad in zip(model.parameters(), step, strict=True):
                    p.grad = distribute_tensor(grad.clone(), mesh, placements)
                optimizer.step()
            assert_same(model, reference, 1e-5)


@check
def state_is_sharded_as_the_parameters_are(rank: int, path: Path) -> None:
    from torch.distributed.tensor import DTensor

    model = sharded(make_model())
    optimizer = make("mulo-norm", model)
    train(model, optimizer, [0], rank)
    num_bytes = 0
    for p, state in optimizer.state.items():
        assert isinstance(state["statistics"], Tensor)
        assert not isinstance(state["statistics"], DTensor)
        for kind in ("momentum", "square"):
            assert isinstance(state[kind], DTensor)
            assert state[kind].placements == p.placements
            num_bytes += state[kind].to_local().nbytes
    total = torch.tensor(num_bytes)
    dist.all_reduce(total)
    assert total == 8 * sum(p.numel() for p in model.parameters())


@contextmanager
def counted_messages() -> Iterator[list[int]]:
    """Bytes that this rank receives in each collective of an optimizer step."""
    sizes: list[int] = []

    def counted(call, output, *args, **kwargs):
        sizes.append(output.nbytes)
        return call(output, *args, **kwargs)

    with ExitStack() as stack:
        for name in ("all_to_all_single", "all_gather_into_tensor", "all_reduce"):
            stack.enter_context(patch.object(dist, name, partial(counted, getattr(dist, name))))
        yield sizes


@check
def only_sums_travel_of_what_is_not_orthogonalised(rank: int, path: Path) -> None:
    """Of a large embedding and many vectors, in as many messages as there are of one vector."""
    from torch.distributed.fsdp import fully_shard

    received = []
    for tables in (1, 2):
        torch.manual_seed(0)
        model = fully_shard(
            nn.Sequential(*(part for _ in range(tables) for part in (nn.Embedding(3001, 8), nn.LayerNorm(5))))
        )
        optimizer = make("mulo-norm", model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        with counted_messages() as sizes:
            optimizer.step()
        received.append(sizes)
    assert len(received[0]) == len(received[1]) == 3  # largest entries, and two of sums
    assert max(sum(sizes) for sizes in received) < 1000


@check
def plain_and_sharded_parameters_together(rank: int, path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    reference, model = make_model(), make_model()
    for block in model.body.blocks:
        fully_shard(block)
    optimizers = make("mulo-norm", model, weight_decay=0.1), make("mulo-norm", reference, weight_decay=0.1)
    for step in range(4):
        optimizers[0].zero_grad()
        backward(model, step, (rank,), 1.0)
        for p in model.parameters():
            if not hasattr(p, "full_tensor"):
                dist.all_reduce(p.grad)
                p.grad /= 2
        optimizers[0].step()
    train(reference, optimizers[1], range(4))
    assert_same(model, reference)


@check
def a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(rank: int, path: Path) -> None:
    model = sharded(make_model())
    optimizer = make("mulo-norm", model)
    train(model, optimizer, [0], rank)
    before = [whole(p).clone() for p in model.parameters()]
    for bad in (float("nan"), float("-inf")):
        backward(model, 1, (rank,), 1.0)
        if rank == 1:
            model.body.token_embedding.weight.grad.to_local()[0, 0] = bad
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.num_skipped_steps == 2
    assert all(torch.equal(whole(p), old) for p, old in zip(model.parameters(), before, strict=True))
    train(model, optimizer, [1], rank)
    assert optimizer.inner_step == 2

    model = sharded(make_model())
    optimizer = make("mulo-norm", model, nonfinite="raise")
    backward(model, 0, (rank,), 1.0)
    if rank == 0:
        model.body.token_embedding.weight.grad.to_local()[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="token_embedding"):
        optimizer.step()


@check
def tensors_without_a_gradient_stay(rank: int, path: Path) -> None:
    reference, model = make_model(), sharded(make_model())
    moved = []
    for each, ranks in ((reference, None), (model, rank)):
        optimizer = make("mulo-norm", each, weight_decay=0.1)
        optimizer.zero_grad()
        backward(each, 0, *([(0, 1), 0.5] if ranks is None else [(rank,), 1.0]))
        each.temperature.grad = None
        each.body.norm.weight.grad = 0 * each.body.norm.weight.grad
        idle = each.temperature, each.body.norm.weight
        before = [whole(p).clone() for p in idle]
        optimizer.step()
        moved += [not torch.equal(whole(p), old) for p, old in zip(idle, before, strict=True)]
    assert not any(moved)
    assert_same(model, reference)


@check
def clipping_accumulation_and_mixed_precision(rank: int, path: Path) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    reference, model = make_model(), sharded(make_model())
    optimizers = make("mulo-norm", model), make("mulo-norm", reference)
    for step in range(3):
        for each, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            for micro in range(2):
                if each is model:
                    model.set_requires_gradient_sync(micro == 1)
                backward(each, 2 * step + micro, *([(rank,), 1.0] if each is model else [(0, 1), 0.5]))
            nn.utils.clip_grad_norm_(each.parameters(), 0.5)
            optimizer.step()
    assert_same(model, reference)

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        model = sharded(make_model().to(dtype), mp_policy=policy)
        optimizer = make("mulo-norm", model, lr=1.0)
        start = [whole(p).clone() for p in model.parameters()]
        train(model, optimizer, range(3), rank)
        assert all(not torch.equal(whole(p), old) for p, old in zip(model.parameters(), start, strict=True))
        assert {p.dtype for p in model.parameters()} == {dtype}
        for p, state in optimizer.state.items():
            kept = {kind: x.dtype for kind, x in state.items()}
            assert kept.pop("remainder", p.dtype) == dtype
            assert set(kept.values()) == {torch.float32}


@check
def a_model_made_without_memory(rank: int, path: Path) -> None:
    reference = make_model()
    train(reference, make("mulo-norm", reference), range(2))
    for early in (True, False):
        with torch.device("meta"):
            model = TiedTransformer()
        sharded(model)
        optimizer = make("mulo-norm", model) if early else None
        model.to_empty(device="cpu")
        set_model_state_dict(model, make_model().state_dict(), options=StateDictOptions(full_state_dict=True))
        train(model, optimizer or make("mulo-norm", model), range(2), rank)
        assert_same(model, reference)


@check
def roles_are_those_of_the_plain_model(rank: int, path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    for module in model.modules():  # even where each module is sharded by itself
        if isinstance(module, nn.Linear | nn.LayerNorm) and module is not model.body.head:
            fully_shard(module)
    described = [
        {key: make("mulo", each).param_groups[0][key] for key in ("roles", "fan_ins", "axes", "depth", "reads_tokens")}
        for each in (fully_shard(model), make_model())
    ]
    assert described[0] == described[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unnamed = [MuLO(each.parameters()).param_groups[0]["roles"] for each in (model, make_model())]
    assert unnamed[0] == unnamed[1]


@check
def state_dicts_go_both_ways(rank: int, path: Path) -> None:
    for name, flat in zip(NAMES, (False, True), strict=True):
        full = StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=flat)
        own = StateDictOptions(flatten_optimizer_state_dict=flat)
        model = sharded(make_model())
        optimizer = make(name, model)
        train(model, optimizer, range(3), rank)
        states = copy.deepcopy(get_state_dict(model, optimizer, options=full))

        reference = make_model()
        resumed = make(name, reference)
        set_state_dict(reference, resumed, model_state_dict=states[0], optim_state_dict=states[1], options=own)
        assert resumed.inner_step == 3
        train(reference, resumed, range(3, 6))
        train(model, optimizer, range(3, 6), rank)
        assert_same(model, reference)

        # torch itself loads full states into sharded optimizers only where they are nested
        states = copy.deepcopy(get_state_dict(reference, resumed))
        again = sharded(make_model())
        optimizer = make(name, again)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=flat)
        set_model_state_dict(again, states[0], options=StateDictOptions(full_state_dict=True))
        set_optimizer_state_dict(again, optimizer, {} if flat and rank else states[1], options=options)
        train(again, optimizer, range(6, 8), rank)
        train(reference, resumed, range(6, 8))
        assert_same(again, reference)


def state_of(model: nn.Module, optimizer: LearnedOptimizer, flat: bool) -> dict[str, object]:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))


def resume(model: nn.Module, optimizer: LearnedOptimizer, folder: Path, flat: bool) -> None:
    """From the files of any number of ranks."""
    state = state_of(model, optimizer, flat)
    dcp.load(state, checkpoint_id=folder)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )


@check
def checkpoints_on_disk_are_resumed_on_two_ranks(rank: int, path: Path) -> None:
    for name, flat in zip(NAMES, (False, True), strict=True):
        model = sharded(make_model())
        optimizer = make(name, model)
        resume(model, optimizer, path / f"{name} of one", flat)
        train(model, optimizer, range(3, 5), rank)
        dcp.save(state_of(model, optimizer, flat), checkpoint_id=path / f"{name} of two")
        train(model, optimizer, range(5, 7), rank)
        params = [whole(p) for p in model.parameters()]
        if rank == 0:
            torch.save(params, path / f"{name} of two.pt")


@check
def summands_are_refused(rank: int, path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    mesh = init_device_mesh("cpu", (2,))
    weight = nn.Parameter(DTensor.from_local(torch.ones(4, 4), mesh, [Partial()]))
    with pytest.raises(ValueError, match="summands"):
        MuLO([{"params": [weight], "role": "hidden"}])


def outcomes_of_rank(rank: int, folder: str) -> dict[str, str]:
    """What went wrong in each check, empty if nothing."""
    warnings.simplefilter("ignore")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    outcomes = {}
    for name, function in CHECKS.items():
        try:
            function(rank, Path(folder))
            outcomes[name] = ""
        except Exception:
            outcomes[name] = traceback.format_exc()
    dist.barrier()
    dist.destroy_process_group()
    return outcomes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what one process has saved, for two to resume."""
    path = tmp_path_factory.mktemp("sharded")
    for name, flat in zip(NAMES, (False, True), strict=True):
        model = make_model()
        optimizer = make(name, model)
        train(model, optimizer, range(3))
        dcp.save(state_of(model, optimizer, flat), checkpoint_id=path / f"{name} of one")
    return path


@pytest.fixture(scope="module")
def outcomes(folder: Path, two_ranks) -> list[dict[str, str]]:
    return two_ranks(outcomes_of_rank, str(folder))


@pytest.mark.parametrize("name", CHECKS)
def test_on_two_ranks(outcomes, name):
    for rank, of_rank in enumerate(outcomes):
        assert not of_rank[name], f"rank {rank}\n{of_rank[name]}"


@pytest.mark.filterwarnings("ignore:torch.distributed")
@pytest.mark.parametrize(("name", "flat"), list(zip(NAMES, (False, True), strict=True)))
@pytest.mark.usefixtures("outcomes")
def test_one_process_resumes_what_two_saved(folder, name, flat):
    reference = make_model()
    optimizer = make(name, reference)
    train(reference, optimizer, range(5))
    model = make_model()
    resumed = make(name, model)
    resume(model, resumed, folder / f"{name} of two", flat)
    assert resumed.inner_step == 5
    assert_same(model, reference)
    train(model, resumed, range(5, 7))
    for got, expected in zip(model.parameters(), torch.load(folder / f"{name} of two.pt"), strict=True):
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-6)
