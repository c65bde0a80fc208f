"""VeLO's rule: an LSTM looks at each tensor and mixes, from a bank, the small network that updates its elements.

At each step every tensor is described by 30 numbers: how much of the run is done, how the loss has moved, how large its
averages are, its rank. A layer with a maximum over all tensors lets them know of each other; an LSTM for each tensor
then gives K coefficients and one step size. With E the elementwise networks of the bank, mixed by the coefficients c,

    update = lr * 0.001 * step_size * rms(tensor) * direction * exp(0.001 * magnitude)
    (direction, magnitude, -) = MLP_w(30 normalised features of an element),   w = 100 * mean_k(c_k * E_k).

The rule needs the horizon and, at every step, the loss. Statistics of rows and columns follow the published layout
(kernel axes, inputs, outputs), which decides between axes of equal size.

Layout of theta (2.3 million numbers at the published sizes), each weight (out, in) before its bias: mixing (S, 30),
input (S, 30), LSTM gates (4 S, 2 S) of input, candidate, forget and output, coefficients (K, S), step size (1, S); the
first hidden and cell state (S) each; then the K networks of the bank, W1 (H, 30), W2 (H, H), W3 (3, H) with biases.

Source: Metz et al. 2022 (arXiv 2211.09760), appendix B, with the loss features as repaired for the published weights.

Legend: N networks, R tensors, S units of the LSTM, K networks in the bank, H units of each, M meta-parameters,
E x R x C one tensor (see `features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from learned_opt.rules import features
from learned_opt.rules.features import Accumulators, Chunk, Decays, Preconditioners
from learned_opt.rules.kernels.folding import MAGNITUDE_SCALE, Layer, unpack_layers
from learned_opt.rules.rule import (
    RuleOption,
    RuleState,
    TensorSpec,
    TensorUpdate,
    TensorwiseRule,
    constant,
    expanded,
    per_network,
)
from zoo.ambient import torch_defaults
from zoo.training.schedules import StepCount

STEP_SIZE: Final = 1e-3
MOMENTUM_DECAYS: Final = (0.9, 0.99, 0.999)
SQUARE_DECAYS: Final = (0.999,)
FACTORED_DECAYS: Final = (0.9, 0.99, 0.999)
NUM_DESCRIPTORS: Final = 30
FRACTIONS: Final = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)  # of the run, around which it is resolved
NUM_LOSS_AVERAGES: Final = 10
MIXTURE_SCALE: Final = 100.0
CHUNK_NUMEL: Final = 2**16  # elements whose features are held at once

_NO_MINIMUM: Final = 999999999999.0
_MEMORY_KEYS: Final = ("hidden", "cell", "loss_mean", "loss_minimum", "num_losses")


class VeloRule(TensorwiseRule):
    """VeLO.

    Args:
        hidden: width H of the two hidden layers of the elementwise networks.
        lstm: S.
        bank: K.
        reference: put new tensors into the lists, so that updates can be differentiated.
    """

    name = "velo"
    uses_horizon = True
    uses_loss = True
    mixes_tensors = True

    def __init__(self, hidden: int = 4, lstm: int = 512, bank: int = 256, *, reference: bool = False) -> None:
        if min(hidden, lstm, bank) < 1:
            raise ValueError(f"hidden, lstm and bank must be positive, got {hidden}, {lstm} and {bank}")
        self.hidden, self.lstm, self.bank = hidden, lstm, bank
        self.reference = reference
        self.mlp_sizes = (features.NUM_PUBLISHED_FEATURES, hidden, hidden, 3)
        self.lstm_layers = {
            "mixing": (NUM_DESCRIPTORS, lstm),
            "input": (NUM_DESCRIPTORS, lstm),
            "gates": (2 * lstm, 4 * lstm),
            "coefficients": (lstm, bank),
            "step_size": (lstm, 1),
        }

    @property
    def config(self) -> dict[str, RuleOption]:
        return {"hidden": self.hidden, "lstm": self.lstm, "bank": self.bank}

    @property
    def num_theta(self) -> int:
        return sum(o * (i + 1) for i, o in self.lstm_layers.values()) + 2 * self.lstm + self.bank * self._mlp_numel

    @property
    def _mlp_numel(self) -> int:
        return sum(o * (i + 1) for i, o in pairwise(self.mlp_sizes))

    @torch_defaults()
    def init_theta(self, rng: torch.Generator) -> Tensor:
        """Normal weights with variance 1 / fan_in, zero biases and first states."""

        def layer(fan_in: int, fan_out: int) -> list[Tensor]:
            return [torch.randn(fan_out * fan_in, generator=rng) / fan_in**0.5, torch.zeros(fan_out)]

        parts = [part for sizes in self.lstm_layers.values() for part in layer(*sizes)]
        parts.append(torch.zeros(2 * self.lstm))
        parts += [part for _ in range(self.bank) for sizes in pairwise(self.mlp_sizes) for part in layer(*sizes)]
        return torch.cat(parts)

    def init_state(self, specs: Sequence[TensorSpec], params: Sequence[Tensor]) -> RuleState:
        layouts = [_published_layout(param) for param in params]
        state = features.init_accumulators([tuple(x.shape[1:]) for x in layouts], layouts)
        sizes = (self.lstm, self.lstm, NUM_LOSS_AVERAGES, NUM_LOSS_AVERAGES, 1)
        for key, size in zip(_MEMORY_KEYS, sizes, strict=True):
            start = _NO_MINIMUM if key == "loss_minimum" else 0.0
            state[key] = [param.new_full((len(param), size), start, dtype=torch.float32) for param in params]
        return state

    def update_tensors(
        self, theta: Tensor, tensors: Sequence[TensorUpdate], *, inner_step: StepCount, num_steps: StepCount | None
    ) -> None:
        """See `TensorwiseRule`.

        Raises:
            ValueError: without the loss or the horizon.
        """
        if tensors[0].loss is None:
            raise ValueError("rule 'velo' reads the loss; give it with each step, optimizer.step(loss=loss)")
        if num_steps is None:
            raise ValueError("rule 'velo' reads how much of the run is done; give num_training_steps")
        total = per_network(num_steps, tensors[0].param)
        layers, first_memory, bank = self._unpack(theta)
        memory = _Memory(*(torch.stack([tensor.state[key] for tensor in tensors], dim=1) for key in _MEMORY_KEYS))
        memory = memory.begun(first_memory).after_loss(tensors[0].loss, total)
        described = torch.cat(
            [
                fraction_features(per_network(inner_step, tensors[0].param) / total).expand(
                    len(theta), len(tensors), -1
                ),
                memory.loss_features(total),
                torch.stack([_statistics(tensor) for tensor in tensors], dim=1),
            ],
            dim=-1,
        )  # (N, R, 30)
        inputs = _mixed(layers, described, [tensor.active for tensor in tensors])
        memory = memory.after_input(layers["gates"], inputs)
        coefficients = _affine(layers["coefficients"], memory.hidden)  # (N, R, K)
        networks = torch.bmm(coefficients, bank) * (MIXTURE_SCALE / self.bank)  # (N, R, numbers of a network)
        step_sizes = _affine(layers["step_size"], memory.hidden).squeeze(-1)  # (N, R)
        for i, tensor in enumerate(tensors):
            self._update(tensor, networks[:, i], step_sizes[:, i], memory.of_tensor(i))

    def _unpack(self, theta: Tensor) -> tuple[dict[str, Layer], Tensor, Tensor]:
        """Layers around the LSTM, its first states (N, 2 S), and the bank (N, K, numbers of a network)."""
        layers = {}
        for name, sizes in self.lstm_layers.items():
            (layers[name],), theta = unpack_layers(theta, sizes)
        first, bank = theta.split([2 * self.lstm, theta.shape[1] - 2 * self.lstm], dim=1)
        return layers, first, bank.unflatten(1, (self.bank, self._mlp_numel))

    def _update(self, tensor: TensorUpdate, network: Tensor, step_size: Tensor, memory: dict[str, Tensor]) -> None:
        param, grad = (_published_layout(x) for x in (tensor.param, tensor.grad()))
        shape = tuple(param.shape[1:])
        param, grad = (features.canonical(x, shape) for x in (param, grad))
        grad = grad.clamp(-features.GRAD_LIMIT, features.GRAD_LIMIT)
        new = features.accumulate(features.accumulators_of(tensor.state, shape), grad, _decays(grad.device))
        scale = (param.square().mean(dim=(1, 2, 3)) + 1e-9).sqrt() * step_size  # (N,)
        layers = unpack_layers(network, self.mlp_sizes)[0]
        numel = param[0].numel() if self.reference else CHUNK_NUMEL
        direction = _direction(layers, param, grad, new, chunk_numel=numel)
        base = tensor.lr * STEP_SIZE
        param = (1 - base * (tensor.weight_decay or 0.0)) * param - base * expanded(scale, direction) * direction
        state = {key: getattr(new, key) for key in features.STATE_KEYS} | memory
        tensor.write(_own_layout(features.uncanonical(param, shape)), state, in_place=not self.reference)


class _Memory(NamedTuple):
    """What the rule remembers of tensors besides their averages."""

    hidden: Tensor  # (N, R, S)
    cell: Tensor  # (N, R, S)
    loss_mean: Tensor  # (N, R, 10), not corrected for its beginning at zero
    loss_minimum: Tensor  # (N, R, 10), of the corrected means
    num_losses: Tensor  # (N, R, 1)

    def begun(self, first: Tensor) -> _Memory:
        """With the learned first states (N, 2 S) in those that have met no loss."""
        hidden, cell = first.unsqueeze(1).chunk(2, dim=-1)
        is_new = self.num_losses == 0
        return self._replace(hidden=torch.where(is_new, hidden, self.hidden), cell=torch.where(is_new, cell, self.cell))

    def after_loss(self, loss: Tensor, total: Tensor) -> _Memory:
        """With the averages of one more loss (N,), of which no more counts than twice the largest average."""
        decay, loss = loss_decays(total), loss[:, None, None]
        largest = self._corrected(decay, self.num_losses + 1).amax(dim=-1, keepdim=True)
        largest = torch.where(self.num_losses == 0, loss, largest)
        new = self._replace(
            loss_mean=self.loss_mean * decay + torch.minimum(2 * largest.abs(), loss) * (1 - decay),
            num_losses=self.num_losses + 1,
        )
        return new._replace(loss_minimum=torch.minimum(new.loss_minimum, new._corrected(decay, new.num_losses)))

    def loss_features(self, total: Tensor) -> Tensor:
        """(N, R, 9): where each average lies between its minimum and the next slower average, from -1 to 1."""
        mean = self._corrected(loss_decays(total), self.num_losses)
        minimum = self.loss_minimum[..., :-1]
        place = (mean[..., :-1] - minimum) / (mean[..., 1:] - minimum).clamp(min=1e-8)
        return torch.where(self.num_losses <= 2, 0.0, (place - 1).clamp(-1, 1))

    def after_input(self, gates: Layer, inputs: Tensor) -> _Memory:
        """With the LSTM's states after the inputs (N, R, S)."""
        enter, candidate, forget, leave = _affine(gates, torch.cat([inputs, self.hidden], dim=-1)).chunk(4, dim=-1)
        cell = torch.sigmoid(forget + 1) * self.cell + torch.sigmoid(enter) * torch.tanh(candidate)
        return self._replace(hidden=torch.sigmoid(leave) * torch.tanh(cell), cell=cell)

    def of_tensor(self, i: int) -> dict[str, Tensor]:
        return {key: kept[:, i] for key, kept in zip(_MEMORY_KEYS, self, strict=True)}

    def _corrected(self, decay: Tensor, count: Tensor) -> Tensor:
        return self.loss_mean / (1 - decay**count)


def fraction_features(fraction: Tensor) -> Tensor:
    """Shares of the run that are done, (N,), resolved around FRACTIONS: (N, 1, 9)."""
    return torch.tanh((fraction[:, None, None] - constant(FRACTIONS, fraction.device)) * 10)


def loss_decays(total: Tensor) -> Tensor:
    """Decays (N, 1, 10) of averages over 10 steps to the whole run of (N,) steps."""
    place = constant(tuple(i / (NUM_LOSS_AVERAGES - 1) for i in range(NUM_LOSS_AVERAGES)), total.device)
    return torch.exp(-1 / 10 ** (1 + (total.log10()[:, None, None] - 1) * place))


def _statistics(tensor: TensorUpdate) -> Tensor:
    """The 12 descriptors (N, 12) of a tensor's size, before its averages take in the gradient."""
    over = (-3, -2, -1)
    scale = (
        tensor.param.reshape(len(tensor.param), -1).square().mean(dim=1, keepdim=True).clamp(min=1e-9).rsqrt()
    )  # (N, 1)
    var_momentum, momentum = torch.var_mean(tensor.state["momentum"], dim=over, correction=0)  # (N, 3)
    var_square, square = torch.var_mean(tensor.state["square"], dim=over, correction=0)  # (N, 1)
    off_square = var_square + (square - momentum) ** 2  # its mean square distance from the momenta's means
    num_axes = sum(size > 1 for size in tensor.spec.shape)
    rank = constant(tuple(float(i == num_axes) for i in range(5)), scale.device).expand(len(scale), -1)
    sizes = (square * scale, var_momentum * scale**2, off_square * scale**2)
    square, var_momentum, off_square = (0.5 * (1e-8 + (10 * x).abs()).log().clamp(-5, 5) for x in sizes)
    return torch.cat([square, rank, var_momentum, off_square], dim=-1)


def _mixed(layers: dict[str, Layer], described: Tensor, active: Sequence[Tensor | None]) -> Tensor:
    """The LSTM's inputs (N, R, S): each tensor's own, and the largest that any active tensor says."""
    said = torch.relu(_affine(layers["mixing"], described))
    if any(mask is not None for mask in active):
        always = torch.ones_like(said[:, 0, 0], dtype=torch.bool)
        heard = torch.stack([always if mask is None else mask for mask in active], dim=1)
        said = said.masked_fill(~heard[..., None], 0.0)
    return _affine(layers["input"], described) + said.amax(dim=1, keepdim=True)


def _affine(layer: Layer, x: Tensor) -> Tensor:
    """(N, R, in) -> (N, R, out), by the layer of each network."""
    return torch.baddbmm(layer.bias[:, None], x, layer.weight.mT)


def _direction(
    layers: Sequence[Layer], param: Tensor, grad: Tensor, accumulators: Accumulators, *, chunk_numel: int
) -> Tensor:
    """direction * exp(0.001 * magnitude) of every element, (N, E, R, C), with the features of one chunk at a time."""
    factors = features.preconditioners(accumulators)
    if not accumulators.factored:
        factors = replace(factors, momentum_column=accumulators.column.rsqrt())
    _, num_blocks, num_rows, num_columns = param.shape
    chunks = list(features.chunks((num_blocks, num_rows, num_columns), chunk_numel))

    def read(chunk: Chunk) -> Tensor:
        groups = features.published_features(
            _part(param, chunk),
            _part(grad, chunk),
            Accumulators(
                _part(accumulators.momentum, chunk),
                _part(accumulators.square, chunk),
                _part(accumulators.row, chunk),
                _part(accumulators.column, chunk),
                accumulators.factored,
            ),
            Preconditioners(*(_part(x, chunk) for x in (factors.row, factors.column, factors.momentum_column))),
            square_floor=1e-6,
        )
        return torch.cat(groups, dim=1)  # (N, 30, e, r, c)

    kept = read(chunks[0]) if len(chunks) == 1 else None
    squares = [(read(chunk) if kept is None else kept).square().sum(dim=(2, 3, 4)) for chunk in chunks]
    inverse_rms = features.inverse_rms(torch.stack(squares).sum(0) / param[0].numel())[..., None]  # (N, 30, 1)
    whole = torch.empty_like(param) if kept is None else param
    for chunk in chunks:
        x = (read(chunk) if kept is None else kept).flatten(2) * inverse_rms  # (N, 30, n)
        for layer in layers[:-1]:
            x = torch.relu(torch.baddbmm(layer.bias[..., None], layer.weight, x))  # (N, H, n)
        direction, magnitude, _ = torch.baddbmm(layers[-1].bias[..., None], layers[-1].weight, x).unbind(1)
        step = direction * torch.exp(MAGNITUDE_SCALE * magnitude)
        if kept is not None:
            return step.view_as(param)
        part = _part(whole, chunk)
        part.copy_(step.view_as(part))
    return whole


def _part(x: Tensor, chunk: Chunk) -> Tensor:
    """A chunk of (..., E, R, C), where axes of size one stand for all."""
    e, r, c = (part if size > 1 else slice(None) for part, size in zip(chunk, x.shape[-3:], strict=True))
    return x[..., e, r, c]


def _published_layout(x: Tensor) -> Tensor:
    """View (N, *kernel, inputs, outputs) of a tensor (N, outputs, inputs, *kernel); of a vector itself."""
    return x.movedim((2, 1), (-2, -1)) if x.ndim > 2 else x


def _own_layout(x: Tensor) -> Tensor:
    """Inverse of `_published_layout`."""
    return x.movedim((-2, -1), (2, 1)) if x.ndim > 2 else x


def _decays(device: torch.device) -> Decays:
    decays = (MOMENTUM_DECAYS, SQUARE_DECAYS, FACTORED_DECAYS)
    return Decays(*(constant(numbers, device)[None] for numbers in decays))
