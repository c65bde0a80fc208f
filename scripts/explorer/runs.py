"""A zoo's runs as a table: every column and every metric after the last snapshot, to filter and to sort.

Legend: R runs.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import numpy as np

from zoo import RunStatus, Zoo
from zoo.inspection.summary import last_snapshots

_OPERATORS: Final[dict[str, Callable[[np.ndarray, Any], np.ndarray]]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
_CONDITION: Final = re.compile(r"\s*([\w.]+)\s*(<=|>=|!=|<|>|==?)\s*(\S+)\s*")


@dataclass(frozen=True)
class RunTable:
    """Runs that are there, failed ones included.

    Attributes:
        columns: by name (R,) numbers, or words (status, split).
    """

    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, zoo: Zoo) -> RunTable:
        runs = zoo.usable_runs(include_diverged=True)
        last = last_snapshots(zoo)[runs]
        columns: dict[str, np.ndarray] = {"run": runs}
        columns |= {name: zoo.metric(name)[runs, last] for name in zoo.spec.metric_names}
        columns["inner_step"] = zoo.inner_step[runs, last]
        columns |= {name: zoo.runs[name][runs] for name in zoo.spec.columns}
        columns["split"] = np.full(len(runs), "", "U16")
        for name in zoo.spec.splits.fractions:
            columns["split"][np.isin(runs, zoo.split(name, include_diverged=True))] = name
        columns["status"] = np.array([RunStatus(value).name.lower() for value in zoo.status[runs]])
        return cls(columns)

    def __len__(self) -> int:
        return len(self.columns["run"])

    def rows(self, where: str = "") -> np.ndarray:
        """Indices of the rows that meet all conditions, such as `val_loss < 0.3 and split = test`.

        Raises:
            ValueError: for what is no condition, or a column that is not there.
        """
        chosen = np.ones(len(self), bool)
        for text in re.split(r"\band\b|,|&+", where):
            if text.strip():
                chosen &= self._meets(text)
        return np.flatnonzero(chosen)

    def _meets(self, text: str) -> np.ndarray:
        if not (found := _CONDITION.fullmatch(text)):
            raise ValueError(f"a condition is written like val_loss < 0.3, got {text.strip()!r}; join several by 'and'")
        name, sign, value = found.groups()
        column = self.column(name)
        if column.dtype.kind in "US":
            return _OPERATORS[sign[:1] if sign == "==" else sign](column, value.strip("'\""))
        try:
            return _OPERATORS[sign[:1] if sign == "==" else sign](column, float(value))
        except ValueError:
            raise ValueError(f"{name} is compared with a number, got {value!r}") from None

    def column(self, name: str) -> np.ndarray:
        """(R,) of that name; ValueError otherwise."""
        if name not in self.columns:
            near = get_close_matches(name, self.columns, n=1)
            raise ValueError(
                f"there is no column {name!r}; " + (f"did you mean {near[0]}?" if near else "see the table")
            )
        return self.columns[name]

    def sorted(self, rows: np.ndarray, by: str, *, descending: bool = False) -> np.ndarray:
        """The rows in the order of a column; what is no number comes last in both directions."""
        values = self.column(by)[rows]
        order = np.argsort(values, kind="stable")
        missing = np.isnan(values[order]) if values.dtype.kind == "f" else np.zeros(len(rows), bool)
        present = order[~missing]
        return rows[np.concatenate([present[::-1] if descending else present, order[missing]])]

    def summary(self) -> list[dict[str, Any]]:
        """Name, kind and range of every column."""
        found = []
        for name, values in self.columns.items():
            if values.dtype.kind in "US":
                found.append({"name": name, "words": sorted(set(values.tolist()))})
                continue
            finite = values[np.isfinite(values)]
            found.append({"name": name, "range": [float(finite.min()), float(finite.max())] if len(finite) else None})
        return found
