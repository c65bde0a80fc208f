"""The panel: small trainings of networks that timm, transformers, peft and torch define, of many kinds.

It was divided before any optimizer was run on it, by whole families: "dev" has the kinds on which earlier experiments
had been looked at (recurrent networks, an encoder, denoising, smooth regression, physics-informed losses), and is what
choices are made on; "outside" has all other kinds, and is only reported. On three of these, small batches,
3-D convolutions and fine-tuning, rules failed there; "fragile" has other tasks of the three, on which mends are chosen.
"deep" has networks four times as deep as the deepest of meta-training (six hidden layers, two blocks of a transformer),
which is only reported, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from learned_opt.meta_training.task_distribution import he_normal_
from zoo.networks.architectures import CNN, MLP

from . import fragile, models, problems
from .problems import Problem

PANELS: Final = ("dev", "fragile", "outside", "deep")


@dataclass(frozen=True)
class OutsideTask:
    """A training of `num_steps` steps; `make` needs a seeded global generator."""

    name: str
    family: str
    panel: str
    make: Callable[[], Problem]
    num_steps: int = 256


def outside_tasks(panels: Sequence[str] = PANELS) -> list[OutsideTask]:
    """The tasks of these panels.

    Raises:
        ValueError: for an unknown panel.
    """
    if unknown := sorted(set(panels) - set(PANELS)):
        raise ValueError(f"panels must be among {PANELS}, got {unknown}")
    return [task for task in _TASKS if task.panel in panels]


_Flat: Final = partial(torch.flatten, start_dim=1)
_digits: Final = partial(problems.classification, data="digits", view=_Flat)

_TASKS: Final = (
    OutsideTask("lstm-bytes", "recurrent", "dev", problems.recurrent_language),
    OutsideTask("gru-mnist1d", "recurrent", "dev", partial(problems.classification, models.GRUClassifier, "mnist1d")),
    OutsideTask("encoder-rows", "encoder", "dev", partial(problems.classification, models.RowEncoder)),
    OutsideTask("mlp-denoiser", "denoising", "dev", problems.point_denoising, 1024),
    OutsideTask("unet-denoiser", "denoising", "dev", problems.image_denoising),
    OutsideTask("tanh-regression", "smooth regression", "dev", problems.smooth_regression, 1024),
    OutsideTask("siren-image", "smooth regression", "dev", problems.image_as_function, 512),
    OutsideTask("poisson", "physics-informed", "dev", problems.poisson, 1024),
    OutsideTask("oscillator", "physics-informed", "dev", problems.oscillator, 1024),
    OutsideTask("signals-batch1", "small batches", "fragile", partial(fragile.signals_one_by_one, 1), 512),
    OutsideTask("images-batch1", "small batches", "fragile", fragile.images_one_by_one),
    OutsideTask("conv1d-batch2", "small batches", "fragile", partial(fragile.signals_by_convolutions, 2), 512),
    OutsideTask("regression-batch1", "small batches", "fragile", fragile.regression_one_by_one),
    OutsideTask("bodies", "3-D convolutions", "fragile", fragile.bodies),
    OutsideTask("next-image", "3-D convolutions", "fragile", fragile.next_image),
    OutsideTask("tuned-lstm", "fine-tuning", "fragile", fragile.tuned_recurrent, 128),
    OutsideTask("tuned-encoder", "fine-tuning", "fragile", fragile.tuned_encoder, 128),
    OutsideTask("tuned-head", "fine-tuning", "fragile", fragile.tuned_head, 128),
    OutsideTask("continued-mlp", "fine-tuning", "fragile", fragile.continued_mlp, 128),
    OutsideTask("continued-denoiser", "fine-tuning", "fragile", fragile.continued_denoiser, 128),
    OutsideTask("vit", "timm", "outside", partial(problems.classification, models.vit)),
    OutsideTask("resnet", "timm", "outside", partial(problems.classification, models.resnet)),
    OutsideTask("convnext", "timm", "outside", partial(problems.classification, models.convnext, batch_size=16)),
    OutsideTask("mixer", "timm", "outside", partial(problems.classification, models.mixer)),
    OutsideTask("gpt2", "transformers", "outside", partial(problems.language, models.gpt2)),
    OutsideTask("qwen2", "transformers", "outside", partial(problems.language, models.qwen2)),
    OutsideTask("mixtral", "transformers", "outside", partial(problems.language, models.mixtral)),
    OutsideTask("bert", "transformers", "outside", problems.masked_language),
    OutsideTask("t5-reversal", "transformers", "outside", problems.reversal),
    OutsideTask("lora-gpt2", "fine-tuning", "outside", partial(problems.tuned_language, models.lora), 128),
    OutsideTask("whole-gpt2", "fine-tuning", "outside", partial(problems.tuned_language, lambda model: model), 128),
    OutsideTask("head-resnet", "fine-tuning", "outside", partial(problems.tuned_images, head_only=True), 128),
    OutsideTask("whole-resnet", "fine-tuning", "outside", partial(problems.tuned_images, head_only=False), 128),
    OutsideTask("diabetes", "tables", "outside", problems.table_regression, 512),
    OutsideTask("logistic", "tables", "outside", problems.table_classification, 512),
    OutsideTask(
        "mlp-autoencoder",
        "autoencoding",
        "outside",
        partial(problems.autoencoding, partial(MLP, 64, (32, 8, 32), 64), "digits", view=_Flat),
        512,
    ),
    OutsideTask(
        "conv-autoencoder",
        "autoencoding",
        "outside",
        partial(problems.autoencoding, models.conv_autoencoder, "mnist5k", view=lambda x: x),
    ),
    OutsideTask("vae", "autoencoding", "outside", problems.variational, 512),
    OutsideTask(
        "mlp-batch1",
        "small batches",
        "outside",
        partial(_digits, partial(MLP, 64, (64, 64), 10), batch_size=1),
        512,
    ),
    OutsideTask(
        "cnn-batch2",
        "small batches",
        "outside",
        partial(problems.classification, partial(CNN, 1, (8, 16), 10), batch_size=2),
        512,
    ),
    OutsideTask("films", "3-D convolutions", "outside", problems.moving_squares),
    OutsideTask("info-nce", "contrastive", "outside", problems.contrastive, 512),
    OutsideTask("factorisation", "factorisation", "outside", problems.factorisation, 512),
    OutsideTask("deep-mlp", "depth", "deep", partial(_digits, lambda: he_normal_(MLP(64, (32,) * 24, 10)))),
    OutsideTask("deep-residual", "depth", "deep", partial(_digits, partial(models.ResidualMLP, 64, 32, 24, 10))),
    OutsideTask("deep-complete-p", "depth", "deep", partial(_digits, partial(models.ResidualMLP, 64, 32, 24, 10, 1.0))),
    OutsideTask("deep-gpt2", "depth", "deep", partial(problems.language, partial(models.gpt2, 8))),
)
