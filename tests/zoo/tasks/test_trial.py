"""Modules of all kinds: their populations do what they do in a plain loop of torch.optim, or they are refused."""

import pickle
import random
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn import utils
from torch.utils.checkpoint import checkpoint

from zoo.networks.counter_rng import CounterRng, at, streams_of
from zoo.networks.module_randomness import DrawnFromStream
from zoo.tasks.batched_mlp import BatchedMLP
from zoo.tasks.datasets import Dataset, Split, get_dataset
from zoo.tasks.looped_module import LoopedModule
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.tasks.vmapped_module import VmappedModule
from zoo.training.batches import shared_indices
from zoo.training.optimizers import Sgd
from zoo.training.population import train_population

SEEDS = [3, 2**61 + 1]
CPU = torch.device("cpu")


def tokens(num_examples, seed):
    """Six symbols, the last two of them padding in every second example."""
    inputs = torch.randint(1, 12, (num_examples, 6), generator=torch.Generator().manual_seed(seed))
    inputs[1::2, 4:] = 0
    return Split(inputs, (inputs.sum(1) > 24).long())


def sequences(num_examples, seed):
    inputs = torch.randn(num_examples, 6, 8, generator=torch.Generator().manual_seed(seed))
    return Split(inputs, (inputs.sum((1, 2)) > 0).long())


DATA = {
    "digits": get_dataset("digits"),
    "tokens": Dataset("tokens", tokens(64, 0), tokens(16, 1), tokens(16, 2), 2, "tokens-1"),
    "sequences": Dataset("sequences", sequences(64, 0), sequences(16, 1), sequences(16, 2), 2, "sequences-1"),
}


def with_layer(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), layer, nn.Linear(8, 10))


def wrapped(wrap):
    return nn.Sequential(nn.Flatten(), wrap(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, 10))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn, self.head = kind(8, 5, **({"batch_first": True} | options)), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class StepByStep(nn.Module):
    """Fills a fresh tensor in place."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(8, 4), nn.Linear(24, 2)

    def forward(self, x):
        out = torch.zeros(x.shape[0], 6, 4)
        for t in range(6):
            out[:, t] = torch.tanh(self.step(x[:, t]))
        return self.head(out.flatten(1))


class Embedded(nn.Module):
    def __init__(self, *, tied=False, **options):
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 5, **options), nn.Linear(12 if tied else 5, 2)
        if tied:
            self.decoder = nn.Linear(5, 12, bias=False)
            self.decoder.weight = self.embedding.weight

    def forward(self, x):
        x = self.embedding(x).tanh().mean(1)
        return self.head(self.decoder(x) if hasattr(self, "decoder") else x)


class Attention(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class StochasticDepth(nn.Module):
    """A residual branch that is left out for some examples, as timm's DropPath does."""

    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        branch = self.branch(x).relu()
        if self.training:
            branch = branch * branch.new_empty(len(x), 1).bernoulli_(0.7).div_(0.7)
        return self.head(x + branch)


class AttentionByFunction(nn.Module):
    """Dropout inside of the attention, and another on its result."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=0.3 * self.training, is_causal=True)
        return self.head(F.dropout(x, 0.2, self.training).mean(1))


class GatedAndDropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.dropout, self.head = nn.GRU(8, 5, batch_first=True), nn.Dropout(0.4), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.dropout(self.rnn(x)[0][:, -1]))


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = with_layer(nn.Dropout(0.5)), nn.Linear(10, 10)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class HalfFrozenByHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.head.weight.register_hook(lambda grad: grad * (torch.arange(64) % 2))

    def forward(self, x):
        return self.head(x.flatten(1))


class Logits(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return {"logits": self.head(x.flatten(1)), "hidden": x}


class Clipped(nn.Module):
    """Whose weights never leave a range, however the module keeps them in it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        self.head.weight.data.clamp_(-0.13, 0.13)  # hardly wider than weights are at first
        return self.head(x.flatten(1))


class Seldom(nn.Module):
    """Counts examples of confident predictions, of which there are none before it is trained."""

    def __init__(self, count):
        super().__init__()
        self.head, self.count = nn.Linear(64, 10), count
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x = self.head(x.flatten(1))
        if self.training:
            self.count(self, (x.detach().softmax(-1) > 0.3).sum())
        return x


def add_in_place(module, number):
    module.seen += number


def put_in_place(module, number):
    module.seen = module.seen + number


TRAINABLE = {
    "weights clipped": ("digits", Clipped, LoopedModule),
    "sparse gradients": ("tokens", lambda: Embedded(sparse=True), LoopedModule),
    "seldom counted": ("digits", lambda: Seldom(add_in_place), VmappedModule),
    "seldom counted anew": ("digits", lambda: Seldom(put_in_place), LoopedModule),
    "batch norm": ("digits", lambda: with_layer(nn.BatchNorm1d(8)), VmappedModule),
    "cumulative batch norm": ("digits", lambda: with_layer(nn.BatchNorm1d(8, momentum=None)), LoopedModule),
    "rnn": ("sequences", lambda: Recurrent(nn.RNN), LoopedModule),
    "gru": ("sequences", lambda: Recurrent(nn.GRU, num_layers=2), LoopedModule),
    "lstm": ("sequences", lambda: Recurrent(nn.LSTM), LoopedModule),
    "in place": ("sequences", StepByStep, LoopedModule),
    "attention": ("sequences", Attention, VmappedModule),
    "weight norm": ("digits", lambda: wrapped(utils.parametrizations.weight_norm), VmappedModule),
    "weight norm by hook": ("digits", lambda: wrapped(utils.weight_norm), VmappedModule),
    "spectral norm": ("digits", lambda: wrapped(utils.parametrizations.spectral_norm), LoopedModule),
    "spectral norm by hook": ("digits", lambda: wrapped(utils.spectral_norm), LoopedModule),
    "padding": ("tokens", lambda: Embedded(padding_idx=0), VmappedModule),
    "tied padding": ("tokens", lambda: Embedded(padding_idx=0, tied=True), LoopedModule),
    "embedding of bounded norm": ("tokens", lambda: Embedded(max_norm=0.5), LoopedModule),
    "gradient hook": ("digits", HalfFrozenByHook, LoopedModule),
    "logits in a dictionary": ("digits", Logits, VmappedModule),
    "dropout": ("digits", lambda: with_layer(nn.Dropout(0.5)), VmappedModule),
    "dropout in place": ("digits", lambda: with_layer(nn.Dropout(0.5, inplace=True)), VmappedModule),
    "alpha dropout": ("digits", lambda: with_layer(nn.AlphaDropout(0.2)), VmappedModule),
    "stochastic depth": ("digits", StochasticDepth, VmappedModule),
    "dropout in attention": ("sequences", AttentionByFunction, VmappedModule),
    "dropout in an encoder layer": ("sequences", lambda: Attention(dropout=0.2), VmappedModule),
    "dropout after a gru": ("sequences", GatedAndDropped, LoopedModule),
    "layers left out": ("digits", lambda: DropsLayers(lambda: torch.rand(())), LoopedModule),
}


def make_task(data, build):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Task("own", DATA[data], build, OBJECTIVES["cross_entropy"])


def plainly_trained(task, seed, indices, num_steps, stream):
    torch.manual_seed(seed)
    module = task.make_model().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    for step in range(num_steps):
        chosen = next(indices)
        optimizer.zero_grad()
        with DrawnFromStream(at(stream, step=step)):
            outputs = module(task.dataset.train.inputs[chosen])
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
        F.cross_entropy(outputs, task.dataset.train.targets[chosen]).backward()
        optimizer.step()
    return module


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # which the task has said in a line
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", TRAINABLE)
def test_populations_do_what_the_module_does_in_a_plain_loop(name):
    data, build, kind = TRAINABLE[name]
    task = make_task(data, build)
    assert type(task.backend) is kind
    num_train = len(task.dataset.train)
    for shared in (True, False):
        options = {"num_steps": 4, "batch_size": 8, "snapshot_steps": (4,), "shared_batches": shared}
        (last,) = train_population(task, Sgd(lr=0.3), SEEDS, **options)
        for i, seed in enumerate(SEEDS):
            indices = shared_indices(0 if shared else seed, num_train, 8, CPU)
            module = plainly_trained(task, seed, indices, 4, streams_of([0 if shared else seed])[0])
            torch.testing.assert_close(last.params[i], task.layout.flatten(module), rtol=1e-3, atol=1e-5)
            outputs = module.eval()(task.dataset.val.inputs)
            outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
            evaluated = task.evaluate(last.params, "val")["loss"][i]
            torch.testing.assert_close(evaluated, F.cross_entropy(outputs, task.dataset.val.targets))


def count_if_any(module, number):
    if number > 0:
        module.seen += number


def test_what_runs_share_and_training_changes_late_is_refused():
    task = make_task("digits", lambda: Seldom(count_if_any))
    with pytest.raises(ValueError, match=r"buffer 'seen' stayed as it is when the module was tried.*changes it now"):
        list(train_population(task, Sgd(lr=0.3), SEEDS, num_steps=20))


def test_own_architectures_run_as_they_always_do():
    assert type(get_task("digits").backend) is BatchedMLP
    assert type(get_task("digits", architecture="cnn").backend) is VmappedModule


@pytest.mark.parametrize(
    ("data", "build", "why"),
    [
        ("sequences", lambda: Recurrent(nn.LSTM), "cannot run .*lstm"),
        ("digits", lambda: wrapped(utils.parametrizations.weight_norm), "no batched form of aten::_weight_norm"),
    ],
)
def test_what_runs_slowly_says_so_in_one_line(data, build, why):
    with warnings.catch_warnings(record=True) as caught:
        task = Task("own", DATA[data], build, OBJECTIVES["cross_entropy"])
        list(train_population(task, Sgd(), SEEDS, num_steps=2))
    (message,) = (str(warning.message) for warning in caught)
    assert re.fullmatch(f"task 'own' runs .* one after another.* {why}.*", message)


def test_what_runs_fast_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Task("own", DATA["digits"], lambda: with_layer(nn.ReLU()), OBJECTIVES["cross_entropy"])


class DropsLayers(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.head, self.draw = nn.Linear(64, 10), draw

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x if self.training and self.draw() < 0.5 else x.tanh())


class Randomised(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.head(x.flatten(1))
        return x + torch.randint(2, (10,)) if self.training else x


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.count = nn.Linear(64, 10), 0

    def forward(self, x):
        self.count += self.training
        return self.head(x.flatten(1)) / (1 + self.count)


class Centres(nn.Module):
    """Keeps a mean that is not saved."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64), persistent=False)

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.head(x - self.mean)


class RandomFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.features = nn.Linear(32, 10), torch.randn(64, 32)

    def forward(self, x):
        return self.head((x.flatten(1) @ self.features).cos())


def halved(module):
    """The last layer, and what goes into it, in bfloat16."""
    if isinstance(module, nn.Linear) and module.out_features == 10:
        module.bfloat16()
        module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(),))


def drawn_by_numpy():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module[1].bias.data = torch.from_numpy(np.random.rand(10).astype(np.float32))
    return module


@pytest.mark.filterwarnings("ignore:task 'own' runs")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Recomputed, "draws random numbers again in the backward pass"),
        (Randomised, "draws random numbers in training that its runs' seeds do not decide"),
        (lambda: DropsLayers(random.random), "draws random numbers in training that its runs' seeds do not decide"),
        (lambda: DropsLayers(np.random.rand), "draws random numbers in training that its runs' seeds do not decide"),
        (lambda: DropsLayers(np.random.default_rng(0).random), "hooks, or random numbers of its own"),
        (Counts, r"depends on more than its parameters and persistent buffers \('count'\)"),
        (Centres, r"persistent buffers \('mean'\)"),
        (RandomFeatures, r"persistent buffers \('features'\)"),
        (lambda: with_layer(nn.ReLU()).apply(halved), "'3.weight' is bfloat16, but populations train in float32"),
        (drawn_by_numpy, "initial values do not follow from torch.manual_seed"),
    ],
    ids=[
        "recomputed",
        "randint",
        "random",
        "numpy",
        "own generator",
        "counter",
        "buffer",
        "features",
        "bfloat16",
        "initial values",
    ],
)
def test_modules_whose_runs_would_not_repeat_are_refused(build, message):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    task = Task("own", DATA["digits"], build, OBJECTIVES["cross_entropy"])
    with pytest.raises(ValueError, match=f"task 'own' cannot be a population: .*{message}"):
        train_population(task, Sgd(), SEEDS, num_steps=2)
    if build is not drawn_by_numpy:
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())


def test_how_much_is_dropped_is_recorded():
    class Dropped(nn.Module):
        """By a function, which no representation of the module shows."""

        def __init__(self, p):
            super().__init__()
            self.head, self.p = nn.Linear(64, 10), p

        def forward(self, x):
            return self.head(F.dropout(x.flatten(1), self.p, self.training))

    little, more = (make_task("digits", lambda p=p: Dropped(p)).description for p in (0.1, 0.2))
    assert little["module"] == more["module"]
    assert little["behaviour"] != more["behaviour"]
    assert "training loss" not in make_task("digits", Logits).description["behaviour"]


class GivenMask(nn.Module):
    """Dropout that is handed its mask."""

    def forward(self, x):
        return x * self.mask


@pytest.mark.parametrize("shared", [True, False])
def test_masks_are_those_of_the_seed_and_the_step(shared):
    """Without any mode in the plain loop: the masks are made here, and handed to the module."""
    task = make_task("digits", lambda: with_layer(nn.Dropout(0.25)))
    options = {"num_steps": 3, "batch_size": 8, "snapshot_steps": (3,), "data_seed": 9, "shared_batches": shared}
    (last,) = train_population(task, Sgd(lr=0.3), SEEDS, **options)
    train = task.dataset.train
    for i, seed in enumerate(SEEDS):
        stream_seed = 9 if shared else seed
        torch.manual_seed(seed)
        module = with_layer(GivenMask())
        optimizer, indices = torch.optim.SGD(module.parameters(), lr=0.3), shared_indices(stream_seed, 1257, 8, CPU)
        for step in range(3):
            chosen = next(indices)
            module[2].mask = CounterRng(at(streams_of([stream_seed])[0], step=step)).keeps(0.75, (8, 8)) / 0.75
            optimizer.zero_grad()
            F.cross_entropy(module(train.inputs[chosen]), train.targets[chosen]).backward()
            optimizer.step()
        torch.testing.assert_close(last.params[i], task.layout.flatten(module))


@pytest.mark.parametrize("shared", [True, False])
def test_runs_with_dropout_do_not_depend_on_their_block_nor_on_global_random_numbers(shared):
    task = make_task("sequences", lambda: Attention(dropout=0.2))
    options = {"num_steps": 3, "batch_size": 8, "snapshot_steps": (3,), "shared_batches": shared}
    (together,) = train_population(task, Sgd(lr=0.3), [1, 2, 3], **options)
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    (alone,) = train_population(task, Sgd(lr=0.3), [3], **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(together.params[2:], alone.params)


def test_losses_that_are_differentiated_have_the_masks_of_their_stream():
    for build in (lambda: Attention(dropout=0.2), GatedAndDropped):
        task = make_task("sequences", build)
        params, stream = task.init_runs(SEEDS), streams_of(SEEDS)
        batch = task.batch(torch.arange(16).view(2, 8), 2, stream=stream)
        losses, grads = task.loss_and_grad(params.clone(), batch)
        leaf = params.requires_grad_()
        again = task.loss(leaf, batch)
        torch.testing.assert_close(again.detach(), losses)
        torch.testing.assert_close(torch.autograd.grad(again.sum(), leaf)[0], grads)


def test_no_dropout_is_no_reason_to_refuse():
    task = make_task("digits", lambda: with_layer(nn.Dropout(0.0)))
    assert task.flaw is None
    assert not task.is_random


def test_dropout_may_be_evaluated():
    task = make_task("digits", lambda: with_layer(nn.Dropout(0.5)))
    params = task.init_runs(SEEDS)
    assert torch.equal(task.evaluate(params)["loss"], task.evaluate(params)["loss"])


class NotANumber(nn.Module):
    def forward(self, x):
        return x * torch.nan


SHARED = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def frozen(*parts):
    module = with_layer(nn.ReLU())
    for part in parts:
        module[part].requires_grad_(False)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("data", "build", "message"),
    [
        ("digits", lambda: SHARED, "build must make a new module each time"),
        ("digits", lambda: None, "build must return a module, got NoneType"),
        ("digits", lambda: frozen(3), r"frozen parameters differ from seed to seed, .*: \['3.weight', '3.bias'\]"),
        ("digits", lambda: frozen(1, 3), "all parameters of the module are frozen"),
        ("digits", lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "'1.weight', .* have no size"),
        (
            "digits",
            lambda: torch.jit.trace(nn.Linear(8, 10), torch.ones(2, 8)),
            "compiled by torch.jit; leave that out",
        ),
        ("digits", lambda: nn.Linear(3, 10), r"cannot be run on inputs float32 \(n, 1, 8, 8\)"),
        ("digits", nn.Flatten, "no parameters that could be trained"),
        ("digits", lambda: with_layer(NotANumber()), "outputs are NaN or infinite"),
        ("sequences", lambda: Recurrent(nn.LSTM, batch_first=False), "depend on the others"),
        ("digits", lambda: with_layer(nn.BatchNorm1d(8, track_running_stats=False)), "depend on the others"),
        ("sequences", lambda: nn.LSTM(8, 2), r"must return one tensor, .* got tuple of 2"),
    ],
)
def test_modules_that_cannot_be_run_are_refused_in_one_line(data, build, message):
    with pytest.raises(ValueError, match=f"^task 'own': .*{message}[^\n]*$"):
        Task("own", DATA[data], build, OBJECTIVES["cross_entropy"])


def make_recurrent():
    return Recurrent(nn.LSTM)


def test_a_loop_over_networks_is_differentiable_and_travels_to_other_processes():
    task = pickle.loads(pickle.dumps(make_task("sequences", make_recurrent)))
    params, batch = task.init_runs(SEEDS), task.batch(torch.arange(10), 2)
    leaf = params.clone().requires_grad_()
    (grads,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf)
    torch.testing.assert_close(grads, task.loss_and_grad(params, batch)[1])
    torch.testing.assert_close(task.predict(params, batch.inputs), task.predict(leaf, batch.inputs).detach())
