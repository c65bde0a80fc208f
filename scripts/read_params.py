"""Read networks: loss, error and hyperparameters from weights alone, and the nearest runs of a zoo.

    python -m scripts.read_params reader=out/reader params=x.safetensors
    python -m scripts.read_params reader=out/reader params=[x.safetensors,y.safetensors] zoo=PATH

Inputs: the folder of a trained reader; networks as safetensors with the names of their state dict; optionally a zoo of
the same architecture. Outputs: for each network and quantity the value, and the interval that holds the true one as
often as the reader promises; the runs whose last networks are nearest, up to the order of units. `config.yaml` and
`summary.json` in `out`. Typical run time: seconds.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from .cli import console, run, save_run


def main(config: DictConfig) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from generator import WeightReader
    from generator.evaluation.neighbours import nearest_runs
    from generator.networks import read_start
    from generator.training.tasks import task_of
    from zoo.devices import resolve_device
    from zoo.storage.zoo import Zoo

    paths = [str(path) for path in (config.params if isinstance(config.params, ListConfig) else [config.params])]
    try:
        states = [load_file(path) for path in paths]
    except SafetensorError as error:
        raise ValueError(f"params must be safetensors files: {error}") from error
    reader = WeightReader.from_pretrained(str(config.reader)).to(resolve_device(config.device))
    zoo = None if config.zoo is None else Zoo.open(str(config.zoo))
    reading = reader.read(states, task=None if zoo is None else task_of(zoo))
    found = None if zoo is None else nearest_runs(zoo, read_start(states, [zoo.layout])[1], k=config.num_nearest)
    summary: dict[str, dict] = {}
    for i, path in enumerate(paths):
        console.print(f"{path}:")
        summary[path] = {
            name: [part[name][i].item() for part in (reading.values, reading.low, reading.high)]
            for name in reading.values
        }
        for name, (value, low, high) in summary[path].items():
            console.print(f"  {name} {value:.4g} ({low:.4g} to {high:.4g})")
        if found is not None:
            summary[path]["nearest_runs"] = found.index[i].tolist()
            shown = zip(found.index[i].tolist(), found.distances[i].tolist(), strict=True)
            console.print(f"  nearest runs: {', '.join(f'{run} at {distance:.3g}' for run, distance in shown)}")
    save_run(Path(str(config.out)), config, summary)


if __name__ == "__main__":
    run(main, "read_params")
