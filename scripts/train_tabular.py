"""Train a generator of networks for tables never seen.

    python -m scripts.train_tabular
    python -m scripts.train_tabular seed=1 training.num_steps=1000

Inputs: none, all tables are drawn at random. Outputs in `out`: `tabular.safetensors`, which
`GeneratedClassifier(weights=...)` takes, the checkpoint (the same command resumes), and the resolved config. The
weights of the package are those of seed 0. About six CPU-minutes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from generator.tabular.files import save_tabular
from generator.tabular.training import train_tabular

from . import cli
from .allocator import keep_freed_memory


def main(config: DictConfig) -> None:
    from hydra.utils import instantiate

    torch.set_num_threads(config.num_threads or torch.get_num_threads())
    keep_freed_memory()
    out, training = Path(config.out), instantiate(config.training, _convert_="all")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    begin = time.process_time()
    with Progress(*columns, console=cli.console) as progress:
        bar = progress.add_task("", total=training.num_steps)

        def show(done: int, loss: float) -> None:
            progress.update(bar, completed=done, description=f"loss {loss:.3f}")

        model = train_tabular(training, out=out, device=config.device, on_step=show)
    summary = {
        "cpu_seconds": round(time.process_time() - begin),
        "num_params": sum(p.numel() for p in model.parameters()),
    }
    command = f"python -m scripts.train_tabular {' '.join(sys.argv[1:])}".strip()
    info = {"command": command, "training": OmegaConf.to_container(config.training, resolve=True), **summary}
    path = out / "tabular.safetensors"
    save_tabular(path, model, info)
    cli.save_run(out, config, summary)
    cli.console.print(f"weights in {path.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main, "train_tabular")
