"""Make one network of several: averages, task vectors, TIES, DARE, extrapolation; compress or teleport one.

    python -m scripts.combine method=ties networks=[a.safetensors,b.safetensors] base=base.safetensors out=x.safetensors
    python -m scripts.combine method=average networks=[out/zoo@0,out/zoo@1] out=x.safetensors
    python -m scripts.combine method=extrapolate extrapolate.to_step=1000 networks=[out/zoo@3:all] out=x.safetensors
    python -m scripts.combine method=compress networks=[a.safetensors] base=base.safetensors out=small.safetensors

Inputs: checkpoints (safetensors, torch files, adapters), folders of a run's checkpoints, and networks of zoos: ZOO@3 is
the last snapshot of run 3, ZOO@3:0 its first, ZOO@3:all all of them, ZOO@all the last of every run. All must have one
layout. Outputs: a safetensors file whose metadata say what was combined, with JSON beside it; `config.yaml` and
`summary.json` in the folder x-combine. Buffers: real ones, such as statistics of BatchNorm, are averaged, integers are
those of the last network. With evaluate=true losses of the networks and of the result are printed, on the task that the
zoos record, or task=. Compressed updates are read where networks are, with their base. Run time: that of reading.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor

from zoo import Task, get_task
from zoo.devices import resolve_device
from zoo.operations import Networks, combine, compress, read_networks, save_compressed
from zoo.operations.compression import relative_error
from zoo.operations.methods import METHODS
from zoo.operations.networks import save_network

from .cli import console, run, save_run


def main(config: DictConfig) -> int:
    out = Path(str(config.out)).absolute()
    if out.suffix != ".safetensors" or out.exists():
        raise ValueError(f"out must be a file x.safetensors that does not exist yet, got {out}")
    if config.method not in (*METHODS, "compress"):
        raise ValueError(f"method must be one of {', '.join((*METHODS, 'compress'))}, got {config.method}")
    task = None if config.task is None else get_task(**OmegaConf.to_container(config.task))
    layout = None if task is None else task.layout
    settings = dict(OmegaConf.to_container(config)[config.method])
    base = None if config.base is None else read_networks([str(config.base)], layout=layout)
    given = [config.networks] if isinstance(config.networks, str) else config.networks
    networks = read_networks([str(address) for address in given], base=base, layout=layout)
    if config.evaluate or config.method == "greedy_soup":
        task = _comparable(task, networks).to(resolve_device(config.device))
    about = {"method": config.method, **settings, "networks": list(networks.names), "base": base and base.names[0]}
    if config.method == "compress":
        if base is None or len(networks.params) != 1:
            raise ValueError("compress needs one network, and base=..., the network with which its training began")
        vector = networks.trained()[0] - base.trained()[0]
        small = compress(vector, **settings)
        about |= {"relative_error": relative_error(vector, small.dense())}
        save_compressed(out, networks.layout, networks.params[0], base.params[0], small, about=about)
        params = read_networks([str(out)], base=base).params[0]
        console.print(f"{about['relative_error']:.3g} of the update's norm was lost", highlight=False)
    else:
        evaluate = None if task is None else lambda params: task.evaluate(params.to(task.device), "val")["loss"].cpu()
        params, remarks = combine(networks, config.method, base=base, evaluate=evaluate, seed=config.seed, **settings)
        save_network(out, params, networks, about)
        for remark in remarks:
            console.print(remark, soft_wrap=True)
    evaluated = _evaluated(task, networks, params) if config.evaluate and task else {}
    save_run(out.with_name(f"{out.stem}-combine"), config, about | {"val": evaluated})
    console.print(f"wrote {out}, {out.stat().st_size:,} bytes", soft_wrap=True, highlight=False)
    return 0


def _comparable(task: Task | None, networks: Networks) -> Task:
    """The task given, or that of the networks, if it is the same for all."""
    if task is None:
        if not networks.task_config:
            raise ValueError("losses need the task of the networks, which they do not record: task='{name: ...}'")
        task = get_task(**networks.task_config)
    task.layout.check_vector(networks.params)
    if task.run_attributes([0]):
        raise ValueError(f"{task.config['name']} gives every run a task of its own, so no one loss compares networks")
    return task


def _evaluated(task: Task, networks: Networks, result: Tensor) -> dict[str, list[float]]:
    """Metrics on validation data of all networks, the result last, after printing them."""
    measured = task.evaluate(torch.cat([networks.params, result.unsqueeze(0)]).to(task.device), "val")
    values = {name: value.tolist() for name, value in measured.items()}
    table = Table("network", *(f"val {name}" for name in values))
    for i, name in enumerate([*networks.names, "combined"]):
        table.add_row(name, *(f"{value[i]:.4g}" for value in values.values()))
    console.print(table)
    return values


if __name__ == "__main__":
    run(main, "combine")
