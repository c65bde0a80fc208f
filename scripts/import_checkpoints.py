"""Make a zoo of checkpoints that were trained elsewhere.

    python -m scripts.import_checkpoints paths=PATH out=PATH [metrics=PATH] [task='{name: digits, hidden: [16]}']

Inputs: safetensors files, torch files (never run as code), sharded checkpoints (DCP, FSDP), or adapters; a folder of
them, each child of which is a run, or a list paths=[a,b,...] of runs, where a folder is a trajectory; the same as
hf://USER/REPO/PATH. Runs of Hugging Face's Trainer, of Lightning and of Ray Tune, and databases of G.pt (which need
task=), are known by their files. Steps and metrics come from metrics.csv or metrics.json beside them, the table given,
or what these tools note. Outputs: a zoo at `out`, all of it or nothing; `config.yaml` and `summary.json` in the folder
PATH-import. Run time: that of reading the files.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from zoo import get_task, import_checkpoints
from zoo.inspection import summarize, summary_tables

from .cli import console, run, save_run


def main(config: DictConfig) -> int:
    task = None if config.task is None else get_task(**OmegaConf.to_container(config.task))
    paths = [str(path) for path in config.paths] if isinstance(config.paths, ListConfig) else str(config.paths)
    out = Path(str(config.out)).absolute()
    zoo = import_checkpoints(
        paths,
        out,
        model=None if task is None else task.layout,
        task_config=None if task is None else task.config,
        metrics=None if config.metrics is None else str(config.metrics),
        state_key=config.state_key,
        dtype=config.dtype,
        keep_nonfinite=config.keep_nonfinite,
    )
    summary = summarize(zoo)
    for table in summary_tables(summary):
        console.print(table)
    folder = out.with_name(f"{out.name}-import")
    save_run(folder, config, summary)
    console.print(f"zoo in {out}, config.yaml and summary.json in {folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run(main, "import_checkpoints")
