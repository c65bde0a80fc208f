"""Task vectors as signs: of each only the largest entries are kept, as +1 or -1 times one number.

A file of one holds two bits a number, `positive` and `negative` (ceil(P / 8),) uint8, bit i of byte j being entry
8 j + i, the factor `magnitude`, and, as they are, the numbers that are not trained (`rest`, float32). Its metadata
has the layout, a hash of the base, and what the compression lost.

Legend: N networks, P numbers of one network.

Source: Yadav et al. 2023 (arXiv 2311.13171), Algorithm 1 and section 2.2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.devices import widened
from zoo.networks.layout import ParamLayout
from zoo.operations.merging import keep_largest
from zoo.storage.durable import write_file

FORMAT: Final = "weightfoundry.ternary"
_VERSION: Final = 1
_BITS: Final = tuple(1 << i for i in range(8))


class Ternary(NamedTuple):
    """A compressed vector: signs (P,) int8 in {-1, 0, 1}, and the magnitude () that stands for all that are kept."""

    signs: Tensor
    magnitude: Tensor

    def dense(self) -> Tensor:
        """The vector (P,) that is left."""
        return self.signs * self.magnitude


def compress(vector: Tensor, density: float = 0.05, alpha: float | None = None) -> Ternary:
    """A task vector (P,) of which the share `density` of largest entries is kept as alpha * std(vector) * sign.

    Args:
        vector: (P,) floating-point.
        density: share that is kept, in (0, 1].
        alpha: the paper chooses it on held-out data, of .5 to 10; by default the one that loses least in squares,
            with which the magnitude is the mean of those kept.
    """
    signs = keep_largest(vector, density).sign()
    if alpha is None:
        magnitude = (vector * signs).sum() / signs.abs().sum().clamp(min=1)
    else:
        magnitude = alpha * vector.std(correction=0)
    return Ternary(signs.to(torch.int8), magnitude)


def relative_error(vector: Tensor, approximation: Tensor) -> float:
    """|vector - approximation| / |vector|; 0 where both are 0."""
    lost, whole = widened(vector - approximation).norm(), widened(vector).norm()
    return float(lost / whole) if whole > 0 else float(lost > 0)


def save_compressed(
    path: Path,
    layout: ParamLayout,
    network: Tensor,
    base: Tensor,
    compressed: Ternary,
    *,
    about: Mapping[str, object] | None = None,
) -> None:
    """Write a compressed task vector; `load_compressed` makes a network of it and the base.

    Args:
        path: ends in .safetensors.
        layout: of the network; its trainable part is compressed.
        network: (P,) whose numbers beyond the trainable part are kept as they are.
        base: (P,) network with which the training began.
        compressed: of the trainable part.
        about: JSON-able, kept as metadata.
    """
    known = {**(about or {}), "base_sha256": _fingerprint(layout, base), "layout": json.loads(layout.to_json())}
    tensors = {
        "positive": _packed(compressed.signs > 0),
        "negative": _packed(compressed.signs < 0),
        "magnitude": compressed.magnitude.cpu().double().reshape(()),
        "rest": network[layout.num_trainable :].float().cpu().contiguous(),
    }
    metadata = {"format": FORMAT, "version": str(_VERSION), "about": json.dumps(known)}
    write_file(path, [save(tensors, metadata)])


def is_compressed(path: Path) -> bool:
    """Whether a file is safetensors with a compressed task vector."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except SafetensorError:
        return False


def load_compressed(path: Path, layout: ParamLayout, base: Tensor) -> Tensor:
    """The network (P,) that a compressed task vector makes of its base (P,), on the base's device.

    Raises:
        LayoutMismatchError: if the base has other tensors.
        ValueError: if the file is none, or belongs to another base.
    """
    if not is_compressed(path):
        raise ValueError(f"{path} holds no compressed task vector")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if int(metadata["version"]) > _VERSION:
        raise ValueError(f"{path} has version {metadata['version']}, this release reads up to {_VERSION}; upgrade")
    known = json.loads(metadata["about"])
    own = ParamLayout.from_json(json.dumps(known["layout"]))  # perhaps in another order of tensors
    start = own.flatten(layout.views(base))
    if known["base_sha256"] != _fingerprint(own, start):
        raise ValueError(f"{path} was compressed against another base; give the one that it was trained from")
    count = own.num_trainable
    signs = _unpacked(tensors["positive"], count) - _unpacked(tensors["negative"], count)
    delta = Ternary(signs, tensors["magnitude"]).dense().to(start)
    network = torch.cat([start[:count] + delta, tensors["rest"].to(start)])
    return layout.flatten(own.views(network)).to(base)


def _packed(bits: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (padded * torch.tensor(_BITS, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8).cpu()


def _unpacked(packed: Tensor, count: int) -> Tensor:
    return (
        (packed.unsqueeze(1).bitwise_and(torch.tensor(_BITS, dtype=torch.uint8)) > 0).flatten()[:count].to(torch.int8)
    )


def _fingerprint(layout: ParamLayout, base: Tensor) -> str:
    """SHA-256 of the trainable numbers of a base."""
    trained = base[: layout.num_trainable].float().cpu().contiguous()
    return hashlib.sha256(trained.numpy().tobytes()).hexdigest()
