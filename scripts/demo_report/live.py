"""The generator of the page: everything that `generator.js` computes with, in one safetensors file.

The page holds the trained generator itself, its calibration and the validation split, so that a prompt is answered, and
the answer measured, where the page is read.

Legend: P numbers of one network, T denoising steps, n units of a group, F features of a unit.
"""

from __future__ import annotations

import json
from typing import Final

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from omegaconf import DictConfig
from safetensors.torch import save

from generator import ParameterPipeline
from generator.model.context import NetworkContext
from generator.sampler import NUM_TRAIN_TIMESTEPS
from generator.tokens.tokenizer import NeuronTokenizer
from generator.training.tasks import task_of
from zoo import Task
from zoo.networks.architectures import MLP
from zoo.tasks.objectives import CrossEntropy

from ..demo_stages.build import open_zoo
from ..demo_stages.prompt import METRIC
from ..demo_stages.train import open_pipeline

NUM_SHOWN: Final = 20  # test examples


def live_file(config: DictConfig) -> bytes | None:
    """The generator of a demo as the page runs it; None if its settings are others than the page knows."""
    pipe, task = open_pipeline(config), task_of(open_zoo(config))
    return pack(pipe, task, config.prompting.num_inference_steps) if can_run(pipe, task) else None


def can_run(pipe: ParameterPipeline, task: Task) -> bool:
    """Whether `generator.js` knows all that the generator does: one hidden layer on small images, one prompted loss."""
    options, model, scheduler = pipe.model.config, task.make_model(), pipe.scheduler
    return (
        isinstance(model, MLP)
        and len(model.layers) == 2
        and model.activation == "relu"
        and task.parametrization == "sp"
        and task.objective == CrossEntropy()
        and task.dataset.val.inputs.shape[1:-2] == (1,)
        and pipe.metrics == [METRIC]
        and isinstance(pipe.normalizer.make_tokenizer(task.layout), NeuronTokenizer)
        and isinstance(scheduler, DDIMScheduler)
        and scheduler.config["prediction_type"] == "sample"
        and bool(options["diffusion"] and options["use_start"])
        and not (options["num_fingerprints"] or options["num_task_bits"] or options["noisy_as_start"])
    )


def pack(pipe: ParameterPipeline, task: Task, num_inference_steps: int) -> bytes:
    """Bytes of a safetensors file whose metadata `page` is JSON; see `generator.js` for what reads it.

    Tensors: the state dict of the model as `model.*`; of each feature block, the places (n, F) of its numbers in the
    flat vector as `block.*`; `mean`, `std`, and `bound` of the uniform distribution of initial networks (P,); noise
    `times` (T,), and the squared signal `kept` (T, 2) before and after each step; validation and some test examples.
    """
    pipe, task = pipe.to("cpu"), task.to("cpu")
    context = NetworkContext.of(pipe.normalizer, task.layout)
    blocks = context.tokenizer.encode(torch.arange(task.layout.num_params))
    times, kept = _noise_levels(pipe.scheduler, num_inference_steps)
    slots, test = list(task.layout), task.dataset.test
    layers = zip(slots[::2], slots[1::2], strict=True)  # weights and biases
    tensors = {
        **{f"model.{name}": value for name, value in pipe.model.state_dict().items()},
        **{f"block.{name}": places.to(torch.int32) for name, places in blocks.items()},
        "mean": context.scale.mean,
        "std": context.scale.std,
        "bound": torch.cat([torch.full((slot.numel,), slot.fan_in**-0.5) for slot in slots]),  # of torch.nn.Linear
        "times": times,
        "kept": kept,
        "val.inputs": task.dataset.val.inputs.flatten(1),
        "val.targets": task.dataset.val.targets.to(torch.int32),
        "shown.inputs": test.inputs[:NUM_SHOWN].flatten(1),
        "shown.targets": test.targets[:NUM_SHOWN].to(torch.int32),
    }
    known, calibrations = pipe.model.ranges[METRIC], pipe.config["calibrations"]
    page = {
        "num_heads": pipe.model.config["num_heads"],
        "use_latent": pipe.model.config["use_latent"],
        "group_sizes": [group.size for group in context.tokenizer.groups],
        "blocks": [[block.name, block.key, block.groups[0]] for block in context.tokenizer.node_blocks],
        "range": [known.low, known.high],
        "calibration": calibrations and calibrations[pipe.normalizer.layouts.index(task.layout)].get("start"),
        "layers": [[weight.offset, bias.offset, *weight.shape] for weight, bias in layers],
        "image": list(test.inputs.shape[-2:]),
    }
    return save({name: value.contiguous() for name, value in tensors.items()}, {"page": json.dumps(page)})


def _noise_levels(scheduler: DDIMScheduler, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Times (T,) that the model is told, and the squared signal (T, 2) before and after each step."""
    scheduler.set_timesteps(num_steps)
    now, alphas = scheduler.timesteps, scheduler.alphas_cumprod
    after = now - NUM_TRAIN_TIMESTEPS // num_steps
    left = torch.where(after < 0, scheduler.final_alpha_cumprod, alphas[after.clamp(min=0)])
    return (now + 1) / NUM_TRAIN_TIMESTEPS, torch.stack((alphas[now], left), dim=1)
