"""A finished zoo in numbers and pictures."""

from zoo.inspection.plots import draw_zoo
from zoo.inspection.summary import final_metric, metric_quantiles, summarize, summary_tables

__all__ = [
    "draw_zoo",
    "final_metric",
    "metric_quantiles",
    "summarize",
    "summary_tables",
]
