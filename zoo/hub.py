"""The Hugging Face Hub: files go there as one commit, and are fetched from hf:// addresses. Needs the extra `hub`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from zoo.lazy import needs

SCHEME: Final = "hf://"
CARD: Final = "README.md"
_NOT_CONTENT: Final = (".gitattributes", CARD)


class HubError(OSError):
    """A hub that cannot be reached, or that refused; the message says what it was asked for."""


class UploadOptions(TypedDict, total=False):
    """How something is uploaded.

    `private`: whether a new repository is private, by default what the account has set. `token`: of the account, by
    default that of `hf auth login`. `revision`: branch, made if it is not there, by default the main one. `replace`:
    whether files that are there may go.
    """

    private: bool | None
    token: str | None
    revision: str | None
    replace: bool


def upload(
    files: Mapping[str, Path | bytes], repo_id: str, *, kind: str = "model", **options: Unpack[UploadOptions]
) -> str:
    """Upload files, by their paths in the repository, as one commit; returns its address.

    Args:
        files: what the repository is to hold, its card among them.
        repo_id: USER/NAME; made if it is not there.
        kind: "model" or "dataset".
        **options: see `UploadOptions`.

    Raises:
        FileExistsError: if the repository holds other files, and `replace` is not set.
        HubError: if the hub cannot be reached, or refuses.
        ImportError: without huggingface_hub.
    """
    hub, revision = require_hub(), options.get("revision")
    api = hub.HfApi(token=options.get("token"))
    with _in_one_line(f"upload to {repo_id}"):
        url = api.create_repo(repo_id, repo_type=kind, private=options.get("private"), exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, repo_type=kind, revision=revision)) - set(_NOT_CONTENT)
        if there and not options.get("replace"):
            raise FileExistsError(f"{repo_id} holds {len(there)} files already; replace=True replaces all of them")
        added = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        gone = [hub.CommitOperationDelete(name) for name in sorted(there - files.keys())]
        api.create_commit(
            repo_id, [*added, *gone], commit_message="Upload by weightfoundry", repo_type=kind, revision=revision
        )
    return str(url)


def local_copy(address: str) -> Path:
    """The files at hf://USER/REPO/PATH or hf://datasets/USER/REPO@REVISION/PATH, in the cache of huggingface_hub.

    Raises:
        HubError: if they cannot be fetched.
        FileNotFoundError: if there is nothing.
        ImportError: without huggingface_hub.
    """
    hub = require_hub()
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


def card(repo_id: str, *paragraphs: str, tags: Iterable[str], license: str | None) -> bytes:
    """A card in Markdown, with the header that the hub reads.

    Args:
        repo_id: USER/NAME.
        *paragraphs: of the card, below its title.
        tags: under which it is found, beside "weightfoundry".
        license: as the hub names it, such as "apache-2.0" or "cc-by-4.0"; None if it is not said.
    """
    header = [f"tags: [{', '.join(('weightfoundry', *tags))}]", *([f"license: {license}"] if license else [])]
    title = f"# {repo_id.rpartition('/')[2]}"
    return "\n\n".join(["\n".join(["---", *header, "---"]), title, *paragraphs, ""]).encode()


def facts(rows: Mapping[str, str]) -> str:
    """A table of what is known, in Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def require_hub() -> Any:
    """The library; ImportError with what to install without it."""
    with needs("hf:// is read by huggingface_hub", "'weightfoundry[hub]'"):
        import huggingface_hub
    return huggingface_hub


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turns errors of huggingface_hub, and of whatever it sends requests with, into a HubError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("huggingface_hub", "httpx", "httpx2", "requests"):
            raise
        line = " ".join(str(error).split())[:300] or repr(error)
        raise HubError(f"cannot {what}: {line}") from error
