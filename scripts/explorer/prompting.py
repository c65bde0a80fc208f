"""Networks on request: samples for a prompt, what they have, what they are nearest to, and files of them.

Everything follows from the request alone, so a download is the same request again, and answers are kept. Examples are
given before, and named by their hash in the request.

Legend: B samples, P numbers of one network.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save

from generator import GeneratedParams, ParameterPipeline
from generator.evaluation.neighbours import nearest
from generator.prompts.examples import NO_LABEL, Examples, load_examples
from zoo import Task, Zoo
from zoo.inspection.summary import last_snapshots
from zoo.storage.selection import evenly
from zoo.tasks.families.family_task import FamilyTask

from .networks import affordable, image_shape, weight_pictures

_MAX_SAMPLES: Final = 16
_MAX_KEPT: Final = 32  # answers, and sets of examples
_MAX_COMPARED: Final = 2000  # runs
FORMATS: Final = ("safetensors", "peft")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the generator.

    Attributes:
        prompt: (metric, value) pairs.
        num_samples: networks to make.
        start: run whose first snapshot is the start; None for networks from noise.
        seed: of the noise.
        examples: name that `Prompting.take_examples` gave; empty for none.
    """

    prompt: tuple[tuple[str, float], ...]
    num_samples: int = 4
    start: int | None = None
    seed: int = 0
    examples: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= _MAX_SAMPLES:
            raise ValueError(f"number of samples must be from 1 to {_MAX_SAMPLES}, got {self.num_samples}")


@dataclass
class Prompting:
    """A generator beside the zoo that it belongs to.

    Attributes:
        pipe: the generator.
        zoo: whose networks are starts and neighbours.
        task: on which samples are measured; None if the zoo records none.
    """

    pipe: ParameterPipeline
    zoo: Zoo
    task: Task | None
    _kept: dict[Request, GeneratedParams] = field(default_factory=dict)
    _examples: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        runs = self.zoo.usable_runs()
        self._runs = evenly(runs, affordable(self.zoo.layout, _MAX_COMPARED))
        self._pairs = np.stack([self._runs, last_snapshots(self.zoo)[self._runs]], axis=1)
        self._others: torch.Tensor | None = None

    def summary(self) -> dict[str, Any]:
        """What can be asked: ranges by metric, whether there may be a start or examples, and formats of downloads."""
        kind = self.pipe.model.example_kind
        return {
            "ranges": {name: [known.low, known.high] for name, known in self.pipe.model.ranges.items()},
            "starts": bool(self.pipe.model.config["use_start"]),
            "noise": bool(self.pipe.model.num_drawn),
            "examples": kind and {"shape": kind.shape, "num_classes": kind.num_classes},
            "formats": list(FORMATS if self._adapted() is not None else FORMATS[:1]),
        }

    def take_examples(self, name: str, content: bytes) -> dict[str, Any]:
        """Keep the examples of an uploaded file for requests, which call them by what is returned as `examples`.

        Raises:
            ValueError: if the generator cannot be prompted by them.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"examples{Path(name).suffix}"
            path.write_bytes(content)
            try:
                value = load_examples(str(path))
            except (ValueError, OSError) as error:
                raise ValueError(str(error).replace(str(path), name)) from None
        found = Examples.read(value, self.pipe.model.example_kind, 1)
        inputs, targets = found.inputs[0], found.targets[0]
        key = hashlib.sha256(name.encode() + b"\0" + content).hexdigest()
        with self._lock:
            _keep(self._examples, key, (inputs, targets))
        num_labelled = int(targets.reshape(len(targets), -1).ne(NO_LABEL).any(1).sum())
        return {"examples": key, "count": len(inputs), "num_labelled": num_labelled}

    def sample(self, request: Request) -> GeneratedParams:
        """Networks for a request: the same for the same request."""
        with self._lock:  # one model, several threads
            if request not in self._kept:
                start = None
                if request.start is not None:
                    start = torch.from_numpy(self.zoo.read([(request.start, 0)])[0])
                prompt: dict[str, Any] = dict(request.prompt)
                if request.examples:
                    if request.examples not in self._examples:
                        raise ValueError("these examples are not kept any more; choose their file again")
                    prompt["examples"] = self._examples[request.examples]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # sliders end where training runs did
                    made = self.pipe(
                        start,
                        prompt,
                        num_samples=request.num_samples,
                        task=self.task,
                        layout=self.zoo.layout,
                        generator=torch.Generator().manual_seed(request.seed),
                    )
                _keep(self._kept, request, made)
            return self._kept[request]

    def answer(self, request: Request) -> dict[str, Any]:
        """Samples with their metrics, their nearest run by matched distance, and pictures of their weights."""
        made = self.sample(request)
        params = made.params.float().cpu()
        neighbours = nearest(self.zoo.layout, params, self._compared())
        values = self._measured(params)
        return {
            "samples": [
                {
                    "metrics": {name: value[i] for name, value in values.items()},
                    "nearest": int(self._runs[neighbours.index[i, 0]]),
                    "distance": neighbours.distances[i, 0],
                }
                for i in range(len(made))
            ],
            "num_compared": len(self._runs),
            "tensors": weight_pictures(made.layout, params, image_shape(self.task))[:1],
        }

    def file(self, request: Request, index: int, kind: str) -> tuple[str, bytes]:
        """Name and bytes of a sample: safetensors, or a folder for PEFT as a zip file."""
        states = self.sample(request).state_dicts()
        if not 0 <= index < len(states):
            raise ValueError(f"sample must be from 0 to {len(states) - 1}, got {index}")
        state = {name: value.contiguous().cpu() for name, value in states[index].items()}
        if kind == "safetensors":
            return f"sample_{index}.safetensors", save(state)
        adapted = self._adapted()
        if kind != "peft" or adapted is None:
            raise ValueError(f"format must be one of {self.summary()['formats']}, got {kind!r}")
        return f"sample_{index}_peft.zip", _peft_zip(state, adapted)

    def _measured(self, params: torch.Tensor) -> dict[str, torch.Tensor]:
        """Metrics by name, each (B,); none without a task, or in a family of them, of which samples are no member."""
        if self.task is None or isinstance(self.task, FamilyTask):
            return {}
        found = {split: self.task.evaluate(params, split) for split in ("val", "test")}
        return {f"{split}_{name}": value for split, values in found.items() for name, value in values.items()}

    def _compared(self) -> torch.Tensor:
        """Last networks of the runs, read once."""
        with self._lock:
            if self._others is None:
                self._others = torch.from_numpy(self.zoo.read(self._pairs))
            return self._others

    def _adapted(self) -> torch.nn.Module | Mapping[str, Any] | None:
        """What PEFT's format needs to know of the networks; None if they are no adapters."""
        extra = self.zoo.attributes.get("extra")
        if isinstance(extra, Mapping) and isinstance(config := extra.get("adapter_config"), Mapping):
            return config
        has_adapter = self.task is not None and "adapter" in self.zoo.task_config
        return self.task.make_model() if has_adapter and self.task is not None else None


def _keep(kept: dict[Any, Any], key: object, value: object) -> None:
    """Put a value among the last _MAX_KEPT."""
    while len(kept) >= _MAX_KEPT:
        kept.pop(next(iter(kept)))
    kept[key] = value


def _peft_zip(state: Mapping[str, torch.Tensor], adapted: torch.nn.Module | Mapping[str, Any]) -> bytes:
    from zoo.checkpoints.adapters import save_adapter

    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(buffer, "w") as packed:
        folder = Path(name) / "adapter"
        save_adapter(folder, state, adapted)
        for path in sorted(folder.iterdir()):
            packed.write(path, f"adapter/{path.name}")
    return buffer.getvalue()
