"""Names of tensors without what wrappers of a module put into them.

`torch.compile`, DataParallel, FSDP, activation checkpointing, Lightning and EMA copies hold the network as a child, so
each of its tensors gets a longer name; wrappers of wrappers do so several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

from zoo.networks.layout import LayoutMismatchError, ParamLayout

# Children by these names belong to wrappers alone; `module` is a name that a network may use for a part of its own.
_RESERVED: Final = {"_orig_mod", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module"}
_AVERAGED_COUNTER: Final = "n_averaged"  # of torch.optim.swa_utils.AveragedModel: a number of the wrapper


def unwrapped(tensors: Mapping[str, Tensor], layout: ParamLayout | None = None) -> dict[str, Tensor]:
    """The same tensors, named as the wrapped network names them.

    With a layout, names become those of the layout where they differ by wrappers only: by the parts that
    `torch.compile`, DataParallel, FSDP and the like insert, at any place and depth, or by one prefix of all names, such
    as the attribute of a Lightning module, on either side. Tensors that the layout does not have keep their names, so
    that `ParamLayout.flatten` reports them.

    Without one, parts that only wrappers use are removed anywhere, and `module.` where all names begin with it.

    Args:
        tensors: by name.
        layout: of the network that they should be of.

    Returns:
        Tensors in the order given, all of them but `n_averaged`, the counter of torch's AveragedModel, if the layout
        has no such slot.

    Raises:
        LayoutMismatchError: if they hold the network more than once, such as a model beside its average.
    """
    known = set() if layout is None else set(layout.names)
    if tensors.keys() <= known:
        return dict(tensors)
    own = [name for name in tensors if name in known or name.rpartition(".")[2] != _AVERAGED_COUNTER]
    if len(own) < len(tensors) and not any("module" in name.split(".")[:-1] for name in own):
        own = list(tensors)  # no AveragedModel: its network is its child `module`
    renamed = _plain(own) if layout is None else _matched(own, layout)
    if len(set(renamed.values())) < len(renamed):
        twice = sorted({name for name in renamed.values() if list(renamed.values()).count(name) > 1})
        raise LayoutMismatchError(f"tensors hold {twice[:3]} twice but for wrappers in their names; keep one of each")
    return {renamed[name]: tensors[name] for name in own}


def _plain(names: Iterable[str]) -> dict[str, str]:
    """Each name without reserved parts, and without `module.` as long as all begin with it."""
    parts = {name: [part for part in name.split(".") if part not in _RESERVED] for name in names}
    while parts and all(len(own) > 1 and own[0] == "module" for own in parts.values()):
        parts = {name: own[1:] for name, own in parts.items()}
    return {name: ".".join(own) for name, own in parts.items()}


def _matched(names: list[str], layout: ParamLayout) -> dict[str, str]:
    """Each name with that of the layout's slot it stands for, or with itself."""
    keys = {name: _key(name) for name in names}
    slots = [(slot.name, *slot.aliases) for slot in layout]
    wanted = {_key(name): name for name in layout.names}
    if len(wanted) < len(layout.names) or not slots:
        return dict(zip(names, names, strict=True))  # the layout itself tells wrapped from plain
    present, prefixes = set(keys.values()), []
    first = [_key(name) for name in slots[0]]
    for prefix in {key.removesuffix(name) for key in present for name in first if f".{key}".endswith(f".{name}")}:
        if all(any(prefix + _key(name) in present for name in aliases) for aliases in slots):
            prefixes.append(prefix)
    if "" in prefixes:
        prefixes = [""]
    if len(prefixes) > 1:
        raise LayoutMismatchError(f"tensors hold the network under each of {sorted(prefixes)}; keep one of them")
    if prefixes:
        return {name: wanted.get(key.removeprefix(prefixes[0]), name) for name, key in keys.items()}
    outer = next(iter(wanted)).split(".")
    for depth in range(1, len(outer)):  # the layout may be that of the wrapped module
        prefix = ".".join(outer[:depth]) + "."
        if {prefix + key for key in present} == set(wanted):
            return {name: wanted[prefix + key] for name, key in keys.items()}
    return {name: wanted.get(key, name) for name, key in keys.items()}


def _key(name: str) -> str:
    """A name by which wrapped and plain tensors are compared."""
    return ".".join(part for part in name.split(".") if part not in _RESERVED and part != "module")
