"""Splitting particles over processes, and bringing back together what they found.

`Devices()` is a single process. `FabricDevices` uses Lightning Fabric, whatever its strategy and accelerator;
`launched_devices` starts its processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.devices import resolve_device

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Devices:
    """One process that holds all particles."""

    num_processes: int = 1
    rank: int = 0

    def place(self, device: torch.device | str) -> torch.device:
        """Where this process trains networks, given what the user asks for, see `zoo.devices.resolve_device`."""
        return resolve_device(device)

    def share(self, count: int) -> slice:
        """The part of `count` particles that this process holds: equal parts, in the order of ranks.

        Raises:
            ValueError: if the particles cannot be divided equally.
        """
        if count % self.num_processes:
            raise ValueError(f"{count} particles cannot be divided by {self.num_processes} processes; use a multiple")
        part = count // self.num_processes
        return slice(self.rank * part, (self.rank + 1) * part)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes, in the order of ranks."""
        return rows

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes."""
        return value

    def close(self) -> None:
        """Leave the other processes, when all work is done."""


class FabricDevices(Devices):
    """The processes of a launched Lightning Fabric."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.num_processes = fabric.world_size
        self.rank = fabric.global_rank

    def place(self, device: torch.device | str) -> torch.device:
        return self.fabric.device

    def gather(self, rows: Tensor) -> Tensor:
        gathered = self.fabric.all_gather(rows)
        if not isinstance(gathered, Tensor):
            raise TypeError(f"Fabric must gather a tensor, got {type(gathered).__name__}")
        return gathered.flatten(0, 1) if self.num_processes > 1 else rows

    def mean(self, value: Tensor) -> Tensor:
        reduced = self.fabric.all_reduce(value.clone(), reduce_op="mean")
        if not isinstance(reduced, Tensor):
            raise TypeError(f"Fabric must reduce a tensor, got {type(reduced).__name__}")
        return reduced

    def close(self) -> None:
        """Wait for the others and tear the group down: threads of it that outlive the interpreter abort the process."""
        if torch.distributed.is_initialized():
            self.fabric.barrier()
            torch.distributed.destroy_process_group()


def launched_devices(num_devices: int, device: str = "auto") -> Devices:
    """This process alone, or for several devices of a kind one process each, all of which run what follows."""
    if num_devices == 1:
        return Devices()
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator=resolve_device(device).type, devices=num_devices, strategy="ddp")
    fabric.launch()
    return FabricDevices(fabric)
