"""Meta-parameters in files: those of the package, your own, and the formats of PyLO.

A file is safetensors with one tensor `theta` (M,) and text metadata: `format`, `version`, `rule`, `rule_config`
(JSON), `hash`, and `info` (JSON: recipe, seeds, data hash, curve of the meta-loss, whatever the writer knows). Beside
each file of the package stands a card NAME.md: what it was trained on, at which cost, by which command, and its
limits.

Legend: M meta-parameters, H hidden units.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Unpack

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learned_opt.pretrained.pylo_format import are_velo, is_pylo, rule_and_theta
from learned_opt.rules.registry import get_rule
from learned_opt.rules.rule import RuleOption, UpdateRule
from zoo.hub import CARD, SCHEME, UploadOptions, card, facts, local_copy, upload

FORMAT: Final = "weightfoundry.theta"
VERSION: Final = 3
HUB_FILE: Final = "model.safetensors"  # of a repository
DIRECTORY: Final = Path(__file__).parent

Source = str | Path | Sequence[str | Path]  # of meta-parameters, see `load_pretrained`
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class ThetaFileError(ValueError):
    """A file that holds no meta-parameters this release can read."""


@dataclass(frozen=True)
class Pretrained:
    """An update rule with its meta-parameters.

    Args:
        rule: the rule.
        theta: (M,) float32.
        name: of the file, or any other.
        info: what is known of its making.
    """

    rule: UpdateRule
    theta: Tensor
    name: str = ""
    info: Mapping[str, Json] = field(default_factory=dict)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **options: Unpack[UploadOptions]) -> str:
        """Upload rule and theta to the Hugging Face Hub with a filled-in card; returns the address.

        `LearnedOptimizer(model, "USER/NAME")` then trains with them. Needs the extra `hub`.

        Args:
            repo_id: USER/NAME; made if it is not there.
            license: that the card names, such as "apache-2.0".
            **options: `private`, `token`, `revision` and `replace`, see `zoo.hub.UploadOptions`.

        Raises:
            FileExistsError: if the repository holds files, and `replace` is not set.
            HubError: if the hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            save_theta(path := Path(folder, HUB_FILE), self.theta, self.rule, self.info)
            return upload({HUB_FILE: path, CARD: theta_card(self, repo_id, license)}, repo_id, **options)

    def __post_init__(self) -> None:
        if tuple(self.theta.shape) != (self.rule.num_theta,):
            raise ValueError(
                f"rule {self.rule.name!r} with {self.rule.config} has {self.rule.num_theta:,} meta-parameters, "
                f"got theta of shape {tuple(self.theta.shape)}; is it of another rule or release?"
            )

    @property
    def hash(self) -> str:
        """Short digest of the rule, its options and theta."""
        return theta_hash(self.rule.name, self.rule.config, self.theta)


def available() -> tuple[str, ...]:
    """Names that `load_pretrained` finds in the package."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.safetensors")))


def load_pretrained(source: Source) -> Pretrained:
    """Meta-parameters by name, file or hub id.

    Args:
        source: a name of `available()`; a path to a file of `save_theta` or of PyLO (MetaMLP or CELO2MLP, as
            safetensors or a pickled state dict); or the id `owner/name` of a repository of the Hugging Face Hub, ours
            or PyLO's (extra `hub`). VeLO is a pair of files or ids: (VeLORNN, VeLOMLP).

    Raises:
        KeyError: for a name that is neither.
        HubError: if the repository cannot be fetched.
        ThetaFileError: if the file is damaged, of a newer version or of another kind.
    """
    if isinstance(source, tuple | list) and source and all(isinstance(part, str | Path) for part in source):
        return load_theta(*(_located(part) for part in source))
    if not isinstance(source, str | Path):
        raise TypeError(
            f"theta must be a name of {available()}, a file or a Pretrained, got {source!r}; a learning rate is none, "
            "lr=... multiplies the learned step"
        )
    return load_theta(_located(source))


def _located(source: str | Path) -> Path:
    """The file of a name, a path or a hub id."""
    if isinstance(source, str) and source in available():
        return DIRECTORY / f"{source}.safetensors"
    if Path(source).is_file():
        return Path(source)
    if isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/")):
        return Path(local_copy(f"{SCHEME}{source}/{HUB_FILE}"))
    raise KeyError(f"no pretrained optimizer {str(source)!r}; the package has {available()}; a file must exist")


def save_theta(path: str | Path, theta: Tensor, rule: UpdateRule, info: Mapping[str, Json] | None = None) -> None:
    """Write meta-parameters (M,) of a rule to a safetensors file."""
    pretrained = Pretrained(rule, theta.detach().cpu().to(torch.float32).contiguous())
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "rule": rule.name,
        "rule_config": json.dumps(rule.config, sort_keys=True),
        "hash": pretrained.hash,
        "info": json.dumps(info or {}, sort_keys=True),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"theta": pretrained.theta}, path, metadata)


def load_theta(path: str | Path, *others: str | Path) -> Pretrained:
    """Meta-parameters from a file of `save_theta` or of PyLO, whose VeLO has two.

    Raises:
        ThetaFileError: if the file is damaged, of a newer version or of another kind.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if others:
        tensors = _joined([tensors, *(_read(Path(other))[0] for other in others)], (path, *others))
    if is_pylo(tensors):
        rule, theta = rule_and_theta(tensors)
        return Pretrained(rule, theta, path.stem, {"origin": "PyLO"})
    if metadata.get("format") != FORMAT or "theta" not in tensors:
        raise ThetaFileError(
            f"{path} holds no meta-parameters: expected a tensor 'theta' or the layers of a PyLO network, "
            f"got {sorted(tensors)[:8]}"
        )
    version = int(metadata.get("version", 0))
    if version > VERSION:
        raise ThetaFileError(f"{path} has version {version}, this release reads up to {VERSION}; upgrade weightfoundry")
    options: dict[str, RuleOption] = json.loads(metadata["rule_config"])
    theta = tensors["theta"].to(torch.float32)
    if theta_hash(metadata["rule"], options, theta) != metadata["hash"]:
        raise ThetaFileError(f"{path} is damaged: its numbers do not have the recorded hash {metadata['hash']}")
    return Pretrained(get_rule(metadata["rule"], **options), theta, path.stem, json.loads(metadata["info"]))


def _joined(parts: Sequence[Mapping[str, Tensor]], paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """Tensors of the two files of VeLO; nothing else is one theta in several files."""
    if len(parts) != 2 or not are_velo(*parts):
        files = [Path(path).name for path in paths]
        raise ThetaFileError(f"several files are one theta only of PyLO's VeLO, (RNN_FILE, MLP_FILE), got {files}")
    return {**parts[0], **parts[1]}


def theta_card(pretrained: Pretrained, repo_id: str, license: str | None = None) -> bytes:
    """The card of a theta: that of the package if it is one of its own, else what its file says of its making."""
    rule, info = pretrained.rule, pretrained.info
    known = {"rule": f"{rule.name} `{json.dumps(dict(rule.config), sort_keys=True)}`", "hash": pretrained.hash}
    known |= {
        "meta-parameters": f"{rule.num_theta:,}",
        "needs num_training_steps": "yes" if rule.uses_horizon else "no",
    }
    for name in ("command", "seed", "data_hash", "num_inner_steps"):
        if name in info:
            known[name.replace("_", " ")] = f"{info[name]}"
    for name in ("meta_loss", "validation"):
        if isinstance(curve := info.get(name), list) and curve:
            known[name.replace("_", "-")] = f"{curve[0]} at the beginning, {curve[-1]} at the end"
    horizon = ", num_training_steps=T" if rule.uses_horizon else ""
    loading = f'optimizer = LearnedOptimizer(model, "{repo_id}"{horizon})'
    made = []
    if pretrained.name in available() and load_pretrained(pretrained.name).hash == pretrained.hash:
        made = ["## How it was made, and what it is worth"]
        made.append((DIRECTORY / f"{pretrained.name}.md").read_text().partition("\n")[2].strip())
    return card(
        repo_id,
        "Meta-parameters of a learned optimizer.",
        f"```python\nfrom learned_opt import LearnedOptimizer\n\n{loading}\n```",
        facts(known),
        *made,
        tags=["learned-optimizer"],
        license=license,
    )


def theta_hash(rule: str, options: Mapping[str, RuleOption], theta: Tensor) -> str:
    """Short digest of meta-parameters and the rule they belong to."""
    digest = hashlib.sha256(json.dumps([rule, dict(options)], sort_keys=True).encode())
    digest.update(theta.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text metadata of a safetensors file or a pickled state dict."""
    if path.suffix in (".pt", ".pth", ".bin"):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise ThetaFileError(f"{path} holds no state dict, got {type(loaded).__name__}")
        return loaded, {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ThetaFileError(f"{path} is damaged or no safetensors file: {error}") from error
