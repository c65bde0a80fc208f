"""A finished comparison: its results, tasks and learned optimizers, with the methods that are derived from others.

Legend: K tasks, H settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from learned_opt.evaluation.comparison import Results, joined
from learned_opt.evaluation.learned_methods import UNTRAINED_FRAME
from learned_opt.evaluation.tasks import EvaluationTask

REFERENCE: Final = "AdamW cosine"
TUNED_MUON: Final = "Muon cosine, lr and momentum tuned"
ONE_CONSTANT: Final = "{}, one constant"
_MUON_PREFIX: Final = "Muon "
_SPREAD_GROUPS: Final = ("main", "far")  # of many tasks, over which ratios are averaged


@dataclass(frozen=True)
class Comparison:
    """Finished results and what they are of.

    Args:
        results: of every method.
        tasks: all of them.
        learned: name of a learned optimizer -> its methods, one a meta-seed, in the same order for all names.
        shipped: name in the package -> the method among them that has its weights.
    """

    results: Results
    tasks: Sequence[EvaluationTask]
    learned: Mapping[str, Sequence[str]]
    shipped: Mapping[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, list[str]]:
        """Names of tasks by title: each group, and what meta-training never drew of the large ones."""
        groups: dict[str, list[str]] = {}
        for task in self.tasks:
            groups.setdefault(task.group, []).append(task.name)
        unseen = [task.name for task in self.tasks if task.group in _SPREAD_GROUPS and not task.seen_data]
        names = " and ".join(name for name in _SPREAD_GROUPS if name in groups)
        return groups | ({f"{names}, data never drawn": unseen} if unseen else {})

    def completed(self, tasks: Sequence[str]) -> Results:
        """Methods that have all these tasks, with tuned Muon and single constants among them."""
        complete = {method: by_task for method, by_task in self.results.items() if set(tasks) <= set(by_task)}
        shown = with_tuned_muon(complete)
        if len(tasks) > 1:
            for method in (UNTRAINED_FRAME, REFERENCE):
                if method in shown:
                    shown = with_one_constant(shown, method, tasks)
        return shown


def with_tuned_muon(results: Results) -> Results:
    """Results with one more method: Muon at the best of its momenta and learning rates for each task."""
    variants = [name for name in results if name.startswith(_MUON_PREFIX)]
    if len(variants) < 2:
        return results
    tasks = set.intersection(*(set(results[name]) for name in variants))
    merged = {task: joined([results[name][task] for name in variants]) for task in tasks}
    return {**results, TUNED_MUON: merged}


def with_one_constant(results: Results, method: str, tasks: Sequence[str]) -> Results:
    """Results with one more method: `method` at the single setting that is best over all tasks together."""
    by_task = results[method]
    logs = np.stack([np.log(by_task[task].measure("mean_loss")).mean(1) for task in tasks])  # (K, H)
    best = int(logs.mean(0).argmin())
    return {**results, ONE_CONSTANT.format(method): {task: by_task[task].setting(best) for task in tasks}}
