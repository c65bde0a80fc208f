"""Zoos on the Hugging Face Hub: data sets with a card, read where they lie or fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

from zarr.abc.store import Store
from zarr.storage import LocalStore

from zoo.hub import CARD, UploadOptions, card, facts, require_hub, upload
from zoo.storage.schema import FORMAT, FORMAT_VERSION, RunStatus

if TYPE_CHECKING:
    from zoo.storage.zoo import Zoo

_MAX_SLOTS: Final = 60


def push_to_hub(zoo: Zoo, repo_id: str, *, license: str | None, **options: Unpack[UploadOptions]) -> str:
    """Upload a zoo; see `Zoo.push_to_hub`."""
    place = zoo.group.store_path
    if not isinstance(place.store, LocalStore):
        raise ValueError(f"{place} is not on this disk; only a zoo in a folder can be uploaded")
    if missing := int((zoo.status == RunStatus.EMPTY).sum()):
        raise ValueError(f"{missing} runs of {place} are not built yet; finish the zoo, then upload it")
    folder = Path(place.store.root) / place.path
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _is_left_out(path.relative_to(folder))
    }
    return upload({**files, CARD: zoo_card(zoo, repo_id, license)}, repo_id, kind="dataset", **options)


def hub_store(address: str, options: Mapping[str, str]) -> Store:
    """A Zarr store of the files at hf://datasets/USER/REPO@REVISION/PATH, fetched when they are read."""
    require_hub()
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(address, storage_options=dict(options), read_only=True)


def zoo_card(zoo: Zoo, repo_id: str, license: str | None = None) -> bytes:
    """The card of a zoo: what its attributes say."""
    spec = zoo.spec
    runs, snapshots, params = spec.shape
    statuses = {status.name.lower(): int((zoo.status == status).sum()) for status in RunStatus}
    steps = zoo.inner_step[zoo.inner_step >= 0]
    known = {
        "runs": f"{runs:,} (" + ", ".join(f"{count:,} {name}" for name, count in statuses.items() if count) + ")",
        "snapshots of a run": f"{snapshots:,}, inner steps {steps.min():,} to {steps.max():,}",
        "numbers of a network": f"{params:,}, of which {zoo.layout.num_trainable:,} are trained; {spec.dtype}",
        "metrics": ", ".join(spec.metric_names) or "none",
        "columns of runs": ", ".join(spec.run_columns),
        "splits": ", ".join(f"{name} {len(zoo.split(name)):,} runs" for name in spec.splits.fractions),
        "hash of the data": spec.data_hash or "unknown",
        "software": ", ".join(f"{name} {version}" for name, version in spec.software.items()),
    }
    slots = [f"| {slot.name} | {list(slot.shape)} | {slot.dtype} | {slot.kind}, {slot.role} |" for slot in zoo.layout]
    more = [f"| and {len(slots) - _MAX_SLOTS} more | | | |"] if len(slots) > _MAX_SLOTS else []
    settings = {"task": dict(spec.task_config), "optimizer": dict(spec.optimizer_config), "seed": spec.seed}
    loading = f'zoo = Zoo.open("hf://datasets/{repo_id}")\nzoo.params[0, -1]  # the last snapshot of the first run'
    return card(
        repo_id,
        f"A population of {runs:,} trained networks, as a Zarr group of format {FORMAT}, version {FORMAT_VERSION}.",
        f"```python\nfrom zoo import Zoo\n\n{loading}\n```",
        facts(known),
        "## How the runs were made",
        f"```json\n{json.dumps(settings, indent=1)}\n```",
        "## Tensors",
        "\n".join(["| name | shape | dtype | kind |", "|---|---|---|---|", *slots[:_MAX_SLOTS], *more]),
        tags=["model-zoo"],
        license=license,
    )


def _is_left_out(path: Path) -> bool:
    """Whether a file is no part of a zoo: a lock, or what a crash left behind."""
    return "claims" in path.parts or any(part.startswith(".") for part in path.parts) or path.name == CARD
