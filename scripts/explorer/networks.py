"""What is shown of networks: their metrics over training, a plane in which they lie, their weights as pictures.

Legend: R runs, S snapshots, P numbers of one network, U rows of a weight matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from zoo import ParamLayout, Task, Zoo
from zoo.inspection.summary import last_snapshots
from zoo.networks.alignment import align
from zoo.storage.selection import evenly

MAX_LINES: Final = 80  # runs drawn one by one
MAX_POINTS: Final = 10_000  # networks in a plane
_MAX_BYTES: Final = 2**29
_MAX_ROWS, _MAX_COLUMNS, _MAX_TENSORS, _MAX_FRAMES = 64, 1024, 8, 60  # of weights that are drawn
LEVELS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


def affordable(layout: ParamLayout, most: int) -> int:
    """How many networks, at most that many, are held in memory at once."""
    return min(most, max(2, _MAX_BYTES // (8 * layout.num_params)))


def trajectories(zoo: Zoo, metric: str, runs: np.ndarray) -> dict[str, Any]:
    """A metric over training: quantiles over the runs at each snapshot, and some runs one by one."""
    if not len(runs):
        return {"steps": [], "quantiles": [], "lines": []}
    values = zoo.metric(metric)[runs]  # (R, S)
    steps = np.where(zoo.inner_step[runs] >= 0, zoo.inner_step[runs], np.nan)
    has_any = np.isfinite(values).any(0) & np.isfinite(steps).any(0)
    shown = evenly(np.arange(len(runs)), MAX_LINES)
    return {
        "steps": np.nanmedian(steps[:, has_any], axis=0),
        "levels": LEVELS,
        "quantiles": np.nanquantile(values[:, has_any], LEVELS, axis=0),
        "lines": [{"run": runs[row], "steps": steps[row], "values": values[row]} for row in shown],
    }


def plane_methods() -> list[str]:
    """Ways to lay networks out in a plane that are there: UMAP only where it is installed."""
    return ["PCA", *(["UMAP"] if find_spec("umap") else [])]


def plane(zoo: Zoo, method: str) -> dict[str, Any]:
    """Last networks of runs that did not fail, units matched to the best known one, as points in a plane.

    Returns:
        "runs" (R,), "points" (R, 2) and "shares" of the variance (empty for UMAP).
    """
    runs = zoo.usable_runs()
    last = last_snapshots(zoo)
    runs = evenly(runs[last[runs] >= 0], affordable(zoo.layout, MAX_POINTS))
    params = torch.from_numpy(zoo.read(np.stack([runs, last[runs]], axis=1)))
    finite = params.isfinite().all(1)
    runs, params = runs[finite.numpy()], params[finite]
    if len(runs) < 3:
        raise ValueError(f"a plane needs three networks, the zoo has {len(runs)}")
    matched = align(zoo.layout, params, params[0]).params[:, : zoo.layout.num_trainable]
    if method == "UMAP":
        from umap import UMAP

        return {"runs": runs, "points": UMAP(random_state=0).fit_transform(matched.numpy()), "shares": []}
    fitted = PCA(2, svd_solver="randomized", random_state=0).fit(matched)
    return {"runs": runs, "points": fitted.transform(matched), "shares": fitted.explained_variance_ratio_}


def weight_pictures(layout: ParamLayout, params: Tensor, image: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """The first weight matrices of networks (N, P), as far as they can be shown.

    Args:
        layout: of the networks.
        params: (N, P).
        image: height and width of inputs; rows of that many numbers are drawn as images.

    Returns:
        For each tensor its name, shape, the shape of one row, and the rows by network (N, U, columns).
    """
    shown = []
    for slot in layout:
        if slot.kind == "buffer" or len(slot.shape) < 2 or len(shown) == _MAX_TENSORS:
            continue
        rows = params[:, slot.span].reshape(len(params), slot.shape[0], -1)[:, :_MAX_ROWS, :_MAX_COLUMNS]
        row_shape = _row_shape(slot.shape, rows.shape[-1], image)
        shown.append({"name": slot.name, "shape": slot.shape, "row_shape": row_shape, "rows": rows})
    return shown


def _row_shape(shape: Sequence[int], size: int, image: Sequence[int] | None) -> list[int]:
    """Height and width in which `size` numbers of a row are drawn: an image, kernels one below the other, or a line."""
    if image is not None and size == image[0] * image[1] and len(shape) == 2:
        return list(image)
    return [size // shape[-1], shape[-1]] if len(shape) == 4 and size % shape[-1] == 0 else [1, size]


def history(zoo: Zoo, run: int, image: Sequence[int] | None) -> dict[str, Any]:
    """One run over its training: steps, metrics, and its weights at each of at most `_MAX_FRAMES` snapshots."""
    frames = evenly(np.flatnonzero(zoo.inner_step[run] >= 0), _MAX_FRAMES)
    params = torch.from_numpy(zoo.read(np.stack([np.full_like(frames, run), frames], axis=1)))
    return {
        "run": run,
        "steps": zoo.inner_step[run, frames],
        "metrics": {name: zoo.metric(name)[run, frames] for name in zoo.spec.metric_names},
        "tensors": weight_pictures(zoo.layout, params, image)[:2],
    }


def image_shape(task: Task | None) -> list[int] | None:
    """Height and width of inputs that can be drawn, None otherwise."""
    shape = () if task is None else task.dataset.test.inputs.shape[1:]
    return list(shape[1:]) if len(shape) == 3 and shape[0] == 1 else None
