"""Small charts as SVG text that follows the reader's light or dark theme.

Colours come from CSS variables (`STYLE`), so one drawing serves both themes, inside a page or as a file of its own.
Sizes are chosen for a phone: at its width text is still readable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

WIDTH: Final = 440
_LEFT, _RIGHT, _BOTTOM = 52, 12, 40
_LEGEND_ROW: Final = 18
_CHARACTER: Final = 6.9  # mean width at the size of a label
FONTS: Final = 'system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif'
_LIGHT: Final = {
    "blue": "#0072b2", "orange": "#d55e00", "green": "#00825f", "purple": "#a3508f",
    "grey": "#7a7a7a", "ink": "#1f2328", "faint": "#e3e3de",
}  # fmt: skip
_DARK: Final = {
    "blue": "#5ab4e6", "orange": "#f08a4b", "green": "#35c29a", "purple": "#d68fc4",
    "grey": "#9a9a9a", "ink": "#e6e4df", "faint": "#34373b",
}  # fmt: skip
LegendItem = tuple[str, str, str]  # name, colour, kind of mark
COLOURS: Final = ("blue", "orange", "green", "purple", "grey", "ink")


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


# Palette: Okabe and Ito 2008, "Color universal design", with variants of equal hue on dark ground.
STYLE: Final = f"""
:root {{ color-scheme: light dark; {_variables(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
.chart text {{ font: 12px {FONTS}; fill: var(--ink); }}
.chart .grid {{ stroke: var(--faint); stroke-width: 1; }}
.chart .axis {{ stroke: var(--grey); stroke-width: 1; }}
.chart .line {{ fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }}
.chart .thin {{ fill: none; stroke-width: 1.3; }}
.chart .thick {{ stroke-width: 5; stroke-linecap: butt; opacity: .45; }}
.chart .dashed {{ stroke-dasharray: 5 4; }}
.chart .band {{ stroke: none; opacity: .2; }}
.chart .dot {{ stroke: none; }}
.chart .cloud {{ opacity: .45; }}
""" + "".join(
    f".chart .{name} {{ stroke: var(--{name}); }} .chart .band.{name}, .chart .dot.{name} {{ fill: var(--{name}); }}\n"
    for name in COLOURS
)


@dataclass(frozen=True)
class Axis:
    """One axis: label, range, and what its ticks say.

    Attributes:
        label: with the unit.
        low, high: of the data shown.
        logarithmic: scale; both bounds are then positive.
        ticks: where; default round numbers.
        names: of the ticks; default the numbers.
    """

    label: str
    low: float
    high: float
    logarithmic: bool = False
    ticks: Sequence[float] | None = None
    names: Sequence[str] | None = None

    def place(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`; values outside are brought to the ends."""
        if self.logarithmic:
            share = math.log(max(value, 1e-30) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def marks(self) -> list[tuple[float, str]]:
        """Ticks inside the range, with their names."""
        values = (
            self.ticks if self.ticks is not None else (_decades if self.logarithmic else _round)(self.low, self.high)
        )
        names = self.names if self.names is not None else [f"{value:g}" for value in values]
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        return [(v, n) for v, n in zip(values, names, strict=True) if self.low - slack <= v <= self.high + slack]


@dataclass
class Chart:
    """A chart to draw on; `svg()` gives the text.

    Attributes:
        title: what it shows, for those who do not see it.
        x, y: axes.
        height: of the plot area.
        left: room for the names of the vertical axis.
    """

    title: str
    x: Axis
    y: Axis
    height: int = 230
    left: int = _LEFT
    _marks: list[str] = field(default_factory=list)
    _legend: list[LegendItem] = field(default_factory=list)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, kind: str = "line", name: str = "") -> None:
        """A line through points; `kind` adds CSS classes such as "thin dashed"; a name puts it into the legend."""
        points = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        style = kind if "line" in kind.split() else f"line {kind}"
        self._marks.append(f'<polyline class="{style} {colour}" points="{points}"/>')
        self._name(name, colour, style)

    def band(
        self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str, name: str = ""
    ) -> None:
        """The area between two lines."""
        edge = [*zip(xs, highs, strict=True), *reversed(list(zip(xs, lows, strict=True)))]
        points = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in edge)
        self._marks.append(f'<polygon class="band {colour}" points="{points}"/>')
        self._name(name, colour, "band")

    def dots(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        colour: str,
        *,
        radius: float = 3,
        kind: str = "",
        name: str = "",
    ) -> None:
        for x, y in zip(xs, ys, strict=True):
            self._marks.append(
                f'<circle class="dot {kind} {colour}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="{radius}"/>'
            )
        self._name(name, colour, "dot")

    def vertical(self, x: float, low: float, high: float, colour: str, kind: str) -> None:
        """A vertical stroke from one value to another."""
        self._marks.append(
            f'<line class="{kind} {colour}" x1="{self._x(x):.1f}" x2="{self._x(x):.1f}" '
            f'y1="{self._y(low):.1f}" y2="{self._y(high):.1f}"/>'
        )

    def svg(self, *, standalone: bool = False) -> str:
        """The drawing; standalone with its own style, as a file needs it."""
        rows = _rows_of_legend(self._legend, WIDTH - self.left)
        top = 8 + _LEGEND_ROW * len(rows)
        total = top + self.height + _BOTTOM
        style = f"<style>{STYLE}</style>" if standalone else ""
        legend = "".join(_legend_item(item, x, 14 + _LEGEND_ROW * i) for i, row in enumerate(rows) for x, item in row)
        namespace = 'xmlns="http://www.w3.org/2000/svg" ' if standalone else ""
        return (
            f'<svg {namespace}class="chart" viewBox="0 0 {WIDTH} {total}" role="img" '
            f'aria-label="{escape(self.title)}">{style}<title>{escape(self.title)}</title>'
            f'<g transform="translate({self.left} 0)">{legend}</g><g transform="translate({self.left} {top})">'
            f"{self._grid()}{''.join(self._marks)}{self._frame()}</g></svg>"
        )

    @property
    def _width(self) -> int:
        return WIDTH - self.left - _RIGHT

    def _x(self, value: float) -> float:
        return self.x.place(value) * self._width

    def _y(self, value: float) -> float:
        return (1 - self.y.place(value)) * self.height

    def _name(self, name: str, colour: str, kind: str) -> None:
        if name:
            self._legend.append((name, colour, kind))

    def _grid(self) -> str:
        across = (f'<line class="grid" x1="0" x2="{self._width}" y1="{y:.1f}" y2="{y:.1f}"/>'
                  for y in (self._y(value) for value, _ in self.y.marks()))  # fmt: skip
        return "".join(across)

    def _frame(self) -> str:
        parts = [f'<line class="axis" x1="0" x2="{self._width}" y1="{self.height}" y2="{self.height}"/>']
        for value, name in self.x.marks():
            x = self._x(value)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{self.height}" y2="{self.height + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.height + 17}" text-anchor="middle">{escape(name)}</text>')
        for value, name in self.y.marks():
            parts.append(f'<text x="-7" y="{self._y(value) + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        middle = self.height / 2
        parts.append(
            f'<text x="{self._width / 2}" y="{self.height + 35}" text-anchor="middle">{escape(self.x.label)}</text>'
        )
        if self.y.label:
            parts.append(
                f'<text transform="translate({12 - self.left} {middle}) rotate(-90)" text-anchor="middle">'
                f"{escape(self.y.label)}</text>"
            )
        return "".join(parts)


def _rows_of_legend(
    items: Sequence[tuple[str, str, str]], width: float
) -> list[list[tuple[float, tuple[str, str, str]]]]:
    """Legend items with their horizontal places, in as many rows as they need."""
    rows: list[list[tuple[float, tuple[str, str, str]]]] = []
    x = math.inf
    for item in items:
        needed = 36 + _CHARACTER * len(item[0])
        if x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, item))
        x += needed
    return rows


def _legend_item(item: LegendItem, x: float, y: float) -> str:
    name, colour, kind = item
    if kind == "band":
        mark = f'<rect class="band {colour}" x="{x:.1f}" y="{y - 9}" width="18" height="10"/>'
    elif kind == "dot":
        mark = f'<circle class="dot {colour}" cx="{x + 9:.1f}" cy="{y - 4}" r="4"/>'
    else:
        mark = f'<line class="{kind} {colour}" x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y - 4}" y2="{y - 4}"/>'
    return f'{mark}<text x="{x + 23:.1f}" y="{y}">{escape(name)}</text>'


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten, or powers of ten alone where these are many."""
    wide = math.log10(high / low) > 2.6
    factors = (1,) if wide else (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**exponent for exponent in exponents for factor in factors]


def _round(low: float, high: float) -> list[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
