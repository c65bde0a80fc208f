"""Are these the settings with which it was begun? One answer for all that is resumed, kept or compared.

Settings are dataclasses, mappings, sequences, tensors and scalars, in any nesting. A record of them is JSON: what is
read back is compared with what is given now, field by field, so that 1 and 1.0, tuples and lists, and a tensor and its
hash are the same. A field that the record lacks, because a later release added it, had its default. Before anything is
begun, `check_options` refuses numbers and truth values that none can mean.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
import platform
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from pathlib import PurePath
from types import UnionType
from typing import Any, Final, TypeAlias, TypeGuard, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

REMEDY: Final = "give the old values, choose another folder, or remove this one"
_MAX_SHOWN: Final = 8
_ABSENT: Final = object()


class SettingsMismatchError(ValueError):
    """What was begun with other settings than those given now; the message names each field that differs."""


def check_options(
    options: Mapping[str, object],
    kind: Callable[..., Any],
    *,
    positive: Collection[str] = (),
    shares: Collection[str] = (),
    signed: Collection[str] = (),
) -> None:
    """Refuse options that are no truth value, no whole or no finite number where `kind` declares one, and those < 0.

    Args:
        options: values by name.
        kind: dataclass or function that declares their types.
        positive: those that must be above 0.
        shares: those that must not be above 1.
        signed: those that may be below 0.

    Raises:
        ValueError: for the first such option, with its name and value.
    """
    for name, hint in get_type_hints(kind).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        value = options.get(name)
        if name not in options or not {bool, int, float} & {*kinds} or (value is None and type(None) in kinds):
            continue
        if bool in kinds:
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name} must be true or false, got {value!r}")
            continue
        is_whole = float not in kinds
        is_number = isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
        is_above = name in signed or (number > 0 if name in positive else number >= 0)
        if not (math.isfinite(number) and is_above and (number <= 1 or name not in shares)):
            wanted = "an integer" if is_whole else "a finite number"
            bounds = "" if name in signed else " above 0" if name in positive else " from 0 up"
            raise ValueError(f"{name} must be {wanted}{' from 0 to 1' if name in shares else bounds}, got {value!r}")


def as_json(settings: object) -> Json:
    """The record of settings: JSON-able, the same for equal settings.

    Tensors and arrays become their dtype, shape and hash; numbers that are not finite become words.

    Raises:
        TypeError: for an object that is neither a setting nor made of settings.
    """
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if isinstance(settings, np.generic):
        settings = settings.item()
    if isinstance(settings, Mapping):
        return {str(name): as_json(value) for name, value in settings.items()}
    if isinstance(settings, torch.Tensor | np.ndarray):
        array = torch.as_tensor(settings).detach().cpu()
        numbers = array.view(torch.int16) if array.dtype is torch.bfloat16 else array  # which NumPy does not have
        content = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
        return f"{array.dtype} {tuple(array.shape)} sha256:{content[:16]}"
    if _is_list(settings):
        return [as_json(value) for value in settings]
    if isinstance(settings, torch.dtype | torch.device | PurePath) or _is_not_finite(settings):
        return str(settings)
    if settings is None or isinstance(settings, bool | str | int | float):
        return settings
    raise TypeError(f"settings are dataclasses, mappings, sequences, tensors and scalars, got {settings!r}")


def digest(settings: object) -> str:
    """Hexadecimal SHA-256 of settings, the same for equal ones: a name for what was computed with them."""
    return hashlib.sha256(json.dumps(_whole_numbers(as_json(settings)), sort_keys=True).encode()).hexdigest()


def differences(begun: Json, now: object, *, defaults: Json = None, free: Collection[str] = ()) -> list[str]:
    """Lines such as "optimizer.lr: begun with 0.1, now 0.2", one a field that differs; empty if none does.

    Args:
        begun: the record, as read back.
        now: the settings given now.
        defaults: what fields have that either side lacks; those of dataclasses are known.
        free: fields that may differ, with all below them.
    """
    return [
        f"{field}: begun with {_shortened(old)}, now {_shortened(new)}"
        for field, old, new in _compared(begun, now, {} if defaults is None else defaults, "")
        if not any(field == name or field.startswith((f"{name}.", f"{name}[")) for name in free)
    ]


def require_same(
    begun: Json,
    now: object,
    where: object,
    *,
    defaults: Json = None,
    free: Collection[str] = (),
    remedy: str = REMEDY,
) -> None:
    """Raise SettingsMismatchError unless the settings are those of the record.

    Args:
        begun, now, defaults, free: see `differences`.
        where: what was begun, for the message.
        remedy: what to do about it.
    """
    found = differences(begun, now, defaults=defaults, free=free)
    if found:
        more = [f"and {len(found) - _MAX_SHOWN} more"] if len(found) > _MAX_SHOWN else []
        shown = "; ".join(found[:_MAX_SHOWN] + more)
        raise SettingsMismatchError(f"{where} was begun with other settings ({shown}); {remedy}")


def defaults_of(kind: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a dataclass, class or function that have a default, and this default."""
    factories = {}
    if is_dataclass(kind):
        factories = {one.name: one.default_factory for one in fields(kind) if one.default_factory is not MISSING}
    parameters = inspect.signature(kind).parameters.values()
    values = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return values | {name: make() for name, make in factories.items()}


def installed_software(*names: str) -> dict[str, str]:
    """Versions of Python, weightfoundry and torch, and of further distributions."""
    versions = {"python": platform.python_version()}
    for name in ("weightfoundry", "torch", *names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def warn_of_other_software(begun: Mapping[str, Any], now: Mapping[str, Any], where: object) -> None:
    """Warn, with the versions, if what was begun is continued by other software."""
    changed = [f"{name} {begun.get(name)} -> {now[name]}" for name in now if begun.get(name) != now[name]]
    if changed:
        warnings.warn(
            f"{where} was begun with other software ({', '.join(changed)}): results may differ in their last bits",
            stacklevel=3,
        )


def _compared(begun: Any, now: Any, defaults: Any, path: str) -> Iterator[tuple[str, object, object]]:
    """(field, old, new) wherever a record and settings differ."""
    if is_dataclass(now) and not isinstance(now, type):
        defaults = defaults_of(type(now)) | (dict(defaults) if isinstance(defaults, Mapping) else {})
        now = {field.name: getattr(now, field.name) for field in fields(now)}
    if isinstance(begun, Mapping) and isinstance(now, Mapping):
        assumed = defaults if isinstance(defaults, Mapping) else {}
        for name in [*now, *(name for name in begun if name not in now)]:
            default = assumed.get(name, _ABSENT)
            inner = f"{path}.{name}" if path else str(name)
            old = begun[name] if name in begun else _record(default)
            yield from _compared(old, now.get(name, default), default, inner)
    elif _is_list(begun) and _is_list(now) and len(begun) == len(now) and not _is_short(now):
        for i, (old, new) in enumerate(zip(begun, now, strict=True)):
            yield from _compared(old, new, None, f"{path}[{i}]")
    else:
        old, new = _record(begun), _record(now)
        if old != new or isinstance(old, bool) != isinstance(new, bool):  # True == 1 in Python
            yield path, old, new


def _record(value: object) -> object:
    return value if value is _ABSENT else as_json(value)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_short(values: Sequence[object]) -> bool:
    """Whether a list is better shown whole than by the place of what differs."""
    return len(values) <= 8 and not any(
        isinstance(one, Mapping) or is_dataclass(one) or _is_list(one) for one in values
    )


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _whole_numbers(value: Json) -> Json:
    """The same record with 1 for 1.0, which are one setting."""
    if isinstance(value, dict):
        return {name: _whole_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shortened(value: object) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
