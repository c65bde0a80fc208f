"""Steps spent where they matter: Optuna proposes the hyperparameters of a block's runs, and stops runs that do badly.

The space is the ranges among the optimizer's options. The runs of a block get their values together, from what the
blocks before it have shown; at each snapshot those of its runs are stopped that the pruner gives up. A zoo records
both, proposals in the columns of its runs, stops in their status and inner steps. Proposals follow from the zoo's seed
and the recorded results, so a zoo that is continued or built again repeats.

Legend: N runs of a block.

Sources: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization" (the sampler "tpe"); Li et al. 2018,
"Hyperband" (arXiv 1603.06560).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from zoo.building.hyperparameters import is_range
from zoo.building.plan import AUTO, TOGETHER, BuildPlan
from zoo.lazy import needs
from zoo.networks.initialization import derive_seed
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo

if TYPE_CHECKING:
    import optuna

SAMPLERS: Final = ("tpe", "random")
PRUNERS: Final = ("hyperband", "none")


@dataclass(frozen=True, kw_only=True)
class Search:
    """How hyperparameters are proposed, and runs stopped.

    Args:
        metric: one of the zoo's, which is to become small.
        sampler: "tpe", which learns from earlier blocks, or "random".
        pruner: "hyperband", or "none" to stop no run.
        reduction_factor: of Hyperband: one of so many runs continues at each of its rungs.
    """

    metric: str = "val_loss"
    sampler: str = "tpe"
    pruner: str = "hyperband"
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS or self.pruner not in PRUNERS:
            raise ValueError(
                f"sampler must be one of {SAMPLERS} and pruner one of {PRUNERS}, got {self.sampler!r}, {self.pruner!r}"
            )
        if not isinstance(self.reduction_factor, int) or self.reduction_factor < 2:
            raise ValueError(f"reduction_factor must be an integer of at least 2, got {self.reduction_factor!r}")


def checked_search(plan: BuildPlan) -> Search:
    """The search of a plan.

    Raises:
        ImportError: without Optuna.
        ValueError: if there is nothing to search or no such metric, or runs would not train together.
    """
    options: Any = plan.search
    known = [field.name for field in fields(Search)]
    if not isinstance(options, Mapping) or not options.keys() <= set(known):
        raise ValueError(f"search must map some of {known} to values, {{}} for all defaults, got {options!r}")
    search = Search(**options)
    if not spaces(plan):
        raise ValueError(
            "search needs a range among the optimizer's options, such as lr={log_uniform: [0.001, 0.1]}, "
            f"got {plan.optimizer!r}"
        )
    names = [f"{split}_{name}" for split in plan.evaluated_splits for name in plan.task.metric_names]
    if search.metric not in names:
        raise ValueError(f"search.metric must be one of {names}, got {search.metric!r}")
    if plan.execution not in (AUTO, TOGETHER) or plan.task.layout.is_large:
        raise ValueError("search is of runs that train together: not of large networks, nor with another execution")
    with needs("searches are Optuna's", "'weightfoundry[search]'"):
        import optuna  # noqa: F401
    return search


def spaces(plan: BuildPlan) -> dict[str, Mapping[str, Sequence[float]]]:
    """The ranges among the optimizer's options, by name."""
    options = plan.optimizer if isinstance(plan.optimizer, Mapping) else {}
    return {name: value for name, value in options.items() if is_range(value)}  # type: ignore[misc]


class BlockSearch:
    """The search of one block, after all blocks before it.

    Attributes:
        values: hyperparameters of its runs by name, each (N,).

    Args:
        plan: of the zoo.
        runs: of the block.
        zoo: in which all earlier runs are.
    """

    def __init__(self, plan: BuildPlan, runs: range, zoo: Zoo) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = checked_search(plan)
        self._space = {name: _distribution(value) for name, value in spaces(plan).items()}
        seed = derive_seed(plan.seed, "search", runs[0]) % 2**32
        study = optuna.create_study(
            study_name="zoo", sampler=_sampler(self._search, seed), pruner=_pruner(self._search, plan)
        )
        study.add_trials([self._finished(zoo, run) for run in range(runs[0])])
        self._trials = [study.ask(self._space) for _ in runs]
        self.values = {
            name: torch.tensor([trial.params[name] for trial in self._trials], dtype=torch.float64)
            for name in self._space
        }

    def stopped(self, rows: np.ndarray, inner_step: int, metrics: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which of the runs in those rows of the block to stop, by their metrics (N,) after that step."""
        values = metrics[self._search.metric]
        for row in rows:
            self._trials[row].report(float(values[row]), inner_step)
        return np.array([self._trials[row].should_prune() for row in rows], bool)

    def _finished(self, zoo: Zoo, run: int) -> optuna.trial.FrozenTrial:
        """A run of an earlier block, as Optuna knows it."""
        import optuna

        steps, values = zoo.inner_step[run], zoo.metric(self._search.metric)[run]
        seen = {int(step): float(value) for step, value in zip(steps, values, strict=True) if step > 0}
        is_whole = zoo.status[run] == RunStatus.COMPLETE
        return optuna.trial.create_trial(
            params={name: float(zoo.runs[name][run]) for name in self._space},
            distributions=self._space,
            intermediate_values=seen,
            value=list(seen.values())[-1] if is_whole else None,
            state=optuna.trial.TrialState.COMPLETE if is_whole else optuna.trial.TrialState.PRUNED,
        )


def with_values(plan: BuildPlan, values: Mapping[str, Tensor]) -> BuildPlan:
    """The plan of runs whose hyperparameters are given, each (N,)."""
    options = cast("Mapping[str, Any]", plan.optimizer)
    return replace(plan, optimizer={**options, **{name: {"given": value.tolist()} for name, value in values.items()}})


def _distribution(space: Mapping[str, Sequence[float]]) -> optuna.distributions.BaseDistribution:
    import optuna

    ((kind, values),) = space.items()
    if kind == "choice":
        return optuna.distributions.CategoricalDistribution([float(value) for value in values])
    low, high = values
    return optuna.distributions.FloatDistribution(low, high, log=kind == "log_uniform")


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # the runs of a block differ


def _pruner(search: Search, plan: BuildPlan) -> optuna.pruners.BasePruner:
    import optuna

    if search.pruner == "none":
        return optuna.pruners.NopPruner()
    first = next(step for step in plan.steps if step > 0)
    return optuna.pruners.HyperbandPruner(first, plan.num_steps, search.reduction_factor)
