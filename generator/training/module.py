"""Training of the generator as a Lightning module: Muon on the blocks' matrices, AdamW for the rest, averaged weights.

Source: Muon: Jordan et al. 2024, as in torch.optim.Muon.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, cast

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from generator.model.context import NetworkContext
from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.training.averaging import BETAS, update_average
from generator.training.config import OptimizationConfig
from generator.training.losses import training_losses
from generator.training.pairs import PairBatch, PairConfig, batch_rng, numbered_batch
from generator.trajectories import Trajectories
from zoo.devices import is_fast_in_bfloat16
from zoo.training.schedules import Schedule

_MIN_MUON_DIM: Final = 16
_NOISE_STREAM: Final = 1


class GeneratorModule(lightning.LightningModule):
    """One generator in training.

    Args:
        model: to train.
        contexts: of each zoo, in the order of the data module's runs.
        objective: losses.
        optimization: optimizers and schedule.
    """

    def __init__(
        self,
        model: RecurrentDiffusionTransformer,
        contexts: Sequence[NetworkContext],
        objective: ObjectiveConfig,
        optimization: OptimizationConfig,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.contexts = list(contexts)
        self.objective = objective
        self.optimization = optimization

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.optimization
        matrices, others = split_params(self.model, use_muon=config.muon_learning_rate > 0)
        groups = by_width(others, config.learning_rate, config.wide_inputs)
        optimizers: list[Optimizer] = [
            torch.optim.AdamW(groups, config.learning_rate, betas=BETAS, weight_decay=config.weight_decay)
        ]
        if matrices:
            optimizers.append(
                torch.optim.Muon(
                    matrices, config.muon_learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="original"
                )
            )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["peak_lr"] = group["lr"]
        return optimizers

    def on_fit_start(self) -> None:
        self.contexts = [context.to(self.device) for context in self.contexts]

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        config = self.optimization
        step = self.current_epoch * config.steps_per_epoch + batch_idx
        precision = autocast(config.precision, self.device.type)
        rng = batch_rng(config.seed, batch.index, _NOISE_STREAM)
        losses = training_losses(
            self.model, self.contexts[batch.zoo], batch, self.objective, rng=rng, precision=precision
        )
        factor = Schedule("cosine", config.warmup_steps).factor(step, config.num_steps)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.zero_grad()
        self.manual_backward(losses["total"])
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        update_average(self.averaged, self.model, step, config.average_decay)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, prog_bar=True)


class PairDataModule(lightning.LightningDataModule):
    """Batches of pairs for each epoch; the whole training is one sequence of batches.

    Args:
        runs: of each zoo.
        pairs: how pairs are drawn.
        optimization: number of steps, epochs, and the seed.
    """

    def __init__(self, runs: Sequence[Trajectories], pairs: PairConfig, optimization: OptimizationConfig) -> None:
        super().__init__()
        self.runs = runs
        self.pairs = pairs
        self.optimization = optimization

    def train_dataloader(self) -> DataLoader[Any]:
        epoch, num_processes = (self.trainer.current_epoch, self.trainer.world_size) if self.trainer else (0, 1)
        count = self.optimization.steps_per_epoch * num_processes
        draw = partial(numbered_batch, self.runs, self.pairs, self.optimization.seed)
        numbers = cast("Dataset[int]", range(epoch * count, (epoch + 1) * count))
        return DataLoader(numbers, batch_size=None, shuffle=False, collate_fn=draw)


def split_params(model: nn.Module, *, use_muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the denoiser blocks that are worth orthogonalising, and all other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        is_matrix = name.startswith("blocks.") and param.ndim == 2 and min(param.shape) >= _MIN_MUON_DIM
        (matrices if use_muon and is_matrix else others).append(param)
    return matrices, others


def by_width(params: Sequence[nn.Parameter], rate: float, widest: int | None) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices (outputs, inputs) of more inputs than `widest` have a rate in inverse proportion.

    Source: Yang et al. 2022 (arXiv 2203.03466), table 3, hidden weights under Adam.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for param in params:
        inputs = param.shape[-1] if param.ndim == 2 and widest else 0
        groups.setdefault(rate * min(1.0, (widest or 0) / inputs) if inputs else rate, []).append(param)
    return [{"params": some, "lr": of_group} for of_group, some in groups.items()]


def autocast(precision: str, device: str) -> AbstractContextManager:
    """Context in which the model runs; "auto" is bfloat16 where a GPU has it, or a CPU instructions for it."""
    is_bfloat16 = is_fast_in_bfloat16(torch.device(device)) if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device, torch.bfloat16) if is_bfloat16 else nullcontext()
