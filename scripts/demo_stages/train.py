"""Stage "generator": a loss-prompted generator of networks, trained on the zoo."""

from __future__ import annotations

import logging
import warnings

from diffusers.utils.logging import disable_progress_bar
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from generator import ParameterPipeline, train_generator
from zoo.devices import resolve_device

from .build import open_zoo
from .stage import StageResult


def run(config: DictConfig) -> StageResult:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    settings = instantiate(config.generator.generator, _convert_="all")
    trainer_options = OmegaConf.to_container(config.generator.trainer, resolve=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # hints on workers and checkpoints
        pipe = train_generator(
            [open_zoo(config)],
            settings,
            out=config.generator.out,
            device=config.generator.device,
            trainer_options=trainer_options,
        )
    num_params = sum(value.numel() for value in pipe.model.parameters())
    return StageResult({"num_steps": settings.optimization.num_steps, "num_params": num_params})


def open_pipeline(config: DictConfig) -> ParameterPipeline:
    """The generator, on the demo's device."""
    disable_progress_bar()  # of loading three small files
    return ParameterPipeline.from_pretrained(str(config.generator.out)).to(resolve_device(config.device))
