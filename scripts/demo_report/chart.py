"""Charts as SVG that follows the reader's light or dark theme, inside a page or as files of their own.

matplotlib draws them in the colours of the light theme; these then become CSS variables, of which `PALETTE` has both
themes. Sizes are chosen for a phone: at its width text is still readable.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_WIDTH: Final = 440  # CSS pixels, at 72 a unit of matplotlib
_FONTS: Final = 'system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif'
# Palette: Okabe and Ito 2008, "Color universal design", with variants of equal hue on dark ground.
LIGHT: Final = {
    "blue": "#0072b2", "orange": "#d55e00", "green": "#00825f", "purple": "#a3508f",
    "grey": "#7a7a7a", "ink": "#1f2328", "faint": "#e3e3de",
}  # fmt: skip
_DARK: Final = {
    "blue": "#5ab4e6", "orange": "#f08a4b", "green": "#35c29a", "purple": "#d68fc4",
    "grey": "#9a9a9a", "ink": "#e6e4df", "faint": "#34373b",
}  # fmt: skip
_DRAWING: Final[dict[str, Any]] = {
    "axes.edgecolor": LIGHT["grey"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": LIGHT["ink"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 12,
    "grid.color": LIGHT["faint"],
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text, in the reader's font
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["grey"],
    "xtick.labelcolor": LIGHT["ink"],
    "xtick.minor.bottom": False,
    "ytick.labelcolor": LIGHT["ink"],
    "ytick.left": False,
    "ytick.minor.left": False,
}


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


PALETTE: Final = f"""
:root {{ color-scheme: light dark; --ground: #fdfdfb; --panel: #f5f5f1; --soft: #5c6168; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #16181b; --panel: #1e2125; --soft: #a3a7ad; {_variables(_DARK)} }}
}}
"""
STYLE: Final = f"""{PALETTE}
.chart * {{ stroke-linejoin: round; stroke-linecap: butt; }}
.chart text {{ font-family: {_FONTS}; }}
"""


@dataclass(frozen=True)
class Chart:
    """One chart of the page.

    Attributes:
        title: what it shows, for those who do not see it.
        draw: draws a stage's data on axes.
        height: in CSS pixels, of which the width is 440.
        legend_columns: into how many columns the legend's names go.
        name: by which scripts of the page find it; they find the scales of its axes, too.
    """

    title: str
    draw: Callable[[Axes, Mapping[str, Any]], None]
    height: int = 300
    legend_columns: int = 2
    name: str = ""

    def svg(self, data: Mapping[str, Any], *, standalone: bool = False) -> str:
        """The drawing; standalone with its own style, as a file needs it."""
        with rc_context({**_DRAWING, "svg.hashsalt": self.title}):  # ids that no other chart of the page has
            figure = Figure((_WIDTH / 72, self.height / 72), layout="constrained")
            axes = figure.subplots()
            self.draw(axes, data)
            if axes.get_legend_handles_labels()[0]:
                figure.legend(loc="outside upper left", ncols=self.legend_columns)
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=True)
            found = f' data-name="{self.name}" data-plot="{escape(json.dumps(_scales(axes, self.height)))}"'
        drawing = _with_variables(text.getvalue())
        return (
            f'<svg class="chart"{found if self.name else ""} viewBox="0 0 {_WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}" '
            'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
            f"{f'<style>{STYLE}</style>' if standalone else ''}<title>{escape(self.title)}</title>{drawing}"
        )


def _scales(axes: Axes, height: int) -> dict[str, dict[str, Any]]:
    """Where the limits of both axes are in the drawing, in its pixels from the left and from the top."""
    box = axes.get_position()
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return {
        "x": {"from": box.x0 * _WIDTH, "to": box.x1 * _WIDTH, "low": left, "high": right, "scale": axes.get_xscale()},
        "y": {
            "from": (1 - box.y0) * height, "to": (1 - box.y1) * height, "low": low, "high": high,
            "scale": axes.get_yscale(),
        },
    }  # fmt: skip


def _with_variables(svg: str) -> str:
    """What matplotlib wrote, from behind its opening tag, in colours and fonts that follow the page."""
    body = svg.partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    used = set(re.findall(r"""#([^")]+)""", body))
    return re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", body)
