"""N networks of any module, one after another: slow, but the module itself in an ordinary forward and backward pass.

Legend: N networks, P numbers of one network (T of them trainable), B examples, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from zoo.networks.module_randomness import DrawnFromStream
from zoo.tasks.backend import Networks, output_tensor


class LoopedModule:
    """A Backend that loads each network into the module. Its results can be differentiated once.

    Args:
        networks: what is run.
        device: of the networks.
        channels_last: give images to the module with their channels last, which convolutions may be faster on.
    """

    is_compilable = False

    def __init__(self, networks: Networks, device: torch.device | str = "cpu", *, channels_last: bool = False) -> None:
        self._networks = networks
        self._channels_last = channels_last
        self._module = networks.module().to(device)
        named = dict(self._module.named_parameters())
        self._params = [named[slot.name] for slot in networks.layout if slot.kind == "param"]
        shared = {name for slot in networks.layout.base or () for name in (slot.name, *slot.aliases)}
        self._constant = {name: value.clone() for name, value in self._module.named_buffers() if name in shared}

    def base(self) -> dict[str, Tensor]:
        return self._networks.base_of(self._module)

    def to(self, device: torch.device | str) -> LoopedModule:
        return LoopedModule(self._networks, device, channels_last=self._channels_last)

    def outputs(self, params: Tensor, inputs: Tensor) -> Tensor:
        return _Outputs.apply(params, inputs, None, (self, False))

    def loss(self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None) -> Tensor:
        return self._networks.objective.loss(_Outputs.apply(params, inputs, stream, (self, True)), targets)

    @torch.enable_grad()
    def loss_and_grad(
        self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        own_targets = targets.ndim > self._networks.target_ndim
        losses, grads = [], params.new_empty(len(params), self._networks.layout.num_trainable)
        for i, outputs in enumerate(self.each_output(params, inputs, stream, training=True)):
            loss = self._networks.objective.loss(outputs[None], targets[i : i + 1] if own_targets else targets)
            grads[i] = self.gradient(loss.sum())
            losses.append(loss.detach())
            self._read_back(params[i])
        return torch.cat(losses), grads

    def each_output(
        self, params: Tensor, inputs: Tensor, streams: Tensor | None, *, training: bool
    ) -> Iterator[Tensor]:
        """Outputs (B, ..., K) of one network after another, each with its graph to the module's own parameters."""
        self._module.train(training)
        for i in range(len(params)):
            self._module.load_state_dict(self._networks.layout.unflatten(params[i].detach()), strict=False)
            own = inputs[i] if inputs.ndim > self._networks.input_ndim else inputs
            if self._channels_last and own.ndim == 4:
                own = own.contiguous(memory_format=torch.channels_last)
            stream = streams[i] if streams is not None and streams.ndim > 1 else streams
            with nullcontext() if stream is None else DrawnFromStream(stream):
                outputs = self._module(own)
            yield output_tensor(outputs)

    @torch.no_grad()
    def _read_back(self, network: Tensor) -> None:
        """Write to a network (P,) what a forward pass may have changed: buffers, and parameters by `.data` or max_norm.

        Raises:
            ValueError: if it has changed what all networks share.
        """
        state = self._module.state_dict(keep_vars=True)
        for slot in self._networks.layout:
            network[slot.span] = state[slot.name].flatten().to(network.dtype)
        for name, value in self._constant.items():
            if not torch.equal(state[name], value):
                raise ValueError(
                    f"buffer {name!r} stayed as it is when the module was tried, and so is shared by all runs, but "
                    "training changes it now; let every forward pass in training write to it"
                )

    def unused(self) -> list[str]:
        """Names of trainable parameters of which the last loss was no function."""
        slots = (slot for slot in self._networks.layout if slot.kind == "param")
        return [slot.name for slot, param in zip(slots, self._params, strict=True) if param.grad is None]

    def gradient(self, value: Tensor, output_grad: Tensor | None = None) -> Tensor:
        """Gradient (T,) of a value by the parameters of the network that the module holds."""
        self._module.zero_grad()
        value.backward(output_grad)
        grads = [torch.zeros_like(param) if param.grad is None else param.grad.to_dense() for param in self._params]
        return torch.cat([grad.flatten() for grad in grads])


class _Outputs(torch.autograd.Function):
    """Outputs (N, B, ..., K); the backward pass runs the networks once more, so that memory is that of one."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, params: Tensor, inputs: Tensor, streams: Tensor | None, run: tuple[LoopedModule, bool]
    ) -> Tensor:
        ctx.save_for_backward(params, inputs)
        ctx.streams, (ctx.backend, ctx.training) = streams, run  # type: ignore[attr-defined]
        backend, training = run
        return torch.stack(
            [output.detach() for output in backend.each_output(params, inputs, streams, training=training)]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, output_grads: Tensor) -> tuple[Tensor | None, ...]:
        params, inputs = ctx.saved_tensors  # type: ignore[attr-defined]
        backend: LoopedModule = ctx.backend  # type: ignore[attr-defined]
        with torch.enable_grad():
            outputs = backend.each_output(params, inputs, ctx.streams, training=ctx.training)  # type: ignore[attr-defined]
            grads = [backend.gradient(output, grad) for output, grad in zip(outputs, output_grads, strict=True)]
        padded = torch.zeros_like(params)  # buffers have no gradient
        padded[:, : grads[0].shape[0]] = torch.stack(grads)
        return padded, None, None, None
