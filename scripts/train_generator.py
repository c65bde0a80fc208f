"""Train a generator on one or several zoos.

    python -m scripts.train_generator zoo=PATH out=PATH
    python -m scripts.train_generator zoo=[A,B,C] experiment=generator_depths

Inputs: zoos of one kind of network (widths and depths may differ). Outputs in `out`, which is what
`ParameterPipeline.from_pretrained` and the other commands take: the pipeline, checkpoints (the same command resumes),
curves where `logger` says (by default `log/version_*/metrics.csv`), the resolved config, and `summary.json` with
prompt alignment on unseen initial networks, with a start and from noise. On a digits zoo the defaults take about five
minutes of one core.
"""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from .allocator import keep_freed_memory
from .cli import console, run, save_run


def main(config: DictConfig) -> None:
    import torch
    from hydra.utils import instantiate
    from lightning.pytorch.utilities import rank_zero_only
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from generator import train_generator
    from generator.evaluation import alignment_report
    from zoo.devices import resolve_device
    from zoo.storage.zoo import Zoo
    from zoo.tracking import make_tracker

    keep_freed_memory()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    paths = list(config.zoo) if isinstance(config.zoo, ListConfig) else [config.zoo]
    zoos = [Zoo.open(str(path)) for path in paths]
    settings = instantiate(config.generator, _convert_="all")
    out = Path(str(config.out))
    trainer_options = {"logger": False if config.logger is None else make_tracker(config.logger, out)}
    trainer_options |= OmegaConf.to_container(config.trainer, resolve=True)

    began = time.monotonic()
    try:
        pipe = train_generator(zoos, settings, out=out, device=config.device, trainer_options=trainer_options)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    seconds = time.monotonic() - began
    if rank_zero_only.rank:  # another process reports and saves
        return
    pipe.to(resolve_device(config.device))
    reports = [alignment_report(pipe, zoo, settings, num_starts=config.num_starts) for zoo in zoos]
    for path, report in zip(paths, reports, strict=True):
        console.print(f"{path}:")
        for mode, figures in report.items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            console.print(f"  {mode}: {shown}", soft_wrap=True)
    named = {str(path): report for path, report in zip(paths, reports, strict=True)}
    save_run(out, config, {"training_seconds": seconds, "alignment": named})
    console.print(f"trained in {seconds:.0f} s; the generator is in {out}", soft_wrap=True)


if __name__ == "__main__":
    run(main, "train_generator")
