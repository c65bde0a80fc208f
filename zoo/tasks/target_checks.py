"""What is said of targets that an objective cannot score.

Legend: n targets, B examples, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_like_outputs(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless targets (n, ..., K) have the shape of outputs (B, ..., K)."""
    if targets.shape[1:] != outputs.shape[1:]:
        hint = "; use targets.unsqueeze(-1)" if targets.shape[1:] == outputs.shape[1:-1] else ""
        raise ValueError(
            f"expected targets (n{_dims(outputs.shape[1:])}) as the outputs have, "
            f"got (n{_dims(targets.shape[1:])}){hint}"
        )


def check_classes(outputs: Tensor, targets: Tensor, num_classes: int, ignored: int | None = None) -> None:
    """Raise ValueError unless targets (n, ...) are classes, one for each vector of logits in outputs (B, ..., K)."""
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"expected labels that are integers, got {dtype_name(targets)}; convert them with .long()")
    if targets.shape[1:] != outputs.shape[1:-1]:
        hint = ""
        if targets.shape[1:] == (*outputs.shape[1:-1], 1):
            hint = "; use labels.squeeze(-1)"
        elif targets.shape[1:] == outputs.shape[1:]:
            hint = "; use labels.argmax(-1) if they are one-hot"
        elif targets.shape[1:] == outputs.shape[2:] and num_classes == outputs.shape[1]:
            hint = "; return outputs.movedim(1, -1), classes last"
        raise ValueError(
            f"expected labels (n{_dims(outputs.shape[1:-1])}) for outputs (n{_dims(outputs.shape[1:])}), "
            f"got (n{_dims(targets.shape[1:])}){hint}"
        )
    outside = (targets < 0) | (targets >= num_classes)
    if ignored is not None:
        outside &= targets != ignored
    if outside.any():
        found = ", ".join(map(str, targets[outside].unique().tolist()[:4]))
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {found} in {int(outside.sum()):,} of "
            f"{targets.numel():,} places; number the classes from 0, or leave out what has no label: with "
            "objective={'name': 'cross_entropy', 'ignore_index': -100} labels of -100 do not count"
        )


def _dims(shape: torch.Size) -> str:
    return "".join(f", {size}" for size in shape) or ","


def dtype_name(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
