"""All stages of the demo, in order."""

from __future__ import annotations

from typing import Final

from . import build, join, optimize, prompt, tables, train
from .stage import Stage

STAGES: Final = {
    stage.name: stage
    for stage in (
        Stage("zoo", "1. A zoo: networks trained at once", (), build.run, on_one_thread=False),
        Stage("generator", "2. A generator, trained on the zoo", ("zoo",), train.run),
        Stage("prompting", "3. Losses asked of unseen networks", ("zoo", "generator"), prompt.run),
        Stage("optimizer", "4. A learned optimizer on other data", (), optimize.run),
        Stage("join", "5. Generated networks, fine-tuned", ("zoo", "generator"), join.run),
        Stage("tables", "6. Tables never seen", (), tables.run),
    )
}
