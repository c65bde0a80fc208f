"""What a zoo on disk holds: its attributes and the metadata of its arrays. The specification is zoo/README.md.

Legend: R runs, S snapshots, P numbers of one network, G runs of one block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import partial
from numbers import Integral
from typing import Any, Final

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from zoo.networks.layout import ParamLayout
from zoo.settings import REMEDY, Json, SettingsMismatchError, differences, installed_software, require_same
from zoo.storage.base import create_base_arrays
from zoo.storage.splits import SplitRule

FORMAT: Final = "weightfoundry-zoo"
FORMAT_VERSION: Final = 2  # of zoos with a base; those without are of version 1
METRICS: Final = tuple(f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", "error"))
_STORED_DTYPES: Final = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
_COLUMN_DTYPES: Final = ("float64", "int64")
_RESERVED_COLUMNS: Final = {"seed": "int64", "checksum": "uint32", "status": "uint8"}
_FILL: Final[dict[str, float | int]] = {"float64": np.nan, "float32": np.nan, "float16": np.nan, "int64": -1}
_BFLOAT16_NAN: Final = 0x7FC0
# Of files, the hash of their content is compared.
_NOT_COMPARED: Final = ("software", "format_version", "checksum", "task.path", "task.base.path", "task.adapter.base")


class RunStatus(IntEnum):
    """What became of a run; only EMPTY means that its numbers are not there."""

    EMPTY = 0
    COMPLETE = 1
    DIVERGED = 2
    IMPORTED = 3
    STOPPED = 4  # early, by a search: later snapshots are not there


class ZooFormatError(ValueError):
    """Something that is no zoo, is damaged, or is of a version that this release does not know."""


@dataclass(frozen=True, kw_only=True)
class ZooSpec:
    """All that is settled about a zoo before its first run.

    Args:
        layout: of every network.
        num_runs: R.
        snapshot_steps: inner steps at which snapshots are taken; None if runs differ in them.
        num_snapshots: S; needed only without `snapshot_steps`.
        block_size: G, the runs written at once; the last block may have fewer.
        dtype: of the stored parameters: "float32", "float16" or "bfloat16".
        metric_names: the metrics of each snapshot.
        columns: further numbers of each run (hyperparameters): name -> "float64" or "int64".
        task_config, optimizer_config: JSON-able settings that made the runs.
        seed: from which the seeds of all runs derive.
        splits: which runs are for training and which are held out.
        data_hash: of the data the runs were trained on.
        base_hash: of the tensors that all networks share (`zoo.networks.base.hash_of`); empty if there are none.
        software: versions; compared on resumption only to warn.
        extra: further JSON-able attributes.
    """

    layout: ParamLayout
    num_runs: int
    snapshot_steps: tuple[int, ...] | None = None
    num_snapshots: int | None = None
    block_size: int = 64
    dtype: str = "float32"
    metric_names: tuple[str, ...] = METRICS
    columns: Mapping[str, str] = field(default_factory=dict)
    task_config: Mapping[str, Json] = field(default_factory=dict)
    optimizer_config: Mapping[str, Json] = field(default_factory=dict)
    seed: int = 0
    splits: SplitRule = field(default_factory=SplitRule)
    data_hash: str = ""
    base_hash: str = ""
    software: Mapping[str, str] = field(default_factory=partial(installed_software, "numpy", "zarr"))
    extra: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.snapshot_steps is not None:
            steps = tuple(_integer("each of snapshot_steps", step, at_least=0) for step in self.snapshot_steps)
            object.__setattr__(self, "snapshot_steps", steps)
            if self.num_snapshots not in (None, len(steps)):
                raise ValueError(f"num_snapshots is {self.num_snapshots}, but there are {len(steps)} snapshot_steps")
            object.__setattr__(self, "num_snapshots", len(steps))
        object.__setattr__(self, "metric_names", tuple(self.metric_names))
        object.__setattr__(self, "seed", _integer("seed", self.seed))
        for name in ("num_runs", "block_size", "num_snapshots"):
            object.__setattr__(self, name, _integer(name, getattr(self, name), at_least=1))
        _integer("layout.num_params", self.layout.num_params, at_least=1)
        if (self.layout.base is not None) != bool(self.base_hash):
            raise ValueError(
                f"a base needs both its layout and its hash, got {self.layout.base} and the hash {self.base_hash!r}"
            )
        if self.dtype not in _STORED_DTYPES:
            raise ValueError(f"dtype must be one of {sorted(_STORED_DTYPES)}, got {self.dtype!r}")
        for name, dtype in self.columns.items():
            if dtype not in _COLUMN_DTYPES or name in _RESERVED_COLUMNS:
                raise ValueError(
                    f"column {name!r} of dtype {dtype!r} is not possible: the dtype must be one of {_COLUMN_DTYPES} "
                    f"and the name none of {list(_RESERVED_COLUMNS)}"
                )
        for name in (*self.metric_names, *self.columns):
            if not name.isidentifier():
                raise ValueError(f"names of metrics and columns must be identifiers, got {name!r}")
        if len(set(self.metric_names)) < len(self.metric_names):
            raise ValueError(f"metric_names must be different names, got {self.metric_names}")
        if self.splits.key != "seed" and self.columns.get(self.splits.key) != "int64":
            raise ValueError(f"splits go by {self.splits.key!r}, which must be 'seed' or an int64 column")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(R, S, P)."""
        return self.num_runs, self.num_snapshots or 0, self.layout.num_params

    @property
    def num_blocks(self) -> int:
        return -(-self.num_runs // self.block_size)

    @property
    def stored_dtype(self) -> np.dtype:
        """NumPy type of the bytes in a shard, little-endian."""
        return np.dtype(_STORED_DTYPES[self.dtype]).newbyteorder("<")

    @property
    def run_columns(self) -> dict[str, str]:
        """All arrays under runs/ and their dtypes."""
        return {**_RESERVED_COLUMNS, **self.columns}

    def block_runs(self, block: int) -> range:
        """Runs of a block.

        Raises:
            IndexError: for a block that the zoo does not have.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block must be in 0..{self.num_blocks - 1}, got {block}")
        return range(block * self.block_size, min((block + 1) * self.block_size, self.num_runs))

    def to_attributes(self) -> dict[str, Json]:
        """Attributes of the Zarr group, checksum included."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "layout"}
        values |= {"splits": self.splits.to_dict(), "layout": json.loads(self.layout.to_json())}
        named = {
            _ATTRIBUTES[name]: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
        version = FORMAT_VERSION if self.base_hash else 1
        if version == 1:
            del named["base_hash"]
        attributes: dict[str, Json] = {"format": FORMAT, "format_version": version, **named}
        try:
            attributes = json.loads(json.dumps(attributes, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the settings of a zoo must be JSON (no NaN, no objects): {error}") from error
        return {**attributes, "checksum": attributes_checksum(attributes)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Json]) -> ZooSpec:
        """The spec that wrote these attributes.

        Raises:
            ZooFormatError: if they are no zoo's, damaged, or of a newer version.
        """
        if attributes.get("format") != FORMAT:
            raise ZooFormatError(f"expected a Zarr group with format {FORMAT!r}, got {attributes.get('format')!r}")
        version = attributes.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise ZooFormatError(f"format_version must be an integer, got {version!r}; are the attributes damaged?")
        if version > FORMAT_VERSION:
            raise ZooFormatError(
                f"the zoo has format version {version}, this release reads up to {FORMAT_VERSION}; "
                "upgrade weightfoundry"
            )
        try:
            names = _attribute_names(version)
            values: dict[str, Any] = {field: attributes[name] for field, name in _ATTRIBUTES.items() if name in names}
            values["splits"] = SplitRule.from_dict(values["splits"])
            values["layout"] = ParamLayout.from_json(json.dumps(values["layout"]))
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ZooFormatError(
                f"the attributes in zarr.json are damaged: {error!r}; restore the file from a copy"
            ) from error

    def require_same(self, now: ZooSpec, where: object, *, defaults: Json = None) -> None:
        """Raise SettingsMismatchError, naming each field that differs, unless `now` continues the same zoo.

        Networks on another base are told in words.

        Args:
            now: the settings given now.
            where: the zoo, for the message.
            defaults: what fields have that either side lacks.
        """
        if self.layout == now.layout and self.base_hash != now.base_hash:
            raise SettingsMismatchError(
                f"{where} holds networks on the base {self.base_hash[:19]}..., the task's frozen parameters are "
                f"{now.base_hash[:19]}...: build the task on the same base (`Zoo.base`), or choose another folder"
            )
        begun, given = self.to_attributes(), now.to_attributes()
        same_but_for_data = not differences(begun, given, defaults=defaults, free=(*_NOT_COMPARED, "data_hash"))
        remedy = "the data have changed since: restore them, or choose another folder" if same_but_for_data else REMEDY
        require_same(begun, given, where, defaults=defaults, free=_NOT_COMPARED, remedy=remedy)


# the attribute of each field
_ATTRIBUTES: Final = {one.name: one.name for one in fields(ZooSpec)} | {
    "metric_names": "metrics",
    "task_config": "task",
    "optimizer_config": "optimizer",
}


def _attribute_names(version: int) -> list[str]:
    """Attributes that a version of the format has, beside `format`, `format_version` and `checksum`."""
    return [name for name in _ATTRIBUTES.values() if name != "base_hash" or version > 1]


def block_name(spec: ZooSpec, block: int) -> str:
    """For instance "block 3 (runs 192 to 255)"."""
    runs = spec.block_runs(block)
    return f"block {block} (runs {runs.start} to {runs.stop - 1})"


def array_metadata(spec: ZooSpec) -> dict[str, bytes]:
    """Contents of every zarr.json of a zoo, by path relative to its root."""
    files: dict = {}
    runs, snapshots, params = spec.shape
    block = spec.block_size
    root = zarr.create_group(MemoryStore(files), attributes=spec.to_attributes())
    encoding: dict[str, Any] = {
        "filters": None,
        "serializer": BytesCodec(endian="little"),
        "compressors": [Crc32cCodec()],
    }
    root.create_array(
        "params",
        shape=(runs, snapshots, params),
        shards=(block, snapshots, params),
        chunks=(1, 1, params),
        dtype=_STORED_DTYPES[spec.dtype],
        fill_value=_BFLOAT16_NAN if spec.dtype == "bfloat16" else np.nan,
        attributes={"dtype": spec.dtype},
        dimension_names=("run", "snapshot", "param"),
        **encoding,
    )
    create_base_arrays(root, spec.layout, encoding)
    for name, dtype in small_arrays(spec).items():
        dims = ("run",) if name.startswith("runs/") else ("run", "snapshot")
        root.create_array(
            name,
            shape=(runs, snapshots)[: len(dims)],
            chunks=(block, snapshots)[: len(dims)],
            dtype=dtype,
            fill_value=fill_value(dtype),
            dimension_names=dims,
            **encoding,
        )
    return {name: value.to_bytes() for name, value in files.items()}


def small_arrays(spec: ZooSpec) -> dict[str, str]:
    """Names and dtypes of all arrays but params, status last."""
    names = {"inner_step": "int64"}
    names |= {f"metrics/{name}": "float32" for name in spec.metric_names}
    columns = sorted(spec.run_columns, key=lambda name: (name == "status", name == "checksum", name))
    return names | {f"runs/{name}": spec.run_columns[name] for name in columns}


def fill_value(dtype: str) -> float | int:
    """What stands where nothing was written."""
    return _FILL.get(dtype, 0)


def attributes_checksum(attributes: Mapping[str, Json]) -> str:
    """CRC32C, in hexadecimal, of the format's own attributes as canonical JSON; those added by users do not count."""
    version = attributes.get("format_version")
    names = _attribute_names(version if isinstance(version, int) else FORMAT_VERSION)
    own = {name: attributes.get(name) for name in ("format", "format_version", *names)}
    text = json.dumps(own, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(text.encode()):08x}"


def _integer(name: str, value: object, *, at_least: int | None = None) -> int:
    """A plain integer, also from one of NumPy's."""
    if isinstance(value, Integral) and not isinstance(value, bool) and (at_least is None or int(value) >= at_least):
        return int(value)
    kind = {None: "an integer", 1: "a positive integer"}.get(at_least, f"an integer of at least {at_least}")
    raise ValueError(f"{name} must be {kind}, got {value!r}")
