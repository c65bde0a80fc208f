"""N networks of any module as one batched program, by `torch.func`.

Legend: N networks, P numbers of one network (T of them trainable), B examples, K outputs, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from zoo.networks.base import sharing_copy
from zoo.networks.layout import ParamLayout
from zoo.networks.module_randomness import DrawnFromStream
from zoo.tasks.backend import Networks, output_tensor
from zoo.tasks.convolutions import with_products

_FEW: Final = 16  # outputs, no more than a vector of a CPU holds


class VmappedModule:
    """A Backend: one vmap over the networks of a functional call of the module.

    Args:
        networks: what is run.
        device: of the networks.
        is_random: whether the module draws random numbers in training.
    """

    is_compilable = True

    def __init__(self, networks: Networks, device: torch.device | str = "cpu", *, is_random: bool = False) -> None:
        self._networks = networks
        self._is_random = is_random
        template = networks.module().to(device)
        shares_base = networks.layout.base is not None
        training_template = sharing_copy(template) if shares_base else networks.module().to(device)
        if torch.device(device).type == "cuda":  # on a CPU grouped convolutions are faster
            template, training_template = with_products(template), with_products(training_template)
        self._template = template.eval()
        self._training_template = training_template.train()
        self._padding_rows = _padding_rows(self._template, networks.layout)

    def base(self) -> dict[str, Tensor]:
        return self._networks.base_of(self._template)

    def to(self, device: torch.device | str) -> VmappedModule:
        return VmappedModule(self._networks, device, is_random=self._is_random)

    def outputs(self, params: Tensor, inputs: Tensor) -> Tensor:
        fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoder's, without derivative or batching rule
        try:
            return self._run(self._template, params, inputs)[0]
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)

    def loss(self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None) -> Tensor:
        return self._networks.objective.loss(self._run(self._training_template, params, inputs, stream)[0], targets)

    def loss_and_grad(
        self, params: Tensor, inputs: Tensor, targets: Tensor, stream: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def total(params: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            outputs, buffers = self._run(self._training_template, params, inputs, stream)
            losses = self._networks.objective.loss(outputs, targets)
            return losses.sum(), (losses, buffers)

        grads, (_, (losses, buffers)) = grad_and_value(total, has_aux=True)(params)
        for name, value in buffers.items():
            params[:, self._networks.layout[name].span] = value.reshape(len(params), -1).to(params.dtype)
        return losses.detach(), grads[:, : self._networks.layout.num_trainable]

    def _run(
        self, template: nn.Module, params: Tensor, inputs: Tensor, stream: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs (N, B, ..., K), and the buffers by name as the forward pass has left them."""
        layout = self._networks.layout
        tensors = layout.unflatten(params)
        named = {slot.name: tensors[slot.name] for slot in layout}  # tied ones under one of their names
        buffers = {slot.name: named[slot.name].detach().clone() for slot in layout if slot.kind == "buffer"}
        named |= buffers
        has_own_inputs = inputs.ndim > self._networks.input_ndim
        if has_own_inputs:  # the batching rule of embeddings then forgets that padding has no gradient
            for name, row in self._padding_rows.items():
                is_padding = torch.arange(named[name].shape[1], device=params.device) == row  # (V,)
                named[name] = torch.where(is_padding[:, None], named[name].detach(), named[name])

        stream = stream if self._is_random else None

        def forward(named: dict[str, Tensor], inputs: Tensor, stream: Tensor | None) -> Tensor:
            maps = nullcontext() if layout.base is None else _LinearMaps(named.values())
            with maps, nullcontext() if stream is None else DrawnFromStream(stream):
                return output_tensor(functional_call(template, named, (inputs,)))

        dims = (0, 0 if has_own_inputs else None, 0 if stream is not None and stream.ndim > 1 else None)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no batching rule
            outputs = vmap(forward, in_dims=dims, randomness="different")(named, inputs, stream)
        return outputs, buffers


class _LinearMaps(TorchFunctionMode):
    """Linear maps as they are fastest in networks that share a base.

    Sequences are rows of one matrix, so that a weight that all networks share is applied by one product to all of them;
    torch.func would expand it over the networks and examples of a batch of sequences. Maps to a few outputs, as the
    first factor of an adapter is, are taken with the examples last: CPUs fill their vectors along that dim.

    Args:
        own: weights that differ between networks.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()
        self._own = tuple(own)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is not F.linear or len(args) < 2 or args[0].ndim < 2:
            return func(*args, **(kwargs or {}))
        inputs, weight, *bias = args
        rows = inputs.flatten(0, -2)
        is_own = any(weight is one for one in self._own)
        if is_own and len(weight) <= _FEW and bias in ([], [None]) and not kwargs:
            outputs = (weight @ rows.mT).mT
        else:
            outputs = F.linear(rows, weight, *bias, **(kwargs or {}))  # type: ignore[arg-type]
        return outputs.unflatten(0, inputs.shape[:-1])


def _padding_rows(module: nn.Module, layout: ParamLayout) -> dict[str, int]:
    """Index of the row of padding in each embedding that nothing else uses, by the name of its slot."""
    rows: dict[str, int] = {}
    for prefix, owner in module.named_modules():
        if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.padding_idx is not None:
            rows[f"{prefix}.weight" if prefix else "weight"] = owner.padding_idx
    return {slot.name: rows[slot.name] for slot in layout if slot.name in rows and not slot.aliases}
