"""Comparing optimizers: train networks by each of them and measure.

All methods see the same initialisations and minibatches of a seed. Training losses of a method with a learning rate to
choose are reported at its best setting *for each task and each measure*, the most that tuning can give it. What is
measured on the test split is reported at the setting that the validation split prefers, as a user would choose it.

Legend: T inner steps, H settings, S seeds, N = H x S networks (settings outermost).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learned_opt.evaluation.rivals import Method, TorchPopulation
from learned_opt.evaluation.tasks import EvaluationTask
from learned_opt.meta_training.objective import cap_loss, final_loss
from learned_opt.rules.registry import rules_digest
from zoo.ambient import torch_defaults
from zoo.devices import resolve_device
from zoo.settings import digest
from zoo.training.inner_step import InnerStep

CHOSEN_BY: Final = {"test_loss": "val_loss", "test_error": "val_error"}  # measure: what its setting is chosen by
NUM_CURVE_POINTS: Final = 60
_RESULT_VERSION: Final = 2
_FIRST_SEED: Final = 10_000


@dataclass(frozen=True)
class Result:
    """What one method did on one task.

    Args:
        learning_rates: (H,).
        mean_loss: (H, S) training loss averaged over all steps, nats.
        final_loss: (H, S) over the last 5% of the steps.
        val_loss, val_error, test_loss, test_error: (H, S) after the last step, on at most 512 examples of the split.
        curve: (H, points) training loss averaged over seeds and pieces of the run.
        seconds: (H,) CPU time, on another device time, of a step of one network, gradients included.
    """

    learning_rates: list[float]
    mean_loss: list[list[float]]
    final_loss: list[list[float]]
    val_loss: list[list[float]]
    val_error: list[list[float]]
    test_loss: list[list[float]]
    test_error: list[list[float]]
    curve: list[list[float]]
    seconds: list[float]

    def measure(self, name: str) -> NDArray[np.float64]:
        """(H, S) values of a measure, the lower the better."""
        return np.asarray(getattr(self, name), dtype=np.float64)

    def best(self, name: str) -> int:
        """Setting with the lowest mean over seeds of a measure."""
        return int(self.measure(name).mean(1).argmin())

    def oracle(self, name: str) -> NDArray[np.float64]:
        """(S,) a measure at the setting that turned out best for it."""
        return self.measure(name)[self.best(name)]

    def tuned(self, name: str) -> NDArray[np.float64]:
        """(S,) a measure at the setting a user would have chosen: by validation for the test split, else the best."""
        return self.measure(name)[self.best(CHOSEN_BY.get(name, name))]

    def setting(self, index: int) -> Result:
        """The result of a single setting."""
        return Result(**{name: [values[index]] for name, values in asdict(self).items()})


def joined(results: Sequence[Result]) -> Result:
    """One result with the settings of several."""
    fields = [asdict(result) for result in results]
    return Result(**{name: list(chain.from_iterable(entry[name] for entry in fields)) for name in fields[0]})


@torch_defaults()
def train(task: EvaluationTask, method: Method, *, num_seeds: int = 3, device: torch.device | str = "cpu") -> Result:
    """Train H x S networks of a task by a method."""
    device = torch.device(device)
    family, num_settings = task.family.to(device), len(method.learning_rates)
    params = family.init(torch.arange(_FIRST_SEED, _FIRST_SEED + num_seeds)).repeat(num_settings, 1)  # (N, P)
    optimizer = method.make(torch.tensor(method.learning_rates, dtype=torch.float64).repeat_interleave(num_seeds))
    step = InnerStep(family, optimizer)
    state = optimizer.init_state(family.layout, params)
    members = torch.zeros(num_seeds, dtype=torch.long)
    rng = torch.Generator().manual_seed(_FIRST_SEED)
    losses = torch.empty(task.num_steps, len(params), device=device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for inner_step in range(task.num_steps):
        batch = family.batch(members, torch.rand(num_seeds, family.batch_size, generator=rng).to(device), len(params))
        losses[inner_step] = step(params, state, batch, inner_step=inner_step, num_steps=task.num_steps)
    losses = losses.cpu()  # when all steps are done
    seconds = (clock() - start) / (task.num_steps * len(params))
    if isinstance(optimizer, TorchPopulation):
        optimizer.finish()

    def by_setting(values: Tensor) -> list[list[float]]:
        return values.reshape(num_settings, num_seeds).tolist()

    held_out = {}
    for split in ("val", "test"):
        loss, error = family.evaluate(params, members, split)
        held_out[f"{split}_loss"] = by_setting(cap_loss(loss))
        held_out[f"{split}_error"] = by_setting(error.nan_to_num(1.0))
    curves = cap_loss(losses).view(task.num_steps, num_settings, num_seeds)
    pieces = torch.stack([piece.mean((0, 2)) for piece in curves.tensor_split(min(NUM_CURVE_POINTS, task.num_steps))])
    return Result(
        learning_rates=list(method.learning_rates),
        mean_loss=by_setting(curves.mean(0)),
        final_loss=by_setting(final_loss(curves)),
        **held_out,
        curve=pieces.T.tolist(),
        seconds=[seconds] * num_settings,
    )


Results = dict[str, dict[str, Result]]  # method name -> task name -> result


def evaluate(
    methods: Sequence[Method],
    tasks: Sequence[EvaluationTask],
    *,
    num_seeds: int = 3,
    device: torch.device | str = "auto",
    cache: Path | None = None,
    train_missing: bool = True,
    on_result: Callable[[str, str, Result | None], None] | None = None,
) -> Results:
    """Results of all methods on all tasks.

    Args:
        methods: with different names.
        tasks: with different names.
        num_seeds: S.
        device: where networks are trained, see `zoo.devices.resolve_device`.
        cache: folder that keeps a file for each task, method and learning rate; only what is missing there is trained.
        train_missing: False leaves out what the folder lacks.
        on_result: called with method name, task name and result as each is known; None if it is left out.
    """
    device = resolve_device(device)
    results: Results = {method.name: {} for method in methods}
    for task in tasks:
        for method in methods:
            result = _result(task, method, num_seeds, cache, device=device, train_missing=train_missing)
            if result:
                results[method.name][task.name] = result
            if on_result:
                on_result(method.name, task.name, result)
    return results


def _result(
    task: EvaluationTask,
    method: Method,
    num_seeds: int,
    cache: Path | None,
    *,
    device: torch.device,
    train_missing: bool,
) -> Result | None:
    """Result of a method, its missing settings trained together and written to the folder."""
    if cache is None:
        return train(task, method, num_seeds=num_seeds, device=device)
    paths = {rate: cache / f"{_key(task, method, rate, num_seeds, device)}.json" for rate in method.learning_rates}
    missing = tuple(rate for rate, path in paths.items() if not path.exists())
    if missing and not train_missing:
        return None
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        trained = train(task, method.at(missing), num_seeds=num_seeds, device=device)
        for index, rate in enumerate(missing):
            paths[rate].write_text(json.dumps(asdict(trained.setting(index))))
    return joined([Result(**json.loads(path.read_text())) for path in paths.values()])


def _key(task: EvaluationTask, method: Method, learning_rate: float, num_seeds: int, device: torch.device) -> str:
    """Name of a result: the same settings have the same one, so a changed one is trained and no other is read."""
    family = task.family
    settings = {
        "version": _RESULT_VERSION,
        "task": task.name,
        "family": family.name,
        "num_params": family.layout.num_params,
        "num_steps": task.num_steps,
        "batch_size": family.batch_size,
        "data_hash": family.tasks[0].dataset.data_hash,
        "method": f"{rules_digest()} {method.identity}" if method.identity else method.name,
        "learning_rate": f"{learning_rate:.6g}",
        "num_seeds": num_seeds,
    }
    if device.type != "cpu":
        settings["device"] = device.type
    return digest(settings)[:24]
