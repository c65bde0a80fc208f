"""Training of the generator as a Lightning module: Muon on the blocks' matrices, AdamW for the rest, averaged weights.

Source: Muon: Jordan et al. 2024, as in torch.optim.Muon; averaged weights: Karras et al. 2024 (arXiv 2312.02696)
motivates a warm-up of the decay.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from generator.model.context import NetworkContext
from generator.model.objectives import ObjectiveConfig
from generator.model.transformer import RecurrentDiffusionTransformer
from generator.training.losses import training_losses
from generator.trajectories import PairBatch, PairBatches, PairConfig, Trajectories, batch_rng
from zoo.training.schedules import Schedule

PRECISIONS: Final = ("auto", "bfloat16", "float32")
_MIN_MUON_DIM: Final = 16
_NOISE_STREAM: Final = 1


@dataclass(frozen=True)
class OptimizationConfig:
    """How the generator is trained.

    Attributes:
        num_steps: batches in all.
        num_epochs: into which they are divided; after each there is a checkpoint and alignment is measured.
        learning_rate: of AdamW, for vectors, embeddings and the first and last layers.
        muon_learning_rate: of Muon, for the matrices of the denoiser blocks; 0 to use AdamW for these too.
        warmup_steps: both rates rise linearly; afterwards they follow a cosine to 0.
        weight_decay: of both.
        clip_norm: bound of the gradient's norm.
        average_decay: of the averaged weights, from which the pipeline samples; approached from 0.
        precision: "bfloat16", "float32", or "auto" for bfloat16 where the device has instructions for it.
        seed: of pairs, noise and examples.
    """

    num_steps: int = 2500
    num_epochs: int = 10
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.02
    warmup_steps: int = 60
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    average_decay: float = 0.998
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("muon_learning_rate", "warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be from 0 to below 1, got {self.average_decay}")
        if self.num_steps < 1 or self.num_epochs < 1 or self.num_steps % self.num_epochs:
            raise ValueError(f"num_steps must be a multiple of num_epochs, got {self.num_steps} and {self.num_epochs}")

    @property
    def steps_per_epoch(self) -> int:
        return self.num_steps // self.num_epochs


class GeneratorModule(lightning.LightningModule):
    """One generator in training.

    Args:
        model: to train.
        contexts: of each zoo, in the order of the data module's trajectories.
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
        optimizers: list[Optimizer] = [
            torch.optim.AdamW(others, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self._settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["settings"] != self._settings:
            raise ValueError(
                f"the folder holds a training with other settings, {checkpoint['settings']}; "
                f"got {self._settings}. Choose another folder, or remove its checkpoints"
            )

    @property
    def _settings(self) -> str:
        return f"{self.objective} {self.optimization}"

    def on_fit_start(self) -> None:
        device = self.device.type
        self.contexts = [context.to(self.device) for context in self.contexts]
        self.precision = torch.autocast(
            device, torch.bfloat16, enabled=uses_bfloat16(self.optimization.precision, device)
        )

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        config = self.optimization
        step = self.current_epoch * config.steps_per_epoch + batch_idx
        rng = batch_rng(config.seed, batch.index, _NOISE_STREAM)
        losses = training_losses(
            self.model, self.contexts[batch.zoo], batch, self.objective, rng=rng, precision=self.precision
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
        trajectories: of each zoo.
        pairs: how pairs are drawn.
        optimization: number of steps, epochs, and the seed.
        num_workers: processes that read batches ahead; 0 is best where trajectories are in memory.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectories],
        pairs: PairConfig,
        optimization: OptimizationConfig,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.trajectories = trajectories
        self.pairs = pairs
        self.optimization = optimization
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        count = self.optimization.steps_per_epoch
        epoch = self.trainer.current_epoch if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        batches = PairBatches(
            self.trajectories,
            self.pairs,
            seed=self.optimization.seed,
            first=epoch * count * world_size,
            count=count * world_size,
        )
        return DataLoader(batches, batch_size=None, shuffle=False, num_workers=self.num_workers)


def split_params(model: nn.Module, *, use_muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the denoiser blocks that are worth orthogonalising, and all other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        is_matrix = name.startswith("blocks.") and param.ndim == 2 and min(param.shape) >= _MIN_MUON_DIM
        (matrices if use_muon and is_matrix else others).append(param)
    return matrices, others


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move averaged weights towards the model's, by at least a tenth of what is left at first, later by 1 - decay."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    mine: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(mine, list(model.parameters()), weight)


def uses_bfloat16(precision: str, device: str) -> bool:
    """Whether the model runs in bfloat16: on a GPU that has it, on a CPU only with instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()
