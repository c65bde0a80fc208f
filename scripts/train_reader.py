"""Train a reader on one or several zoos: loss, error and hyperparameters of a network, from its weights alone.

    python -m scripts.train_reader zoo=PATH out=PATH
    python -m scripts.train_reader zoo=[A,B,C] out=PATH                # one reader of several widths
    python -m scripts.train_reader zoo=PATH pipeline=out/generator     # for `best_of` of that generator, too

Inputs: zoos of one architecture, whose widths may differ. Outputs in `out`: the reader, which
`WeightReader.from_pretrained` and `read_params` take, the resolved config, and `summary.json` with R² and the share of
intervals that hold the true value, on test runs. A CPU-minute on a digits zoo; a training that is interrupted is
begun anew.
"""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from .cli import console, run, save_run


def main(config: DictConfig) -> None:
    import torch
    from hydra.utils import instantiate

    from generator import ParameterPipeline, train_reader
    from generator.evaluation.reading import reading_report
    from generator.saved_pipeline import PIPELINE_FOLDER
    from zoo.devices import resolve_device
    from zoo.storage.zoo import Zoo

    torch.set_num_threads(config.num_threads or torch.get_num_threads())
    paths = [str(path) for path in (config.zoo if isinstance(config.zoo, ListConfig) else [config.zoo])]
    zoos, settings = [Zoo.open(path) for path in paths], instantiate(config.training, _convert_="all")
    pipe = None if config.pipeline is None else ParameterPipeline.from_pretrained(str(config.pipeline))
    begin = time.process_time()
    reader = train_reader(zoos, settings, out=str(config.out), device=config.device)
    seconds = round(time.process_time() - begin)
    reader.to(resolve_device(config.device))
    reports = {path: reading_report(reader, zoo) for path, zoo in zip(paths, zoos, strict=True)}
    for path, report in reports.items():
        console.print(f"{path}, test runs:")
        for name, figures in report.items():
            console.print(f"  {name}: {', '.join(f'{key} {value:.3f}' for key, value in figures.items())}")
    save_run(Path(str(config.out)), config, {"cpu_seconds": seconds, "read": reports})
    console.print(f"trained in {seconds} CPU-s; the reader is in {config.out}", soft_wrap=True)
    if pipe is not None:
        pipe.reader = reader.to("cpu")
        found = Path(str(config.pipeline))
        place = found / PIPELINE_FOLDER if (found / PIPELINE_FOLDER).exists() else found
        pipe.save_pretrained(place)
        console.print(f"and part of the pipeline in {place}", soft_wrap=True)


if __name__ == "__main__":
    run(main, "train_reader")
