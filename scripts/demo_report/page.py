"""`report.html`: one page with everything in it, and the charts as files of their own.

The page loads nothing, so it can be mailed, archived, or opened without a network; the generators themselves are in it.
Its prose is in `report.html.jinja`, what it computes in `generator.js` and `tabular.js`, and what it does with that in
`live.js` and `border.js`.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from generator.tabular.files import SHIPPED
from zoo.storage.durable import write_file

from ..demo_stages.optimize import ADAMW, MULO, MULO_TOLD_STEPS, TUNED
from ..demo_stages.prompt import SHOWN_SETS
from ..demo_stages.stage import Record
from . import figures, pictures
from .chart import STYLE

_FOLDER: Final = Path(__file__).parent
_STRONGEST: Final = 0.98  # quantile of a picture's weights that is drawn in full colour


def write_report(
    records: Mapping[str, Record], summary: Mapping[str, Any], out: Path, live: bytes | None = None
) -> None:
    """Write `report.html`, and `figures/*.svg`, into the folder `out`.

    Args:
        records: of the finished stages, by name; others have no section.
        summary: from `summarize`.
        out: folder of the demo.
        live: from `live_file`, of the section in which the generator runs; None for none.
    """
    numbers = {name: record.result.numbers for name, record in records.items() if record.result is not None}
    data = {name: record.result.data for name, record in records.items() if record.result is not None}
    charts = {name: (chart, data[stage]) for name, (stage, chart) in figures.CHARTS.items() if stage in data}
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: f"{100 * value:.1f}%",
        "loss": lambda value: f"{value:.3g}",
        "count": lambda value: f"{value:,.0f}",
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    text = environment.get_template("report.html.jinja").render(
        style=Markup(STYLE),
        charts={name: Markup(chart.svg(shown)) for name, (chart, shown) in charts.items()},
        live=live and base64.b64encode(live).decode(),
        tabular=base64.b64encode(SHIPPED.read_bytes()).decode(),
        live_chart=live and Markup(figures.LIVE.svg(data["prompting"])),
        prompts=data["prompting"]["prompts"] if "prompting" in data else None,
        num_units=len(data["prompting"]["pictures"]["weights"]["start"]) if "prompting" in data else 0,
        curves="optimizer" in data and Markup(json.dumps(figures.curve_numbers(data["optimizer"]))),
        colours={name: f"var(--{colour})" for name, colour in figures.METHOD_COLOURS.items()},
        script=lambda name: Markup((_FOLDER / name).read_text()),
        pictures=_pictures(data["prompting"]["pictures"]) if "prompting" in data else None,
        methods=(ADAMW, TUNED, MULO, MULO_TOLD_STEPS),
        kinds={name: figures.NETWORK_KINDS[name][0] for name in SHOWN_SETS},
        summary=summary,
        date=datetime.date.today().isoformat(),
        **{name: numbers.get(name) for name in ("zoo", "generator", "prompting", "optimizer", "join", "tables")},
    )
    write_file(out / "report.html", [text.encode()])
    for name, (chart, shown) in charts.items():
        write_file(out / "figures" / f"{name}.svg", [chart.svg(shown, standalone=True).encode()])


def _pictures(data: Mapping[str, Any]) -> dict[str, Any]:
    """First layers and mistakes, with pictures as data URIs."""
    weights = {
        name: [[abs(value) for value in unit] for unit in data["weights"][name]] for name in ("generated", "trained")
    }
    strengths = sorted(value for rows in weights.values() for unit in rows for value in unit)
    scale = max(strengths[int(_STRONGEST * (len(strengths) - 1))], 1e-9)
    shape = tuple(data["image_shape"])
    rows = {name: pictures.weight_images(units, shape, scale) for name, units in data["weights"].items()}
    wrong = [{**one, "image": pictures.digit_image(one["image"])} for one in data["wrong"]]
    return {**data, "weights": rows, "wrong": wrong}
