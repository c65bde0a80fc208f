"""Low-rank adapters up to their symmetry: only the product B A of a pair acts, so (B G, G^-1 A) is the same adapter.

G is any invertible matrix of the size of the rank, so distances and means of the factors mean little. Here they are of
the products, which are never formed: a product has as many numbers as the matrix it adapts.

What else a layout holds (biases, magnitudes, heads) is compared and averaged number by number. Factors such as
alpha / rank are not part of a layout; where they differ between modules, `weights` brings them in.

Legend: N and M networks, P numbers of one network, I inputs and O outputs of an adapted matrix, R its rank.

Sources: Putterman et al. 2024, "Learning on LoRAs" (arXiv 2410.04207), section 3, the symmetry and its invariants;
Weight2Token (arXiv 2603.15990), the canonical form by QR and then SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from zoo.devices import widened
from zoo.networks.layout import ParamLayout, SymmetryGroup
from zoo.networks.symmetry import numbers_outside

_TOLERANCE: Final = 1e-2  # of what an adapter changes, in float32; where the symmetry fails, all of that changes


class Factors(NamedTuple):
    """The two factors of a product: `up` is B (N, O, R), `down` is A (N, R, I)."""

    up: Tensor
    down: Tensor


def has_adapters(layout: ParamLayout) -> bool:
    """Whether a layout holds products B A, which any invertible matrix between them leaves as they are."""
    return any(group.kind == "linear" for group in layout.groups)


def linear_groups(layout: ParamLayout) -> tuple[SymmetryGroup, ...]:
    """Groups whose units any invertible matrix may mix.

    Raises:
        ValueError: if there are none, with what the layout has instead.
    """
    groups = tuple(group for group in layout.groups if group.kind == "linear")
    if not groups:
        names = [slot.name for slot in layout if slot.kind == "param"]
        raise ValueError(
            f"expected adapters B A that any invertible matrix may mix, got {len(names)} tensors such as {names[:2]}; "
            "kinds with a diagonal or another matrix between the factors, or without factors, do not have that symmetry"
        )
    return groups


def factors(layout: ParamLayout, group: SymmetryGroup, params: Tensor) -> Factors:
    """Both factors of a group's product in networks (N, P), convolution kernels and the like flattened."""
    down, up = group.axes
    a = params[:, layout[down.slot].span].view(-1, *layout[down.slot].shape).movedim(1 + down.axis, 1).flatten(2)
    b = params[:, layout[up.slot].span].view(-1, *layout[up.slot].shape).movedim(1 + up.axis, 1).flatten(2)
    return Factors(b.mT, a)


def apply(layout: ParamLayout, params: Tensor, mixing: Mapping[str, Tensor]) -> Tensor:
    """Networks (N, P) whose factors became (B G, G^-1 A); they compute what the given ones compute.

    Args:
        layout, params: of N networks.
        mixing: G (N, R, R) by group name; groups that are not named stay as they are.

    Raises:
        ValueError: if a group is unknown or not linear.
    """
    layout.check_vector(params)
    groups = {group.name: group for group in linear_groups(layout)}
    if unknown := sorted(set(mixing) - set(groups)):
        raise ValueError(f"mixing names {unknown}; the layout's linear groups are {sorted(groups)}")
    changed = {}
    for name, matrix in mixing.items():
        up, down = factors(layout, groups[name], params.to(matrix.dtype))
        changed[name] = Factors(up @ matrix, torch.linalg.solve(matrix, down))
    return _with_factors(layout, params, changed)


def sample(layout: ParamLayout, num_networks: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Random invertible matrices for `apply`, of condition number up to 2: rotations, stretches, rotations.

    Returns:
        (N, R, R) float64 by group name, on the device of `rng`.
    """
    return {group.name: _random_matrices(num_networks, group.size, rng) for group in linear_groups(layout)}


def canonical(layout: ParamLayout, params: Tensor) -> Tensor:
    """Networks (N, P) in the one form of their adapters: B = U sqrt(S), A = sqrt(S) V^T of the product's SVD.

    Components are in the order of their size, and the largest entry of each column of B is positive. Where singular
    values are equal, and only there, the form is not unique. B and A are balanced: B^T B = A A^T = S.

    Source: Weight2Token (arXiv 2603.15990): QR of both factors, then SVD of the small matrix between them.
    """
    layout.check_vector(params)
    changed = {}
    for group in linear_groups(layout):
        up, down = factors(layout, group, widened(params))
        changed[group.name] = _balanced(up, down)
    return _with_factors(layout, params, changed)


def inner_products(
    layout: ParamLayout,
    params: Tensor,
    others: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Inner products (N, M) float64 of what networks train: of products B A, and of all other numbers.

    <B A, B' A'> = sum over pairs of components of (B^T B') (A A'^T), so that no product is formed.

    Args:
        layout: of all networks.
        params: (N, P).
        others: (M, P); default `params`.
        weights: factor on the product of each group, such as alpha / rank, by group name; default 1.
    """
    others = params if others is None else others
    for vectors in (params, others):
        layout.check_vector(vectors)
    plain = numbers_outside(layout, linear_groups(layout)).to(params.device)
    total = widened(params[:, plain]) @ widened(others[:, plain]).T
    for group in linear_groups(layout):
        mine, theirs = (factors(layout, group, widened(vectors)) for vectors in (params, others))
        scale = (weights or {}).get(group.name, 1.0) ** 2
        for r in range(group.size):  # one by one, to hold (N, M, R) numbers at most
            gram = torch.einsum("no,mos->nms", mine.up[..., r], theirs.up)
            gram *= torch.einsum("ni,msi->nms", mine.down[:, r], theirs.down)
            total += scale * gram.sum(2)
    return total


def distances(
    layout: ParamLayout,
    params: Tensor,
    others: Tensor | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Euclidean distances (N, M) float64 between what adapters add, whatever their factors; see `inner_products`.

    Equal ones are apart by some 1e-8 of their norm.
    """
    mine = inner_products(layout, params, weights=weights).diagonal()
    if others is None:
        products, theirs = inner_products(layout, params, weights=weights), mine
    else:
        products = inner_products(layout, params, others, weights)
        theirs = inner_products(layout, others, weights=weights).diagonal()
    return (mine[:, None] + theirs - 2 * products).clamp(min=0).sqrt()


def mean(layout: ParamLayout, params: Tensor, shares: Tensor | None = None) -> Tensor:
    """The network (P,) whose products are nearest to the mean of the given networks' products; the rest is averaged.

    The mean of N products of rank R has rank up to N R. Its best approximation of rank R is found from the stacked
    factors, in canonical form.

    Args:
        layout: of the networks.
        params: (N, P).
        shares: (N,) weights of the mean, which sum to one; default equal ones.
    """
    layout.check_vector(params)
    count, wide = len(params), widened(params)
    shares = wide.new_full((count,), 1 / count) if shares is None else shares.to(wide)
    averaged = (shares @ wide)[None]
    changed = {}
    for group in linear_groups(layout):
        up, down = factors(layout, group, wide)
        stacked = (up * shares[:, None, None]).transpose(0, 1).flatten(1)[None]  # (1, O, N R)
        best = _balanced(stacked, down.flatten(0, 1)[None])
        changed[group.name] = Factors(best.up[..., : group.size], best.down[:, : group.size])
    return _with_factors(layout, averaged, changed)[0].to(params.dtype)


def align(layout: ParamLayout, params: Tensor, reference: Tensor) -> Tensor:
    """Networks (N, P), computing what they did, whose factors are as near to those of a reference as rotations bring.

    Both are balanced first (`canonical`); the reference is compared in that form. Then averages, interpolations and
    differences of factors mean something.

    Args:
        layout: of all networks.
        params: (N, P).
        reference: (P,).

    Source: Schönemann 1966, the orthogonal Procrustes problem.
    """
    params, reference = canonical(layout, params), canonical(layout, reference[None])
    changed = {}
    for group in linear_groups(layout):
        mine, wanted = (factors(layout, group, widened(vectors)) for vectors in (params, reference))
        u, _, vh = torch.linalg.svd(mine.up.mT @ wanted.up + mine.down @ wanted.down.mT)
        rotation = u @ vh  # (N, R, R)
        changed[group.name] = Factors(mine.up @ rotation, rotation.mT @ mine.down)
    return _with_factors(layout, params, changed)


@torch.no_grad()
def holds(forward: Callable[[dict[str, Tensor]], Tensor], tensors: Mapping[str, Tensor], group: SymmetryGroup) -> bool:
    """Whether a network computes the same, for random factors, when a group's units are mixed or permuted.

    False also where the factors change nothing that it computes, so that nothing can be told.

    Args:
        forward: what the network computes if it has these tensors instead of its own.
        tensors: its own, by name.
        group: a linear one, or a permutation of a low-rank adapter's components.
    """
    rng = torch.Generator().manual_seed(0)
    if group.kind == "linear":
        mixing = _random_matrices(1, group.size, rng)[0]
    else:
        order = torch.randperm(group.size, generator=rng)
        order = order.roll(1) if torch.equal(order, torch.arange(group.size)) else order
        mixing = torch.eye(group.size, dtype=torch.float64)[order]
    drawn, mixed = {}, {}
    for axis in group.axes:
        like = tensors[axis.slot]
        units = (
            torch.randn(like.shape, generator=rng, dtype=torch.float64).movedim(axis.axis, 0) / like[0].numel() ** 0.5
        )
        matrix = mixing.T if axis == group.axes[1] else mixing.inverse()  # of B, and of what stands on A's side
        drawn[axis.slot] = units.movedim(0, axis.axis).to(like)
        mixed[axis.slot] = torch.tensordot(matrix, units, 1).movedim(0, axis.axis).to(like)
    silent = drawn | {group.axes[1].slot: torch.zeros_like(tensors[group.axes[1].slot])}
    expected, found, without = (widened(forward(values)) for values in (drawn, mixed, silent))
    effect = (expected - without).norm()
    return bool(effect > 0) and bool((expected - found).norm() <= _TOLERANCE * effect)


def _balanced(up: Tensor, down: Tensor) -> Factors:
    """Factors of the same product in canonical form, with as many components as before."""
    size = up.shape[-1]
    left, small_left = torch.linalg.qr(up)  # (N, O, k), (N, k, R)
    right, small_right = torch.linalg.qr(down.mT)  # (N, I, l), (N, l, R)
    u, s, vh = torch.linalg.svd(small_left @ small_right.mT, full_matrices=False)
    up, down = left @ u * s.sqrt()[:, None], s.sqrt()[..., None] * vh @ right.mT
    largest = up.gather(1, up.abs().argmax(1, keepdim=True))  # (N, 1, k)
    sign = torch.where(largest < 0, -1.0, 1.0).to(up)
    missing = size - s.shape[-1]  # a rank above what the matrix can have
    up, down = up * sign, down * sign.mT
    return Factors(nn.functional.pad(up, (0, missing)), nn.functional.pad(down, (0, 0, 0, missing)))


def _with_factors(layout: ParamLayout, params: Tensor, changed: Mapping[str, Factors]) -> Tensor:
    """Networks (N, P) in which some groups have other factors."""
    result = params.clone()
    for group in layout.groups:
        if group.name in changed:
            up, down = changed[group.name]
            for axis, value in zip(group.axes, (down, up.mT), strict=True):  # both (N, R, ...)
                shape = layout[axis.slot].shape
                rest = [size for i, size in enumerate(shape) if i != axis.axis]
                tensor = value.reshape(len(value), group.size, *rest).movedim(1, 1 + axis.axis)
                result[:, layout[axis.slot].span] = tensor.flatten(1).to(result.dtype)
    return result


def _random_matrices(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Invertible matrices (count, size, size) float64 of condition number up to 2, none of them near a rotation."""
    shape = (count, size, size)
    first, second = (
        torch.linalg.qr(torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float64)).Q for _ in range(2)
    )
    stretch = 1.5 + 1.5 * torch.rand(count, 1, size, generator=rng, device=rng.device, dtype=torch.float64)
    return first * stretch @ second
