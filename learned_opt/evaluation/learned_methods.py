"""Learned optimizers, their untrained frame and Celo2 as methods of the comparison.

Legend: N networks, H settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from torch import Tensor

from learned_opt.evaluation.rivals import COSINE, LEARNING_RATES, Method, rivals
from learned_opt.pretrained.files import Pretrained, available, load_pretrained, theta_hash
from learned_opt.rules.celo2 import STEP_SIZE, Celo2Rule
from learned_opt.rules.controller import encode_scalars
from learned_opt.rules.normalized import NormalizedRule
from learned_opt.rules.population import PopulationOptimizer
from zoo.training.optimizers import InnerOptimizer
from zoo.training.schedules import Schedule

UNTRAINED_FRAME: Final = "untrained frame"
DECAYED: Final = "-wsd"
_WSD: Final = Schedule("wsd")


def learned_methods(sources: Mapping[str, Sequence[str | Path]]) -> dict[str, list[Method]]:
    """Learned optimizers, nothing to tune: for each name one method a file.

    Args:
        sources: name -> files, or names in the package, that differ in their meta-seed alone. Under a name that ends
            in "-wsd" a rule that knows no horizon runs with its multiplier, 1, decayed to zero in the last fifth.
    """
    return {name: _meta_seeds(name, [load_pretrained(source) for source in group]) for name, group in sources.items()}


def named_rivals(
    names: Sequence[str], learning_rates: tuple[float, ...], celo2_file: str | Path | None = None
) -> list[Method]:
    """What learned optimizers are compared with, by name: `rivals`, the untrained frame, and Celo2 if it has a file.

    Raises:
        ValueError: for an unknown name.
    """
    known = [*rivals(learning_rates), untrained_frame()]
    if celo2_file:
        known.append(celo2(celo2_file, learning_rates))
    by_name = {method.name: method for method in known}
    if unknown := sorted(set(names) - set(by_name)):
        raise ValueError(f"rivals must be among {sorted(by_name)}, got {unknown}")
    return [by_name[name] for name in names]


def shipped(methods: Sequence[Method]) -> dict[str, str]:
    """Name in the package -> the method that has its weights, where there is one."""
    by_hash = {method.identity: method.name for method in methods}
    hashes = {name: load_pretrained(name).hash for name in available()}
    return {name: by_hash[digest] for name, digest in hashes.items() if digest in by_hash}


def untrained_frame() -> Method:
    """The normalised rule before any meta-training, with its controller off, at multiples of its base step.

    What the hand-made part of `mulo-norm` is worth: direction, decay to zero, width and depth rules. Its one best
    constant is the multiple with the lowest geometric mean over all tasks.
    """
    rule = NormalizedRule(feedback=False)
    off = encode_scalars({"noise_power": 0.0, "agreement_rate": 1e-9})

    def make(lr: Tensor) -> InnerOptimizer:
        scaled = off.repeat(len(lr), 1)
        scaled[:, 0] += lr.log().to(off)  # the first scalar is the rate, which is exponential in theta
        return PopulationOptimizer(rule, scaled)

    return Method(UNTRAINED_FRAME, (0.25, 0.5, 1.0, 2.0, 4.0), make, theta_hash(UNTRAINED_FRAME, rule.config, off))


def celo2(path: str | Path, learning_rates: tuple[float, ...] = LEARNING_RATES) -> Method:
    """Celo2 from a file of PyLO, without weight decay; its rule asks for a learning rate and a schedule."""
    loaded = load_pretrained(path)
    if not isinstance(loaded.rule, Celo2Rule):
        raise ValueError(f"{path} must hold a CELO2MLP, got a theta of rule {loaded.rule.name!r}")

    def make(lr: Tensor) -> InnerOptimizer:
        return PopulationOptimizer(loaded.rule, loaded.theta, lr=lr / STEP_SIZE, schedule=COSINE)

    return Method("Celo2 cosine", learning_rates, make, identity=f"cosine {loaded.hash}")


def _meta_seeds(name: str, group: Sequence[Pretrained]) -> list[Method]:
    """One method for each theta, its meta-seed in its name if there are several."""

    schedule = _WSD if name.endswith(DECAYED) else None

    def method(loaded: Pretrained, title: str) -> Method:
        def make(lr: Tensor) -> InnerOptimizer:
            return PopulationOptimizer(loaded.rule, loaded.theta, schedule=schedule)

        return Method(title, (1.0,), make, identity=f"wsd {loaded.hash}" if schedule else loaded.hash)

    if len(group) == 1:
        return [method(group[0], name)]
    titles = [f"{name}, meta-seed {loaded.info.get('seed', index)}" for index, loaded in enumerate(group)]
    if len(set(titles)) < len(titles):
        raise ValueError(f"files of {name!r} must differ in their meta-seed, got {titles}")
    return [method(loaded, title) for loaded, title in zip(group, titles, strict=True)]
