"""Networks that go into a pipeline, in any of the forms in which people have them, and networks that come out.

Legend: B networks, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.networks import low_rank
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.networks.wrappers import unwrapped


@dataclass(frozen=True)
class GeneratedParams:
    """Networks from the pipeline.

    Attributes:
        params: (B, P) on the pipeline's device, de-normalised.
        layout: names and shapes of the vector's parts.
    """

    params: Tensor
    layout: ParamLayout

    def __len__(self) -> int:
        return len(self.params)

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """One dict for each network, ready for `load_state_dict`."""
        return [self.layout.unflatten(vector) for vector in self.params]


Start = nn.Module | Mapping[str, Tensor] | Tensor | np.ndarray | GeneratedParams | Sequence[Any]


def read_start(
    start: Start, known: Sequence[ParamLayout], layout: ParamLayout | None = None
) -> tuple[ParamLayout, Tensor]:
    """Layout and vectors (B, P) float32 of a start.

    The layout is the one asked for, else that among the known ones which fits, else the module's own. Names may carry
    what wrappers (`torch.compile`, DataParallel, FSDP ...) put into them.

    Args:
        start: a module, a state dict, vectors (P,) or (B, P), generated networks, or a list of these.
        known: layouts that the generator was trained on.
        layout: of the start.

    Raises:
        LayoutMismatchError: if it is of another architecture.
        ValueError: if it is none of these, or not finite, or fits several known layouts.
    """
    if isinstance(start, list | tuple) and start and not isinstance(start[0], int | float):
        layouts, parts = zip(*(read_start(one, known, layout) for one in start), strict=True)
        if any(one != layouts[0] for one in layouts):
            raise LayoutMismatchError("starts in a list must be of one architecture; call the pipeline for each")
        return layouts[0], torch.cat(parts)
    if isinstance(start, Mapping) and start and all(isinstance(value, int | float) for value in start.values()):
        raise ValueError(f"start must be a state dict, got {dict(start)}; if it is what to ask for: pipe(prompt=...)")
    if isinstance(start, nn.Module | Mapping):
        layout, values = _of_tensors(start, known, layout)
    elif isinstance(start, Tensor | np.ndarray | list | tuple):
        values = torch.as_tensor(start)
        layout = layout or only_layout([one for one in known if one.num_params == values.shape[-1]] or known)
    elif isinstance(start, GeneratedParams):
        layout, values = layout or start.layout, start.params
    else:
        raise ValueError(
            "start must be a module, a state dict, vectors (P,) or (B, P), or a list of these, "
            f"got {type(start).__name__}"
        )
    if not values.numel():
        raise ValueError("start must hold at least one network, got none; pass start=None for networks from noise")
    layout.check_vector(values)
    vectors = values.detach().reshape(-1, layout.num_params).float()
    if not bool(vectors.isfinite().all()):
        raise ValueError("start must be finite, got NaN or infinity in its parameters; did its training diverge?")
    return layout, vectors


def in_one_form(layout: ParamLayout, params: Tensor) -> Tensor:
    """Networks (B, P) that compute the same, in the form in which the generator knows them: adapters canonical."""
    return low_rank.canonical(layout, params) if low_rank.has_adapters(layout) else params


def only_layout(layouts: Sequence[ParamLayout]) -> ParamLayout:
    """The one layout; ValueError if there are several to choose from."""
    if len(layouts) > 1:
        raise ValueError(f"the generator knows {len(layouts)} layouts; pass layout=ParamLayout.of(module)")
    return layouts[0]


def _of_tensors(
    start: nn.Module | Mapping[str, Tensor], known: Sequence[ParamLayout], layout: ParamLayout | None
) -> tuple[ParamLayout, Tensor]:
    tensors = start.state_dict() if isinstance(start, nn.Module) else start
    try:
        tensors = {name: torch.as_tensor(value) for name, value in tensors.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"start must hold tensors by name, as a state dict does: {error}") from error
    if layout is not None:
        return layout, layout.flatten(unwrapped(tensors, layout))
    fitting: list[tuple[ParamLayout, Tensor]] = []
    for one in known:
        try:
            fitting.append((one, one.flatten(unwrapped(tensors, one))))
        except LayoutMismatchError as error:
            mismatch = error
    if fitting:
        return only_layout([one for one, _ in fitting]), fitting[0][1]
    if not isinstance(start, nn.Module):
        raise LayoutMismatchError(
            f"start fits none of the {len(known)} layouts that the generator was trained on; for other widths or "
            f"depths pass layout=ParamLayout.of(module). {mismatch}"
        )
    while list(start._modules) in (["_orig_mod"], ["module"]):  # of torch.compile and DataParallel
        (start,) = start.children()
    layout = ParamLayout.of(start)
    return layout, layout.flatten(start)
