"""What can be read from weights alone? A reader, beside gradient boosting and ridge regression on weight statistics.

    python -m scripts.bench.generator_reading runs out/zoo [--seeds 3] [--record]
    python -m scripts.bench.generator_reading widths A,B,C --unseen D,E [--record]
    python -m scripts.bench.generator_reading adapters out/zoos/lora_images_cnn [--record]
    python -m scripts.bench.generator_reading best-of out/zoo --pipeline out/generator [--record]

`runs` reads all snapshots of the test runs of a zoo, `widths` the test runs of zoos of widths that were not trained on,
`adapters` their last networks alone, and which task they are for. The rivals are those of Unterthiner et al. 2020
(arXiv 2002.11448): mean, deviation and quantiles of every layer; their settings are chosen on validation runs.
`best-of` asks a generator for losses, from noise, and keeps one network of so many by what the pipeline's reader says
of them. Two to six CPU-minutes a seed.
"""

from __future__ import annotations

import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from generator import ParameterPipeline, prompt_grid, train_reader
from generator.evaluation.reading import reading_report
from generator.reading.statistics import weight_statistics
from generator.training.reader import TOLD, Labelled, ReaderConfig
from generator.training.tasks import task_of
from generator.trajectories import Trajectories
from zoo import Zoo
from zoo.networks.metrics import r2
from zoo.storage.selection import SelectedZoo

from ..rows import Row
from .command import bench

SHOWN = {
    "test_error": "test accuracy",
    "test_loss": "test loss",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "rotation": "rotation",
    "scale": "scale",
    "task_0": "map 1, 1",
    "task_1": "map 1, 2",
    "task_2": "map 2, 1",
    "task_3": "map 2, 2",
    "task_4": "inverted",
}
OF_ADAPTERS = ReaderConfig(  # chosen on validation runs
    quantities=("test_error", "test_loss", *(f"{TOLD}{place}" for place in range(5))),
    num_inputs=32,
    num_steps=600,
    batch_size=64,
)
NUM_LEAVES = (15, 63)
NUM_TREES = 400
PENALTIES = np.logspace(-4, 4, 9)
PACKAGES = ("torch", "numpy", "scikit-learn")
CANDIDATES = (1, 8)
NUM_ASKED = 32
Report = Mapping[str, Mapping[str, float]]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Any]
Reports = Callable[[Sequence[Zoo]], list[list[Report]]]  # of zoos, for each seed


def rows(
    question: str,
    zoos: str,
    *,
    unseen: str = "",
    readers: tuple[str, ...] = ("learned", "statistics", "boosting", "ridge"),
    pipeline: str = "",
    seeds: int = 3,
) -> Iterator[Row]:
    """What is asked.

    Args:
        question: runs, widths, adapters or best-of.
        zoos: to train on, separated by commas.
        unseen: zoos of other widths.
        readers: of learned (with inputs), statistics (learned, without them), boosting and ridge; all by default.
        pipeline: folder of a generator with a reader.
        seeds: of readers, or of the noise from which networks are made.
    """
    some = [Zoo.open(path) for path in zoos.split(",")]
    if question == "runs":
        yield from run_rows(some, methods(some, readers, seeds))
    elif question == "adapters":
        last = [last_networks(zoo) for zoo in some]
        yield from adapter_rows(last, methods(last, readers, seeds, OF_ADAPTERS))
    elif question == "widths":
        others = [Zoo.open(path) for path in unseen.split(",")]
        yield from width_rows(some, others, methods(some, readers, seeds))
    elif question == "best-of":
        yield from best_of_rows(some[0], ParameterPipeline.from_pretrained(pipeline), seeds)
    else:
        raise ValueError(f"question must be runs, widths, adapters or best-of, got {question!r}")


def run_rows(zoos: Sequence[Zoo], compared: Iterable[tuple[str, Reports]]) -> Iterator[Row]:
    for method, reports in compared:
        yield row(
            "How well are networks of runs never seen read from their weights? R²",
            {"runs": described(zoos), "reader": method},
            [report[0] for report in reports(zoos)],
            f"All snapshots of {len(zoos[0].split('test'))} test runs; finals: their last ones alone. Losses and "
            "learning rates count by their logarithms. Intervals promise 90%. Mean and range over seeds.",
        )


def adapter_rows(zoos: Sequence[Zoo], compared: Iterable[tuple[str, Reports]]) -> Iterator[Row]:
    for method, reports in compared:
        yield row(
            "What do adapters say of their worth and of their task? R²",
            {"runs": described(zoos), "reader": method},
            [{name: {"r2": one["r2"]} for name, one in report[0].items()} for report in reports(zoos)],
            f"Last networks of {len(zoos[0].split('test'))} test runs, each of another warp; readers learned from "
            f"{len(zoos[0].split('train'))}. Maps warp places in images. Mean and range over seeds.",
        )


def last_networks(zoo: Zoo) -> Zoo:
    """A zoo without what its runs began at, which may be one network for all."""
    is_there = zoo.inner_step >= 0
    return SelectedZoo(zoo, keep=np.arange(is_there.shape[1]) == is_there.sum(1, keepdims=True) - 1)


def width_rows(zoos: Sequence[Zoo], unseen: Sequence[Zoo], compared: Iterable[tuple[str, Reports]]) -> Iterator[Row]:
    for method, reports in compared:
        for zoo, of_seeds in zip(unseen, zip(*reports(unseen), strict=True), strict=True):
            yield row(
                "How well are networks of widths never seen read? R²",
                {"trained on": described(zoos), "read": described([zoo]), "reader": method},
                of_seeds,
                "All snapshots of the test runs of the unseen width; as above.",
            )


def methods(
    zoos: Sequence[Zoo], names: Sequence[str], num_seeds: int, options: ReaderConfig | None = None
) -> Iterator[tuple[str, Reports]]:
    """Readers of zoos by name."""
    options = options or ReaderConfig()
    learned = {
        "learned": ("learned", options),
        "statistics": ("learned, statistics alone", replace(options, num_inputs=0)),
    }
    for name, config in (learned[name] for name in names if name in learned):
        readers = [train_reader(zoos, replace(config, seed=seed)) for seed in range(num_seeds)]
        yield name, lambda some, readers=readers: [[reading_report(one, zoo) for zoo in some] for one in readers]
    for name, fit in ((name, FITS[name]) for name in names if name in FITS):
        rivals = Rivals(zoos, fit, options.quantities)
        yield f"{name} on statistics", lambda some, rivals=rivals: [[rivals.report(zoo) for zoo in some]]


class Rivals:
    """Regression on weight statistics; settings are chosen on validation runs, quantity by quantity.

    Args:
        zoos: to train on.
        fit: makes a model of training inputs and targets, and those to choose its settings on.
        quantities: to read; None for what the zoos record.
    """

    def __init__(self, zoos: Sequence[Zoo], fit: Fit, quantities: Sequence[str] | None = None) -> None:
        self.quantities = quantities or [
            name for name in SHOWN if all(name in {*zoo.spec.metric_names, *zoo.spec.columns} for zoo in zoos)
        ]
        train, val = (
            [np.concatenate(some) for some in zip(*(self.table(zoo, s)[:2] for zoo in zoos), strict=True)]
            for s in ("train", "val")
        )
        self.models = [fit(train[0], y, val[0], y_val) for y, y_val in zip(train[1].T, val[1].T, strict=True)]

    def table(self, zoo: Zoo, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Statistics (B, S), quantities (B, Q) on readers' scales, and whether a network is its run's last one (B,)."""
        runs = Labelled.of(zoo, split, self.quantities)
        rows, snapshots = runs.everything()
        params, values = runs.at(rows, snapshots)
        known = np.stack([scaled(name, values[name]).numpy() for name in self.quantities], 1)
        is_last = snapshots == runs.runs.counts[rows] - 1
        return weight_statistics(zoo.layout, params).numpy(), known, is_last.numpy()

    def report(self, zoo: Zoo) -> dict[str, dict[str, float]]:
        inputs, known, is_last = self.table(zoo, "test")
        found = {}
        for column, (quantity, model) in enumerate(zip(self.quantities, self.models, strict=True)):
            read, true = torch.from_numpy(model.predict(inputs)), torch.from_numpy(known[:, column])
            finals = torch.from_numpy(is_last)
            found[quantity] = {"r2": r2(read, true).item(), "finals": r2(read[finals], true[finals]).item()}
        return found


def scaled(name: str, values: Tensor) -> Tensor:
    return (
        values
        if name.endswith("error") or name.startswith(TOLD)
        else (values + (1e-4 if name.endswith("loss") else 0)).log()
    )


def boosted(inputs: np.ndarray, y: np.ndarray, held: np.ndarray, y_held: np.ndarray) -> HistGradientBoostingRegressor:
    """The best on validation runs, among numbers of leaves and of trees."""
    make = partial(HistGradientBoostingRegressor, learning_rate=0.08, random_state=0)
    scores = {}
    for leaves in NUM_LEAVES:
        model = make(max_iter=NUM_TREES, max_leaf_nodes=leaves).fit(inputs, y)
        for count, predicted in enumerate(model.staged_predict(held), start=1):
            scores[leaves, count] = float(np.square(predicted - y_held).mean())
    leaves, count = min(scores, key=scores.__getitem__)
    return make(max_iter=count, max_leaf_nodes=leaves).fit(inputs, y)


def ridge(inputs: np.ndarray, y: np.ndarray, held: np.ndarray, y_held: np.ndarray) -> Pipeline:
    """Of standardised statistics, with the penalty that is best on validation runs."""
    models = [make_pipeline(StandardScaler(), Ridge(penalty)).fit(inputs, y) for penalty in PENALTIES]
    return min(models, key=lambda model: float(np.square(model.predict(held) - y_held).mean()))


FITS: dict[str, Fit] = {"boosting": boosted, "ridge": ridge}


def best_of_rows(zoo: Zoo, pipe: ParameterPipeline, num_seeds: int) -> Iterator[Row]:
    task = task_of(zoo)
    prompts = prompt_grid(Trajectories.from_zoo(zoo, "train", ("val_loss",)), "val_loss")
    for count in CANDIDATES:
        for asked in (prompts[[0]], prompts):
            figures = defaultdict(list)
            for seed in range(num_seeds):
                rng = torch.Generator().manual_seed(seed)
                prompt = {"loss": asked.repeat_interleave(NUM_ASKED)}
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made = pipe(prompt=prompt, num_samples=len(prompt["loss"]), best_of=count, generator=rng).params
                val, test = task.evaluate(made, "val"), task.evaluate(made, "test")
                gap = (val["loss"].log() - prompt["loss"].log()).abs()
                figures["|log achieved - log asked|"].append(gap.mean().item())
                figures["val loss"].append(val["loss"].mean().item())
                figures["test accuracy, %"].append(100 * (1 - test["error"]).mean().item())
            yield Row(
                question="What does it buy to keep one network of several by what the reader says, without data?",
                setting={"prompts": "lowest" if len(asked) == 1 else f"all {len(asked)}", "best_of": count},
                figures={name: statistics.fmean(values) for name, values in figures.items()},
                spread={name: (min(values), max(values)) for name, values in figures.items()},
                seeds=tuple(range(num_seeds)),
                note=f"{NUM_ASKED} networks from noise a prompt and seed of the noise; one generator and reader.",
            )


def described(zoos: Sequence[Zoo]) -> str:
    """Networks and what differs between the runs of zoos, in words."""
    task, runs = zoos[0].task_config, zoos[0].runs
    drawn = [f"{SHOWN[name]} {runs[name].min():.2g} to {runs[name].max():.2g}" for name in runs if name in SHOWN]
    kind = "adapters" if "adapter" in task else ", ".join("-".join(map(str, zoo.task_config["hidden"])) for zoo in zoos)
    return f"{task['name']}, {kind}; {', '.join(drawn)}"


def row(question: str, setting: Mapping[str, str], reports: Sequence[Mapping], note: str) -> Row:
    """Figures of reports of several seeds."""
    values = defaultdict(list)
    for report in reports:
        for name, shown in SHOWN.items():
            for key, suffix in (("r2", ""), ("finals", ", finals"), ("coverage", ", in the interval")):
                if key in report.get(name, {}):
                    values[shown + suffix].append(report[name][key])
    return Row(
        question=question,
        setting=setting,
        figures={name: statistics.fmean(some) for name, some in values.items()},
        spread={name: (min(some), max(some)) for name, some in values.items() if len(some) > 1},
        note=note,
    )


if __name__ == "__main__":
    bench("reading", rows, packages=PACKAGES, num_threads=1)
