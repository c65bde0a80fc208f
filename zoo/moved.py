"""Module paths of release 0.1, which had no rooms: they are imported from where they are now, with a warning.

Scripts of users name them, and so do the pipelines that 0.1 saved.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

_ROOMS: Final = {
    "zoo.networks": "alignment architectures initialization layout metrics parametrization symmetry",
    "zoo.tasks": "cartpole datasets mnist1d objectives task",
    "zoo.training": "batches muon optimizers population schedules",
    "zoo.storage": "selection shards streaming",
    "zoo.building": "build",
    "generator.model": "batch_norm context denoiser fingerprints objectives",
    "generator.tokens": "normalizer windows",
    "generator.prompts": "calibration prompt",
    "learned_opt.rules": "controller features tensor_specs",
    "learned_opt.optimizer": "param_groups torch_optimizer",
}
_RENAMED: Final = {
    "zoo.interop": "zoo.checkpoints.importer",
    "zoo.store": "zoo.storage.zoo",
    "zoo.inner_loop": "zoo.training.inner_step",
    "zoo.policy_task": "zoo.tasks.policies",
    "zoo.array_files": "zoo.tasks.files.arrays",
    "zoo.subset_tasks": "zoo.tasks.families.label_subsets",
    "generator.dataset": "generator.training.pairs",
    "generator.prompt_alignment": "generator.alignment",
    "generator.train": "generator.training.train",
    "learned_opt.update_rule": "learned_opt.rules.rule",
    "learned_opt.mlp_rule": "learned_opt.rules.mlp",
    "learned_opt.normalized_rule": "learned_opt.rules.normalized",
    "learned_opt.celo2_rule": "learned_opt.rules.celo2",
    "learned_opt.population_optimizer": "learned_opt.rules.population",
}
MOVED: Final = _RENAMED | {
    f"{room.partition('.')[0]}.{name}": f"{room}.{name}" for room, names in _ROOMS.items() for name in names.split()
}


class _MovedModules(MetaPathFinder, Loader):
    """Finds what no other finder of Python does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} has moved to {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


def find_moved_modules() -> None:
    """Let Python's import find the paths of `MOVED`."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
