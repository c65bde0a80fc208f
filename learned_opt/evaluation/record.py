"""An evaluation as it is kept: the record of a machine, and the tables of the cards beside the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from learned_opt.evaluation.claims import SCALARS, STATIC, claims_table
from learned_opt.evaluation.learned_methods import UNTRAINED_FRAME
from learned_opt.evaluation.report import (
    ONE_CONSTANT,
    REFERENCE,
    TUNED_MUON,
    Evaluation,
    against_table,
    report,
    single_task_table,
)
from learned_opt.pretrained.files import DIRECTORY

QUESTION: Final = "Do the shipped learned optimizers beat tuned ones?"
TABLES_BEGIN: Final = "<!-- tables of scripts.evaluate_optimizer: begin -->"
TABLES_END: Final = "<!-- tables of scripts.evaluate_optimizer: end -->"

_OTHERS: Final = (
    REFERENCE,
    ONE_CONSTANT.format(REFERENCE),
    TUNED_MUON,
    "Muon .8 cosine",
    "Celo2 cosine",
    "Prodigy cosine",
    "Schedule-Free AdamW",
    "AdamW 1e-3 untuned",
    ONE_CONSTANT.format(UNTRAINED_FRAME),
    SCALARS,
    STATIC,
)
_HOW_TO_READ: Final = """How to read it:

- Every method sees the same initialisations and minibatches of a seed. Ratios are geometric means over tasks and seeds,
  with 95% bootstrap intervals over both. Final loss: last 5% of the steps, + 0.001 nats.
- A rival with a learning rate is tuned on each task. Training losses stand at the setting that is best for that very
  loss: the most that tuning can give. **Test accuracy stands at the setting of the best validation accuracy**, so it is
  chosen and reported on different examples; "in hindsight" takes the best test accuracy itself, which nobody can know.
- "Muon, lr and momentum tuned" takes the better of momentum .95 and .8 as well. Prodigy (lr 1, cosine) and
  Schedule-Free AdamW (lr 2.5e-3) are at their defaults. Lion is tried at a tenth of the learning rates. Celo2, if
  it stands in the tables: the weights that PyLO released (BSD-3), tuned rates, cosine, without weight decay.
- "untrained frame" is the hand-made part of `mulo-norm` with its controller off, at the best of five multiples a task;
  "one constant" is the single best setting for all tasks of a table. `mulo-norm-scalars` has learned constants and no
  layer of feedback, and is what `mulo-norm` goes on from, so trained for less. `mulo-norm-static` goes on from them for
  as long, with a layer that sees nothing of the gradients. Only what `mulo-norm` gains over these is owed to its layer.
- `mulo` knows no horizon and its step stays as large as it is. `mulo-wsd` is the same with its multiplier decayed to
  zero in the last fifth, as a user who knows the horizon would do; the fifth was chosen on other tasks.
- Meta-training draws the digits too, but no MNIST and no MNIST-1D. Inputs are standardised, MLPs begin with He's
  initialisation; AdamW has weight decay .01, Muon .1. Muon is that of torch.optim, which takes
  matrices alone, outputs left to AdamW: on the CNN, whose kernels are none, it is AdamW throughout.
- CPU time of a step and network, gradients included: AdamW, Muon and the learned rules run batched, the others network
  by network. The record of step costs compares what users run.
- With several meta-seeds a claim is judged by their median; the interval is that of the median seed."""


def record_body(evaluation: Evaluation) -> str:
    """The record below its header."""
    parts = [_HOW_TO_READ, "## Claims", claims_table(evaluation), "## Tables", report(evaluation)]
    for name, method in evaluation.shipped.items():
        if tables := card_tables(evaluation, method):
            parts += [f"## {name} as shipped ({method})", tables]
    return "\n\n".join(parts)


def card_tables(evaluation: Evaluation, method: str) -> str:
    """What one learned optimizer measures against the others, group by group."""
    parts = []
    for title, tasks in evaluation.groups().items():
        names = [task.name for task in tasks]
        shown = evaluation.completed(names)
        others = [other for other in _with_twins(evaluation, method) if other in shown and other != method]
        if method not in shown or not others:
            continue
        if len(tasks) > 1:
            parts.append(f"{title}, {len(tasks)} tasks, geometric means with 95% intervals:")
            parts.append(against_table(shown, method, others, names))
        else:
            parts.append(single_task_table({name: shown[name] for name in (method, *others)}, names[0]))
    return "\n\n".join(parts)


def write_cards(evaluation: Evaluation) -> list[Path]:
    """Put new tables into the cards of the shipped weights that were evaluated; returns their paths."""
    paths = []
    for name, method in evaluation.shipped.items():
        if tables := card_tables(evaluation, method):
            path = DIRECTORY / f"{name}.md"
            path.write_text(with_tables(path.read_text(), tables))
            paths.append(path)
    return paths


def with_tables(card: str, tables: str) -> str:
    """The card with new tables between its two marks.

    Raises:
        ValueError: if the card lacks them.
    """
    before, begin, rest = card.partition(TABLES_BEGIN)
    _, end, after = rest.partition(TABLES_END)
    if not (begin and end):
        raise ValueError(f"a card must have the lines {TABLES_BEGIN!r} and {TABLES_END!r} around its tables")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def _with_twins(evaluation: Evaluation, method: str) -> list[str]:
    """The others, the learned ones among them by the method of the same place in their group."""
    place = next((list(group).index(method) for group in evaluation.learned.values() if method in group), 0)
    others = []
    for other in _OTHERS:
        group = evaluation.learned.get(other)
        others += [other] if group is None else list(group[place : place + 1])
    return others
