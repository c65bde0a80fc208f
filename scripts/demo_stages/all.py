"""All stages of the demo, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from omegaconf import DictConfig

from . import build, join, optimize, prompt, train
from .stage import Stage, StageResult


def _on_one_thread(run: Callable[[DictConfig], StageResult]) -> Callable[[DictConfig], StageResult]:
    """At the sizes of these stages a second thread costs more than it gives."""

    def with_one_thread(config: DictConfig) -> StageResult:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run(config)
        finally:
            torch.set_num_threads(before)

    return with_one_thread


STAGES: Final = {
    stage.name: stage
    for stage in (
        Stage("zoo", "1. A zoo: networks trained at once", (), build.run),
        Stage("generator", "2. A generator, trained on the zoo", ("zoo",), _on_one_thread(train.run)),
        Stage("prompting", "3. Losses asked of unseen networks", ("zoo", "generator"), _on_one_thread(prompt.run)),
        Stage("optimizer", "4. A learned optimizer on other data", (), _on_one_thread(optimize.run)),
        Stage("join", "5. Generated networks, fine-tuned", ("zoo", "generator"), _on_one_thread(join.run)),
    )
}
