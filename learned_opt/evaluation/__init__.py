"""How good learned optimizers are: on unseen tasks and widths, beside tuned rivals."""

from learned_opt.evaluation.comparison import Result, Results, evaluate
from learned_opt.evaluation.rivals import Method
from learned_opt.evaluation.tasks import evaluation_tasks

__all__ = [
    "Method",
    "Result",
    "Results",
    "evaluate",
    "evaluation_tasks",
]
