"""build_zoo: a plan, its blocks, an executor, a zoo. Interrupted builds are resumed.

Legend: N runs of one block, S snapshots, P numbers of one network.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Final, Unpack, cast

import numpy as np
import torch

from zoo.ambient import torch_defaults
from zoo.building.block_size import fitting_block_size
from zoo.building.execution import with_execution
from zoo.building.executors import Executor, InProcess
from zoo.building.plan import AUTO, BuildPlan, BuildSettings
from zoo.building.remarks import remark_on_divergence, remark_on_plan, remark_on_search
from zoo.building.search import BlockSearch, checked_search, with_values
from zoo.devices import is_out_of_memory
from zoo.networks.counter_rng import streams_of
from zoo.storage.locks import LockLostError
from zoo.storage.schema import RunStatus
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo
from zoo.tasks.task import Task
from zoo.training.population import Remaining

_UNFINISHED: Final = ".unfinished"  # folder of a zoo
_POLL_SECONDS: Final = 1.0
_NUM_TRIED: Final = 8  # runs, and examples


@dataclass(frozen=True)
class BlockReport:
    """A block that was just built: its runs, those of them that diverged, training steps over all runs, wall time.

    `medians` of each metric are over the runs that did not diverge, at their last snapshot.
    """

    block: int
    num_runs: int
    num_diverged: int
    model_steps: int
    seconds: float
    medians: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where a build stands: the block that was just built, if one was, and committed blocks, whoever built them."""

    report: BlockReport | None
    num_done: int
    num_blocks: int


@torch_defaults()
def build_zoo(
    path: str | os.PathLike,
    task: Task,
    *,
    executor: Executor | None = None,
    progress: Callable[[Progress], object] | None = None,
    **settings: Unpack[BuildSettings],
) -> Zoo:
    """Train a zoo, or finish one of the same settings that was begun at that path, or add runs to it.

    Several builders may work on one zoo at once, from any machines that share the folder: each block is built by one.
    Blocks that are damaged are built again.

    Args:
        path: folder of the zoo.
        task: what to train on.
        executor: where blocks are built; by default in this process.
        progress: called at the beginning and after each block.
        **settings: the fields of `zoo.building.plan.BuildPlan`: num_runs, num_steps, optimizer, seed, block_size, ...

    Returns:
        The complete zoo.

    Raises:
        TypeError: for a name in place of a task, and for settings that there are not.
        ValueError: for settings that are not possible.
        FileExistsError: if the path holds something that is no zoo.
        SettingsMismatchError: if it holds a zoo with other settings.
        ZooWriteError: if it cannot be written; what was committed stays.
        MemoryError: if a block does not fit the device; the message says what to lower.
    """
    if not isinstance(task, Task):
        raise TypeError(f"task must be a task, as from get_task({task!r}), got {type(task).__name__}")
    check_names(settings)
    path, plan = Path(path), BuildPlan(task=task, **settings)
    executor, progress = executor or InProcess(), progress or (lambda state: None)
    remark_on_plan(plan)
    search = None if plan.search is None else checked_search(plan)
    if search is not None and not isinstance(executor, InProcess):
        raise ValueError("a search builds one block after the other, in this process: leave out executor")
    plan = settled(plan, path)
    check_initial_loss(plan)
    writer = ZooWriter.create(path, plan.spec(), base=task.base, defaults=plan.defaults)
    discard_damaged_blocks(writer)
    if writer.pending_blocks():
        remark_on_search(search, plan, writer.num_blocks)
    for state in build_blocks(executor, writer, plan):
        progress(state)
    zoo = Zoo.open(path)
    remark_on_divergence(zoo, plan, path)
    return zoo


def settled(plan: BuildPlan, path: Path) -> BuildPlan:
    """The plan with what it leaves open: as the zoo at that path was begun, or what fits and is fastest here."""
    if (path / "zarr.json").is_file():
        plan = plan.as_begun(ZooWriter.open(path).spec)
    elif plan.block_size == AUTO or (plan.block_size is None and plan.task.device.type == "cuda"):
        plan = replace(plan, block_size=fitting_block_size(plan))
    return with_execution(plan)


def build_blocks(executor: Executor, writer: ZooWriter, plan: BuildPlan) -> Iterator[Progress]:
    """Where the build stands at first, after each block, and while other builders have the last ones."""

    def state(report: BlockReport | None = None) -> Progress:
        return Progress(report, writer.num_blocks - len(writer.pending_blocks()), writer.num_blocks)

    yield state()
    while pending := writer.pending_blocks():
        for report in filter(None, executor.run(BlockBuilder(writer.path, plan), pending)):
            yield state(report)
        if writer.pending_blocks():  # other builders have them; should those die, their locks expire
            yield state()
            time.sleep(_POLL_SECONDS)


def check_names(settings: Mapping[str, object]) -> None:
    """Raise TypeError for settings that no plan has, and for those that are missing."""
    known = {field.name: field for field in fields(BuildPlan) if field.name != "task"}
    if unknown := sorted(settings.keys() - known.keys()):
        hint = "; those of the optimizer go into optimizer={'name': 'adam', 'lr': 0.01}" if "lr" in unknown else ""
        raise TypeError(f"build_zoo has no settings {unknown}; there are {sorted(known)}{hint}")
    needed = {name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING}
    if missing := sorted(needed - settings.keys()):
        raise TypeError(f"build_zoo needs {' and '.join(f'{name}=...' for name in missing)}")


def check_initial_loss(plan: BuildPlan) -> None:
    """Raise ValueError if networks would count as diverged before they are trained.

    That is so where regression targets come in large units, or the initial scale is far too large.
    """
    runs = range(min(plan.num_runs, 1 if plan.loops else _NUM_TRIED))
    task = plan.task_for(runs)
    params = plan.initial_params(runs)
    chosen = torch.arange(min(plan.minibatch_size, _NUM_TRIED), device=task.device)
    batch = task.batch(chosen, len(runs), stream=streams_of([plan.seed], task.device)[0])
    with torch.no_grad():
        losses = task.loss(params, batch)
    if (losses <= plan.max_loss).any():
        return
    targets = task.dataset.train.targets
    hint = "lower init_scale"
    if targets.is_floating_point() and not task.plays_episodes:
        hint = f"standardise the targets (mean {targets.mean():.4g}, standard deviation {targets.std():.4g})"
    raise ValueError(
        f"expected a loss of untrained networks of at most max_loss = {plan.max_loss:g}, got {losses.median():.4g}: "
        f"every run would count as diverged; {hint}, or raise max_loss"
    )


def discard_damaged_blocks(writer: ZooWriter) -> list[int]:
    """Make committed blocks pending in which `Zoo.verify` finds something wrong; returns them."""
    zoo = Zoo.open(writer.path)
    suspects = {finding.block for finding in zoo.verify() if finding.kind != "empty"}
    damaged = []
    for block in sorted(block for block in suspects if block is not None):
        if any(finding.kind != "empty" for finding in zoo.verify([block])):  # not just rewritten by another builder
            writer.discard_block(block)
            damaged.append(block)
    return damaged


@dataclass(frozen=True)
class BlockBuilder:
    """Builds the blocks of a plan; what executors send to their workers."""

    path: Path
    plan: BuildPlan

    @torch_defaults()
    def __call__(self, block: int) -> BlockReport | None:
        """Train, evaluate and commit a block; None if it is committed already, or another process has it."""
        started = time.perf_counter()
        writer = ZooWriter.open(self.path)
        lock = writer.lock(block)
        if lock is None:
            return None
        if self.plan.search is not None and any(other < block for other in writer.pending_blocks()):
            return None  # its proposals follow from all blocks before it
        with lock:
            runs = writer.block_runs(block)
            folder = self.path / _UNFINISHED / f"{block}-{len(runs)}"
            try:
                trained = self._train(runs, folder)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError(
                    f"memory ran out on {self.plan.task.device} while a block of {len(runs):,} runs was trained; lower "
                    f"block_size (now {writer.spec.block_size:,}) or batch_size (now {self.plan.minibatch_size:,})"
                ) from error
            inner_step = trained.inner_step
            whole = np.where(inner_step[:, -1] < 0, RunStatus.STOPPED, RunStatus.COMPLETE)
            try:
                writer.write_block(
                    block,
                    trained.params,
                    inner_step,
                    trained.metrics,
                    {"seed": np.array(self.plan.seeds(runs)), **trained.columns},
                    np.where(trained.alive, whole, RunStatus.DIVERGED),
                    lock=lock,
                )
            except LockLostError:
                return None
            shutil.rmtree(folder, ignore_errors=True)
        seconds, alive = time.perf_counter() - started, trained.alive & (inner_step[:, -1] >= 0)
        medians = {name: float(np.median(values[alive, -1])) for name, values in trained.metrics.items() if alive.any()}
        num_diverged, model_steps = len(runs) - int(trained.alive.sum()), int(inner_step.max(1).sum())
        return BlockReport(block, len(runs), num_diverged, model_steps, seconds, medians)

    def _train(self, runs: range, folder: Path) -> _Trained:
        """Train the runs of a block, together or one after another.

        Of runs that are trained one after another the folder holds the snapshots and what a run is resumed from, memory
        a few copies of one network.
        """
        search = None if self.plan.search is None else BlockSearch(self.plan, runs, Zoo.open(self.path))
        plan = self.plan if search is None else with_values(self.plan, search.values)
        shape = len(runs), len(plan.steps)
        room = partial(_on_disk, folder) if plan.loops else (lambda name, shape: np.empty(shape, np.float32))
        names = [f"{split}_{name}" for split in plan.evaluated_splits for name in plan.task.metric_names]
        trained = _Trained(
            room("params", (*shape, plan.task.layout.num_params)),
            {name: room(name, shape) for name in names},
            room("alive", (len(runs),)),
            np.tile(np.array(plan.steps), (len(runs), 1)),
            plan.columns(runs),
        )
        size = 1 if plan.loops else len(runs)
        for first in range(0, len(runs), size):
            rows = np.arange(first, min(first + size, len(runs)))
            self._train_together(plan, runs, rows, trained, folder=folder, search=search)
        return replace(trained, alive=trained.alive.astype(bool))

    def _train_together(
        self,
        plan: BuildPlan,
        runs: range,
        rows: np.ndarray,
        trained: _Trained,
        *,
        folder: Path,
        search: BlockSearch | None,
    ) -> None:
        """Train the runs in some rows of a block as one population, which a search makes smaller on the way."""
        chosen = _chosen(runs, rows)
        task = plan.task_for(chosen)
        training = plan.population(
            chosen,
            task,
            init_params=plan.initial_params(chosen),
            compile=plan.compiles(runs),
            checkpoint=folder / f"{chosen[0]}.pt" if plan.loops else None,
        )
        snapshot = next(training, None)
        while snapshot is not None:
            s, remaining = plan.steps.index(snapshot.inner_step), None
            trained.params[rows, s] = snapshot.params.cpu().numpy()
            trained.alive[rows] = snapshot.alive.cpu().numpy()
            for split in plan.evaluated_splits:
                for name, values in task.evaluate(snapshot.params, split).items():
                    trained.metrics[f"{split}_{name}"][rows, s] = values.cpu().numpy()
            if plan.loops:
                trained.flush()  # before the checkpoint says that they are there
            if search is not None and 0 < snapshot.inner_step < plan.steps[-1]:
                now = {name: values[:, s] for name, values in trained.metrics.items()}
                stopped = search.stopped(rows, snapshot.inner_step, now)
                trained.stop(rows[stopped], s)
                rows = rows[~stopped]
                if not len(rows):
                    return
                if stopped.any():
                    task = plan.task_for(_chosen(runs, rows))
                    kept = torch.from_numpy(np.flatnonzero(~stopped)).to(task.device)
                    some = with_values(plan, {name: values[rows] for name, values in search.values.items()})
                    remaining = Remaining(kept, task, some.step_for(_chosen(runs, rows), task))
            try:
                snapshot = training.send(remaining)
            except StopIteration:
                snapshot = None


@dataclass(frozen=True)
class _Trained:
    """The runs of a block: parameters (N, S, P), metrics (N, S), which did not diverge (N,), steps (N, S), columns."""

    params: np.ndarray
    metrics: dict[str, np.ndarray]
    alive: np.ndarray
    inner_step: np.ndarray
    columns: dict[str, np.ndarray]

    def stop(self, rows: np.ndarray, last: int) -> None:
        """Note that runs have no snapshots after the last one of that number."""
        self.inner_step[rows, last + 1 :] = -1
        self.params[rows, last + 1 :] = 0
        for values in self.metrics.values():
            values[rows, last + 1 :] = np.nan

    def flush(self) -> None:
        for array in (self.params, self.alive, *self.metrics.values()):
            cast("np.memmap", array).flush()


def _chosen(runs: range, rows: np.ndarray) -> list[int]:
    return [runs[row] for row in rows]


def _on_disk(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of that name in a folder, as an earlier process has left it."""
    path = folder / f"{name}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(".partial")
        np.lib.format.open_memmap(begun, "w+", np.float32, shape)
        begun.replace(path)
    return np.lib.format.open_memmap(path, "r+")
