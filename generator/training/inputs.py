"""What a training reads from its zoos: their tasks, the runs to train on, and those on which the model is selected.

What a zoo lacks is said here, before anything is trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from generator.model.batch_norm import has_batch_norm, with_recomputed_batch_norm
from generator.prompts.descriptions import Embedder, RunDescriptions
from generator.prompts.prompt import canonical_metric
from generator.training.config import GeneratorConfig
from generator.training.tasks import task_of
from generator.training.validation import ValidationStarts
from generator.trajectories import Trajectories
from zoo.networks.layout import LayoutMismatchError
from zoo.networks.low_rank import has_adapters
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo
from zoo.tasks.families.family_task import FamilyTask
from zoo.tasks.task import Task


def opened(zoos: Zoo | Sequence[Zoo]) -> list[Zoo]:
    """One zoo or several as a list.

    Raises:
        ValueError: if there is none.
        TypeError: for paths and whatever else is no open zoo.
    """
    zoos = [zoos] if isinstance(zoos, Zoo | str | Path) else list(zoos)
    if not zoos:
        raise ValueError("zoos must hold at least one zoo, got none")
    if unopened := [zoo for zoo in zoos if not isinstance(zoo, Zoo)]:
        raise TypeError(f"zoos must be open, as from Zoo.open(path), got {unopened[0]!r}")
    return zoos


def tasks_of(zoos: Sequence[Zoo], given: Sequence[Task | None] | None, config: GeneratorConfig) -> list[Task | None]:
    """The task of each zoo; None where there is none, and the config has no need of it.

    Raises:
        ValueError: if networks are to be run and there is no task.
        LayoutMismatchError: if a task is of another architecture than its zoo.
    """
    if given is not None and len(given) != len(zoos):
        raise ValueError(f"tasks must be one for each zoo, got {len(given)} for {len(zoos)} zoos")
    needs = {
        "objective.function_weight": config.objective.function_weight,
        "objective.function_energy_weight": config.objective.function_energy_weight,
        "fingerprints": config.fingerprints,
        "pairs.num_examples": config.pairs.num_examples is not None,
        "recompute_batch_norm": config.recompute_batch_norm,
        "objective.description_weight": config.objective.description_weight,
    }
    needs = {name: value for name, value in needs.items() if value}
    tasks: list[Task | None] = []
    for i, zoo in enumerate(zoos):
        reason = "tasks holds None"
        try:
            task = task_of(zoo) if given is None else given[i]
        except (ValueError, TypeError) as error:
            task, reason = None, str(error)
        if task is None and needs:
            unset = ", ".join(f"{name}={'null' if name == 'pairs.num_examples' else 0}" for name in needs)
            raise ValueError(f"{zoo} has no task to run networks on: give tasks=[...], or set {unset} ({reason})")
        if task is not None and task.layout.num_params != zoo.layout.num_params:
            raise LayoutMismatchError(
                f"task {task.name!r} has networks of {task.layout.num_params:,} parameters, its zoo of "
                f"{zoo.layout.num_params:,}; is it the task of another zoo?"
            )
        if task is not None and zoo.spec.base_hash not in ("", task.base_hash):
            raise LayoutMismatchError(
                f"task {task.name!r} has the base {task.base_hash[:19] or 'none'}, its zoo "
                f"{zoo.spec.base_hash[:19]}; build the task on the zoo's base (`Zoo.base`)"
            )
        is_endless = isinstance(task, FamilyTask) and task.family.num_members is None
        if config.pairs.share_without_targets and not is_endless:
            raise ValueError(
                "share_without_targets makes up tasks of a family without end, which this zoo's is not: they would be "
                "those held out; set it to 0"
            )
        if config.objective.description_weight and task is not None and not task.describe([0]).shape[1]:
            raise ValueError(
                f"description_weight needs a family whose members are described by numbers, which {task.name!r} is "
                "not; set it to 0"
            )
        tasks.append(task)
    return tasks


def training_runs(
    zoos: Sequence[Zoo], tasks: Sequence[Task | None], config: GeneratorConfig, device: torch.device
) -> tuple[GeneratorConfig, list[Trajectories]]:
    """The runs to train on, and the config: without pairs of a start if no run has two snapshots.

    BatchNorm's statistics are recomputed on the device, where that is asked for.
    """
    for zoo in zoos:
        missing = int((zoo.status == RunStatus.EMPTY).sum())
        if missing:
            warnings.warn(
                f"the zoo has {zoo.num_runs - missing} of its {zoo.num_runs} runs so far; training uses these. "
                "The command that built it finishes it",
                stacklevel=3,
            )
    runs = _read_runs(zoos, config, "train")
    if config.pairs.start_share and not any(one.has_updates for one in runs):
        warnings.warn(
            "no run has two snapshots: the generator is trained on networks from noise alone, and takes no start; "
            "pairs.start_share=0 says so",
            stacklevel=3,
        )
        config = replace(config, pairs=replace(config.pairs, start_share=0.0))
    if config.recompute_batch_norm:
        runs = [
            with_recomputed_batch_norm(one, task.to(device)) if task is not None and has_batch_norm(one.layout) else one
            for one, task in zip(runs, tasks, strict=True)
        ]
    return config, runs


def validation_starts(
    zoos: Sequence[Zoo], runs: Sequence[Trajectories], tasks: Sequence[Task | None], config: GeneratorConfig
) -> list[ValidationStarts]:
    """Starts of each zoo on which the model is selected and its prompts are calibrated; none if that cannot be.

    Raises:
        ValueError: if a zoo has no validation runs, or latents are to be calibrated by errors that a task has not.
    """
    if config.calibrate_latents and any(task is None or "error" not in task.metric_names for task in tasks):
        raise ValueError("calibrate_latents compares errors of networks, which a task of these zoos has not; unset it")
    by_task = config.num_task_bits or config.descriptions or config.pairs.num_examples is not None  # starts are of one
    if not config.num_validation_starts or by_task or not config.metrics:
        return []
    metric = canonical_metric(config.metrics[0], config.metric_names)
    known = [task for task in tasks if task is not None and metric.removeprefix("val_") in task.metric_names]
    if len(known) < len(zoos) or not metric.startswith("val_"):
        obstacle = f"there is no task that measures {metric}"
    elif not all(one.has_updates for one in runs):
        obstacle = "runs have no initial network beside the last one"
    else:
        for zoo in zoos:
            if not len(zoo.split("val")):
                raise ValueError(
                    f"the zoo has {len(zoo.usable_runs())} runs and none of them for validation, on which the model is "
                    "selected and prompts are calibrated: set num_validation_starts=0 to do without, or build more runs"
                )
        unseen = _read_runs(zoos, config, "val")
        return [
            ValidationStarts.of(one, seen, task, metric, config.num_validation_starts)
            for one, seen, task in zip(unseen, runs, known, strict=True)
        ]
    warnings.warn(
        f"the last model is kept and prompts are not calibrated, since {obstacle}; num_validation_starts=0 says so",
        stacklevel=3,
    )
    return []


def describe_runs(
    runs: Sequence[Trajectories],
    tasks: Sequence[Task | None],
    describe: Callable[[int], str | Sequence[str]] | None,
    embed: Embedder,
) -> None:
    """Give the runs of each zoo what their tasks are in words.

    Raises:
        ValueError: if nothing says it.
    """
    if describe is not None and not callable(describe):
        raise ValueError(f"describe must be a function from a run's number to its description, got {describe!r}")
    for one, task in zip(runs, tasks, strict=True):
        numbers = one.runs.tolist()
        if describe is not None:
            texts: list[str | Sequence[str]] = [describe(number) for number in numbers]
        elif isinstance(task, FamilyTask):
            texts = [*task.in_words(numbers)]
        else:
            raise ValueError("descriptions are of a family of tasks; of others say what runs are, describe=...")
        one.descriptions = RunDescriptions.of(texts, embed)


def _read_runs(zoos: Sequence[Zoo], config: GeneratorConfig, split: str) -> list[Trajectories]:
    return [
        Trajectories.from_zoo(
            zoo,
            split,
            config.metric_names,
            mask_column=config.task_bits,
            num_task_bits=config.num_task_bits,
            max_runs=config.max_runs,
            min_snapshots=2 if config.pairs.start_share == 1 else 1,
            as_trained=config.statistics_per_number and has_adapters(zoo.layout),
        )
        for zoo in zoos
    ]
