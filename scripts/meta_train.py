"""Meta-train a learned optimizer.

    python -m scripts.meta_train experiment=mulo_norm seed=0
    python -m scripts.meta_train experiment=mulo num_devices=2

Inputs: none, all tasks are generated or ship with dependencies. Outputs in `out`: checkpoints (the same command
resumes), `<name>.safetensors` for each stage, `history.json` with the meta-loss curves, the resolved config. About 30
CPU-minutes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from learned_opt.meta_training import (
    MetaTrainHistory,
    MetaTrainStage,
    TrainedStage,
    launched_devices,
    outer_curves,
    run_recipe,
    stage_info,
)
from learned_opt.pretrained.files import save_theta

from . import cli
from .allocator import keep_freed_memory

_AVERAGED = 20  # last outer steps in the meta-loss that is shown


def main(config: DictConfig) -> None:
    from hydra.utils import instantiate

    torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    stages = [instantiate(stage, name=name, _convert_="all") for name, stage in config.stages.items()]
    out = Path(config.out)
    devices = launched_devices(config.num_devices, config.device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TextColumn("{task.fields[state]}"))
    bars = {one.name: progress.add_task(one.name, total=one.training.num_outer_steps, state="") for one in stages}

    def show(stage: MetaTrainStage, done: int, history: MetaTrainHistory) -> None:
        recent = history.meta_loss[-_AVERAGED:]
        validation = f", validation {history.validation[-1][1]:.4f}" if history.validation else ""
        state = f"meta-loss {sum(recent) / len(recent):.4f}{validation}"
        progress.update(bars[stage.name], completed=done, state=state)

    if devices.rank:
        config.logger = None  # the first process logs
    with progress, cli.tracking(config, out, outer_curves) as log:
        results = run_recipe(
            stages,
            seed=config.seed,
            out=out,
            devices=devices,
            device=config.device,
            on_outer_step=lambda *state: (show(*state), log(*state)),
        )
    if devices.rank == 0:
        _save(results, out, config)
        cli.console.print(f"meta-parameters and history.json in {out.absolute()}", soft_wrap=True)
    devices.close()


def _save(results: list[TrainedStage], out: Path, config: DictConfig) -> None:
    command = f"python -m scripts.meta_train experiment={config.name.replace('-', '_')} seed={config.seed}"
    before: list[dict[str, object]] = []
    for one in results:
        info = stage_info(one, seed=config.seed, command=command)
        save_theta(out / f"{one.stage.name}.safetensors", one.result.theta, one.rule, info | {"before": before})
        before = [*before, info]
    histories = {result.stage.name: asdict(result.result.history) for result in results}
    (out / "history.json").write_text(json.dumps(histories))
    cli.save_run(out, config, {name: history["validation"] for name, history in histories.items()})


if __name__ == "__main__":
    cli.run(main, "meta_train")
