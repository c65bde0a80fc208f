"""How good a trained generator is: on unseen starts, beside baselines, tested for copying."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface

if TYPE_CHECKING:
    from generator.evaluation.collapse import collapse_report
    from generator.evaluation.novelty import novelty_report
    from generator.evaluation.protocol import EvaluationConfig, evaluate
    from generator.evaluation.testbed import PipelineSampler, Testbed
    from generator.evaluation.unseen_starts import alignment_report
    from generator.evaluation.unseen_tasks import unseen_tasks_report
else:
    __getattr__, __dir__ = lazy_surface(__name__)

__all__ = [
    "EvaluationConfig",
    "PipelineSampler",
    "Testbed",
    "alignment_report",
    "collapse_report",
    "evaluate",
    "novelty_report",
    "unseen_tasks_report",
]
