"""Zoos and checkpoints on the Hugging Face Hub: written there with a card, and fetched from hf:// addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zarr.abc.store import Store
from zarr.storage import LocalStore

from zoo.storage.schema import FORMAT, FORMAT_VERSION, RunStatus

if TYPE_CHECKING:
    from zoo.storage.zoo import Zoo

SCHEME: Final = "hf://"
_CARD: Final = "README.md"
_NOT_OF_A_ZOO: Final = (".gitattributes", _CARD)
_MAX_SLOTS: Final = 60


class HubError(OSError):
    """A hub that cannot be reached, or that refused; the message says what it was asked for."""


def push_to_hub(
    zoo: Zoo, repo_id: str, *, private: bool | None, token: str | None, revision: str | None, replace: bool
) -> str:
    """Upload a zoo; see `Zoo.push_to_hub`."""
    place = zoo.group.store_path
    if not isinstance(place.store, LocalStore):
        raise ValueError(f"{place} is not on this disk; only a zoo in a folder can be uploaded")
    if missing := int((zoo.status == RunStatus.EMPTY).sum()):
        raise ValueError(f"{missing} runs of {place} are not built yet; finish the zoo, then upload it")
    hub = _hub()
    api = hub.HfApi(token=token)
    with _in_one_line(f"upload to {repo_id}"):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, repo_type="dataset", revision=revision)) - set(_NOT_OF_A_ZOO)
        if there and not replace:
            raise FileExistsError(f"{repo_id} holds {len(there)} files already; replace=True replaces all of them")
        folder = Path(place.store.root) / place.path
        added = [
            hub.CommitOperationAdd(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _is_left_out(path.relative_to(folder))
        ]
        added.append(hub.CommitOperationAdd(_CARD, zoo_card(zoo, repo_id).encode()))
        gone = [hub.CommitOperationDelete(name) for name in sorted(there - {one.path_in_repo for one in added})]
        api.create_commit(
            repo_id, [*added, *gone], commit_message="Upload a zoo", repo_type="dataset", revision=revision
        )
    return str(url)


def hub_store(address: str, options: Mapping[str, str]) -> Store:
    """A Zarr store of the files at hf://datasets/USER/REPO@REVISION/PATH, fetched when they are read."""
    _hub()
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(address, storage_options=dict(options), read_only=True)


def local_copy(address: str) -> Path:
    """The files at hf://USER/REPO/PATH or hf://datasets/USER/REPO@REVISION/PATH, in the cache of huggingface_hub.

    Raises:
        HubError: if they cannot be fetched.
        FileNotFoundError: if there is nothing.
        ImportError: without huggingface_hub.
    """
    hub = _hub()
    with _in_one_line(f"fetch {address}"):
        at = hub.HfFileSystem().resolve_path(address)
        inner = at.path_in_repo
        patterns = [inner, f"{inner}/*"] if inner else None
        root = hub.snapshot_download(at.repo_id, repo_type=at.repo_type, revision=at.revision, allow_patterns=patterns)
    found = Path(root) / inner
    if not found.exists():
        raise FileNotFoundError(f"there is nothing at {address}")
    return found


def repository_of(path: Path) -> str | None:
    """The name of the repository that a folder in huggingface_hub's cache is a snapshot of, without its owner."""
    is_snapshot = path.parent.name == "snapshots" and "--" in path.parent.parent.name
    return path.parent.parent.name.rpartition("--")[2] if is_snapshot else None


def zoo_card(zoo: Zoo, repo_id: str) -> str:
    """The card of a zoo: what its attributes say, as Markdown with the header that the hub reads."""
    spec = zoo.spec
    runs, snapshots, params = spec.shape
    statuses = {status.name.lower(): int((zoo.status == status).sum()) for status in RunStatus}
    facts = {
        "runs": f"{runs:,} (" + ", ".join(f"{count:,} {name}" for name, count in statuses.items() if count) + ")",
        "snapshots of a run": f"{snapshots:,}, inner steps {_steps(zoo)}",
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
    return "\n".join(
        [
            "---",
            "tags: [weightfoundry, model-zoo]",
            "---",
            f"# {repo_id.rpartition('/')[2]}",
            "",
            f"A population of {runs:,} trained networks, as a Zarr group of format {FORMAT}, version {FORMAT_VERSION}.",
            "",
            "```python",
            "from zoo import Zoo",
            "",
            f'zoo = Zoo.open("hf://datasets/{repo_id}")',
            "zoo.params[0, -1]  # the last snapshot of the first run",
            "```",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            "## How the runs were made",
            "",
            "```json",
            json.dumps(settings, indent=1),
            "```",
            "",
            "## Tensors",
            "",
            "| name | shape | dtype | kind |",
            "|---|---|---|---|",
            *slots[:_MAX_SLOTS],
            *more,
            "",
        ]
    )


def _is_left_out(path: Path) -> bool:
    """Whether a file is no part of a zoo: a lock, or what a crash left behind."""
    return "claims" in path.parts or any(part.startswith(".") for part in path.parts) or path.name == _CARD


def _steps(zoo: Zoo) -> str:
    steps = zoo.inner_step[zoo.inner_step >= 0]
    return f"{steps.min():,} to {steps.max():,}"


def _hub():  # type: ignore[no-untyped-def]
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("hf:// needs the extra hub: pip install 'weightfoundry[hub]'", name=error.name) from error
    return huggingface_hub


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turns errors of huggingface_hub, and of whatever it sends requests with, into a HubError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("huggingface_hub", "httpx", "httpx2", "requests"):
            raise
        raise HubError(f"cannot {what}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or repr(error)
