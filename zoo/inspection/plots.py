"""Pictures of a zoo: how its runs went, where they ended, how far apart they are, and the paths they took.

Figures are drawn off screen, so no display and no global plotting state is needed.

Legend: R runs, S snapshots, P numbers of one network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from zoo.inspection.summary import final_metric, last_snapshots, metric_families, metric_quantiles
from zoo.networks.alignment import align
from zoo.networks.metrics import matched_distances
from zoo.networks.symmetry import apply
from zoo.storage.schema import RunStatus
from zoo.storage.selection import evenly
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import TASK_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito's palette, distinguishable with any colour vision; magnitudes in cividis.
_BLUE: Final = "#0072B2"
_VERMILION: Final = "#D55E00"
_GREY: Final = "#666666"
_COLORMAP: Final = "cividis"
_OTHER_UNITS: Final = {"arrays", "table", "saved_rows", "cartpole"}  # tasks whose losses may be no nats
_MAX_BYTES: Final = 2**28
_MAX_RUNS: Final = 48  # whose networks are compared
_MAX_BINS: Final = 40
_STYLE: Final[dict] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "figure.constrained_layout.w_pad": 0.12,
}


def draw_zoo(zoo: Zoo, out: Path) -> list[Path]:
    """Draw all pictures that the zoo has the numbers for, as PNG files in the folder `out`; returns their paths."""
    from matplotlib import rc_context

    pictures: dict[str, Callable[[Zoo], Figure]] = {}
    runs = zoo.usable_runs()
    if len(runs) and zoo.spec.metric_names:
        pictures["final_metrics"] = draw_final_metrics
        if zoo.num_snapshots > 1:
            pictures["trajectories"] = draw_trajectories
    if len(runs) > 1:
        pictures["distances"] = draw_distances
        if zoo.num_snapshots > 1:
            pictures["trajectory_pca"] = draw_trajectory_pca
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in pictures.items():
        paths.append(out / f"{name}.png")
        with rc_context(_STYLE):
            draw(zoo).savefig(paths[-1], dpi=150)
    return paths


def draw_trajectories(zoo: Zoo) -> Figure:
    """Fan chart of each kind of metric over inner steps: median, quartiles and 5-95% of the usable runs."""
    families = metric_families(zoo.spec.metric_names)
    figure, panels = _panels(len(families))
    for axes, (what, members) in zip(panels, families.items(), strict=True):
        steps, quantiles = metric_quantiles(zoo, members[0], (0.05, 0.25, 0.5, 0.75, 0.95))
        axes.fill_between(steps, quantiles[0], quantiles[4], color=_BLUE, alpha=0.18, linewidth=0, label="5-95%")
        axes.fill_between(steps, quantiles[1], quantiles[3], color=_BLUE, alpha=0.35, linewidth=0, label="25-75%")
        axes.plot(steps, quantiles[2], color=_BLUE, linewidth=1.6, label=f"{members[0]}, median")
        for other, dash in zip(members[1:], ("--", ":"), strict=False):
            median = metric_quantiles(zoo, other, (0.5,))[1][0]
            axes.plot(steps, median, color=_VERMILION, linewidth=1.2, linestyle=dash, label=f"{other}, median")
        _scale_steps(axes, steps)
        _scale_values(axes, quantiles)
        axes.set(xlabel="inner step", ylabel=_label(zoo, what))
        axes.legend()
    panels[0].set_title(_count(zoo))
    return figure


def draw_final_metrics(zoo: Zoo) -> Figure:
    """Histograms of each kind of metric at the last snapshot of the usable runs."""
    families = metric_families(zoo.spec.metric_names)
    figure, panels = _panels(len(families))
    for axes, (what, members) in zip(panels, families.items(), strict=True):
        values = final_metric(zoo, members[0])
        is_wide = _spans_decades(values)
        if values.size:
            axes.hist(values, bins=_bins(values, is_logarithmic=is_wide), color=_BLUE, alpha=0.8)
            median = float(np.median(values))
            axes.axvline(median, color=_VERMILION, linewidth=1.4, label=f"median {median:.3g}")
            axes.legend()
        if is_wide:
            axes.set_xscale("log")
            _plain_ticks(axes, "x")
        axes.grid(visible=False, axis="x")
        axes.set(xlabel=f"{_label(zoo, what, members[0])} at the last snapshot", ylabel="number of runs")
    panels[0].set_title(_count(zoo))
    return figure


def draw_distances(zoo: Zoo) -> Figure:
    """Distances between final networks with their units matched, best run first, beside the distances as stored."""
    runs = _choose_runs(zoo, num_snapshots=1)
    label = "run"
    if zoo.spec.metric_names:
        name = next(iter(metric_families(zoo.spec.metric_names).values()))[0]
        runs = runs[np.argsort(zoo.metric(name)[runs, last_snapshots(zoo)[runs]])]
        label = f"rank of the run by final {name}"
    params = torch.from_numpy(zoo.read(np.stack([runs, last_snapshots(zoo)[runs]], 1)))  # (R, P)
    matched = matched_distances(zoo.layout, params)
    trainable = params[:, : zoo.layout.num_trainable]
    pairs = torch.triu_indices(len(runs), len(runs), 1)
    stored = (trainable[pairs[0]] - trainable[pairs[1]]).norm(dim=1)

    figure, (left, right) = _panels(2)
    off_diagonal = matched[pairs[0], pairs[1]]
    image = left.imshow(
        matched.fill_diagonal_(torch.nan).numpy(),
        cmap=_COLORMAP,
        vmin=float(off_diagonal.min()),
        vmax=float(off_diagonal.max()),
    )
    left.grid(visible=False)
    left.set(xlabel=label, ylabel=label, title="distance with units matched")
    figure.colorbar(image, ax=left, label="Euclidean distance", shrink=0.85)
    bins = list(np.histogram_bin_edges(torch.cat([stored, off_diagonal]).numpy(), bins=40))
    right.hist(off_diagonal.numpy(), bins=bins, color=_BLUE, alpha=0.8, label="units matched")
    right.hist(stored.numpy(), bins=bins, histtype="step", color=_VERMILION, linewidth=1.4, label="as stored")
    right.set(xlabel="Euclidean distance", ylabel="number of pairs", title=f"all pairs of {len(runs)} final networks")
    right.grid(visible=False, axis="x")
    right.legend()
    return figure


def draw_trajectory_pca(zoo: Zoo) -> Figure:
    """Trajectories in the plane of their first two principal components, as stored and with units matched."""
    runs = _choose_runs(zoo, num_snapshots=zoo.num_snapshots)
    stored = torch.from_numpy(zoo.params[runs])  # (R, S, P)
    present = torch.from_numpy(zoo.inner_step[runs] >= 0)  # (R, S)
    last = stored[torch.arange(len(runs)), torch.from_numpy(last_snapshots(zoo)[runs])]
    matched = apply(zoo.layout, stored, align(zoo.layout, last, last[0]).permutations)
    figure, panels = _panels(2)
    for axes, params, title in zip(panels, (stored, matched), ("as stored", "units matched to one run"), strict=True):
        points, shares = principal_plane(params[..., : zoo.layout.num_trainable][present])
        paths = torch.full((*present.shape, 2), torch.nan)
        paths[present] = points
        if paths[:, 0, 0].mean() > 0:  # the sign is arbitrary: let time run from left to right
            paths[..., 0] *= -1
        for path, exists in zip(paths, present, strict=True):
            xs, ys = path[exists].numpy().T
            axes.plot(xs, ys, color=_GREY, linewidth=0.6, alpha=0.45)
            axes.plot(xs[0], ys[0], "o", color=_BLUE, markersize=3.5)
            axes.plot(xs[-1], ys[-1], "^", color=_VERMILION, markersize=4)
        axes.plot([], [], "o", color=_BLUE, markersize=4, label="first snapshot")
        axes.plot([], [], "^", color=_VERMILION, markersize=4.5, label="last snapshot")
        axes.set(
            xlabel=f"first component ({shares[0]:.1%} of the variance)",
            ylabel=f"second component ({shares[1]:.1%})",
            title=f"{len(runs)} runs, {title}",
        )
        axes.legend()
    return figure


def principal_plane(points: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Coordinates (n, 2) of points (n, P) on their first two principal components, and the shares of variance."""
    centred = (points - points.mean(0)).double()
    variances, vectors = torch.linalg.eigh(centred @ centred.T)  # ascending; n is small, P need not be
    top = variances[-2:].flip(0).clamp(min=0)
    total = variances.clamp(min=0).sum().clamp(min=torch.finfo(torch.float64).tiny)
    first, second = (top / total).tolist()
    return (vectors[:, -2:].flip(1) * top.sqrt()).float(), (first, second)


def _choose_runs(zoo: Zoo, num_snapshots: int) -> np.ndarray:
    """Usable runs, evenly spaced over the zoo, not more than memory allows."""
    runs = zoo.usable_runs()
    runs = runs[last_snapshots(zoo)[runs] >= 0]
    affordable = max(2, _MAX_BYTES // (4 * num_snapshots * zoo.layout.num_params))
    return evenly(runs, min(_MAX_RUNS, affordable))


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, at most three in a row."""
    from matplotlib.figure import Figure

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _scale_steps(axes: Axes, steps: np.ndarray) -> None:
    """Steps on a scale that is logarithmic but shows zero."""
    positive = steps[steps > 0]
    if positive.size and positive.max() > 30 * positive.min():
        axes.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.5)
        _plain_ticks(axes, "x")
    axes.set_xlim(float(np.nanmin(steps)), float(np.nanmax(steps)))


def _scale_values(axes: Axes, values: np.ndarray) -> None:
    if _spans_decades(values):
        axes.set_yscale("log", nonpositive="mask")
        _plain_ticks(axes, "y")


def _spans_decades(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > 5 * finite.min())


def _bins(values: np.ndarray, *, is_logarithmic: bool) -> list[float]:
    """Edges of a histogram; one bar for each value where there are few, as for errors on a small data set."""
    count = min(_MAX_BINS, max(8, int(2 * len(values) ** 0.5)))
    if is_logarithmic:
        return list(np.geomspace(values.min(), values.max(), count + 1))
    distinct = np.unique(values)
    gap = float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0
    if (distinct[-1] - distinct[0]) / gap <= _MAX_BINS:
        return list(np.arange(distinct[0] - gap / 2, distinct[-1] + gap, gap))
    return list(np.linspace(distinct[0], distinct[-1], count + 1))


def _count(zoo: Zoo) -> str:
    num_usable = len(zoo.usable_runs())
    num_diverged = int((zoo.status == RunStatus.DIVERGED).sum())
    return f"{num_usable:,} runs" + (f"; {num_diverged:,} diverged left out" if num_diverged else "")


def _plain_ticks(axes: Axes, which: str) -> None:
    """Numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())


def _label(zoo: Zoo, what: str, name: str | None = None) -> str:
    """Name of a metric, with its unit where the zoo's task says so: regression and control have others."""
    is_classification = zoo.task_config.get("name") in set(TASK_NAMES) - _OTHER_UNITS
    units = {"loss": " (nats)", "error": " (share of examples)"}
    return (name or what.replace("_", " ")) + (units.get(what, "") if is_classification else "")
