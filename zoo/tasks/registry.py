"""Named tasks, made from JSON-able options.

Legend: K outputs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.ambient import torch_defaults
from zoo.networks.adapters import adapt
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.base import hash_of
from zoo.networks.layout import ParamLayout
from zoo.networks.randomness import seeded_module
from zoo.tasks.augmentation import make_augmentations
from zoo.tasks.augmentation import recorded as recorded_augmentations
from zoo.tasks.dataset import Dataset
from zoo.tasks.datasets import DATASETS
from zoo.tasks.families.family_task import FamilyTask
from zoo.tasks.families.registry import FAMILIES
from zoo.tasks.libraries import own_module, timm_model, transformers_model
from zoo.tasks.objectives import make_objective
from zoo.tasks.objectives import recorded as recorded_objective
from zoo.tasks.policies import ENVIRONMENTS, PolicyTask
from zoo.tasks.task import Task

TASK_NAMES: Final = (*DATASETS, *FAMILIES)
OWN: Final = "own"


@torch_defaults()
def get_task(
    name: str,
    *,
    architecture: str | None = None,
    parametrization: str = "sp",
    objective: str | Mapping[str, object] | None = None,
    augment: Sequence[str | Mapping[str, object]] = (),
    adapter: Mapping[str, Any] | None = None,
    **options: object,
) -> Task:
    """Task of that name.

    Args:
        name: one of TASK_NAMES: a data set (see `zoo.tasks.datasets`), or a family (`zoo.tasks.families.registry`).
        architecture: one of ARCHITECTURES; by default "mlp", for symbols "transformer".
        parametrization: "sp" or "mup".
        objective: one of `zoo.tasks.objectives.OBJECTIVES`, or a mapping of its `name` and options, such as
            {"name": "cross_entropy", "label_smoothing": 0.1}; by default cross-entropy, of real targets squared error.
        augment: augmentations of training examples by name, or mappings of `name` and parameters, in their order, see
            `zoo.tasks.augmentation`.
        adapter: train low-rank adapters on a frozen network of this architecture, instead of whole networks: `base`, a
            safetensors file as `Zoo.export` writes it, a zoo, whose first run's last network it is, tensors by name, or
            "own" for the module as it is built under seed 0; and the options of `zoo.networks.adapters.adapt`: `rank`,
            `alpha`, `scaling`, `targets`, `train`.
        **options: of the architecture (`hidden`, `activation`; `channels`; `width`, `num_blocks`, `num_heads`; see
            `zoo.tasks.libraries` for the others) and of the data set or family.

    Raises:
        ValueError: for unknown names and options, or an architecture that does not fit the data.
    """
    if name not in TASK_NAMES:
        raise ValueError(f"task must be one of {sorted(TASK_NAMES)}, got {name!r}")
    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}")
    make = DATASETS.get(name) or FAMILIES[name]
    known = {key: value.default for key, value in inspect.signature(make).parameters.items()}
    data_options = _filled_in(name, known, {key: value for key, value in options.items() if key in known})
    data, augmentations = make(**data_options), make_augmentations(augment)
    family, dataset = (None, data) if isinstance(data, Dataset) else (data, data.dataset)
    dataset = replace(dataset, augmentations=augmentations)
    architecture = architecture or ("mlp" if dataset.train.inputs.is_floating_point() else "transformer")
    model_options = _model_options(name, architecture, known, options)
    usual = "cross_entropy" if dataset.num_classes else "squared_error"
    usual = usual if family is None else family.objective
    asked = make_objective(objective or usual)
    environment = ENVIRONMENTS.get(name)
    if (environment is not None and (objective or augment)) or (family is not None and asked.name != usual):
        raise ValueError(f"task {name!r} takes no other objective than its own and, if it is of control, no augment")
    if environment is None:
        num_outputs = asked.num_outputs(dataset.num_classes, dataset.train.targets)
    else:
        num_outputs = environment.num_actions
    build = ARCHITECTURES[architecture](dataset, num_outputs, **model_options)
    config: dict[str, object] = {"name": name, "architecture": architecture, "parametrization": parametrization}
    config |= {key: _jsonable(value) for key, value in (data_options | model_options).items()}
    if adapter is not None:
        build, config["adapter"] = _adapted(build, adapter)
    config |= {"objective": recorded_objective(asked)} if recorded_objective(asked) != usual else {}
    config |= {"augment": recorded_augmentations(augmentations)} if augment else {}
    if architecture == OWN:  # whose code only its owner has: what a zoo records never imports anything
        config = {}
    if environment is not None:
        return PolicyTask(name, dataset, build, environment, parametrization=parametrization, config=config)
    if family is None:
        return Task(name, dataset, build, asked, parametrization=parametrization, config=config)
    return FamilyTask(
        name, family, build, asked, augmentations=augmentations, parametrization=parametrization, config=config
    )


def _mlp(
    dataset: Dataset, num_outputs: int, *, hidden: Sequence[int] = (16,), activation: str = "relu"
) -> Callable[[], nn.Module]:
    if not dataset.train.inputs.is_floating_point():
        raise ValueError(f"an MLP does not take the symbols of {dataset.name!r}; use architecture='transformer'")
    num_inputs = dataset.train.inputs[0].numel()
    return lambda: MLP(num_inputs, tuple(hidden), num_outputs, activation)


def _cnn(dataset: Dataset, num_outputs: int, *, channels: Sequence[int] = (16, 32, 32)) -> Callable[[], nn.Module]:
    shape = tuple(dataset.train.inputs.shape[1:])
    if len(shape) != 3 or not dataset.train.inputs.is_floating_point():
        raise ValueError(f"a CNN takes images (C, height, width), {dataset.name!r} has examples of shape {shape}")
    if shape[2] in (1, 3, 4) and shape[0] == shape[1] > 4:
        raise ValueError(
            f"a CNN takes images (C, height, width), those of {dataset.name!r} are {shape}, with the channels last: "
            "inputs.transpose(0, 3, 1, 2) brings them first"
        )
    return lambda: CNN(shape[0], tuple(channels), num_outputs)


def _transformer(
    dataset: Dataset, num_outputs: int, *, width: int = 64, num_blocks: int = 2, num_heads: int = 4
) -> Callable[[], nn.Module]:
    inputs = dataset.train.inputs
    if inputs.is_floating_point() or inputs.ndim != 2:
        raise ValueError(f"a transformer takes sequences of symbols (L,), {dataset.name!r} has {inputs.dtype} inputs")
    return lambda: ByteTransformer(num_outputs, inputs.shape[1], width, num_blocks, num_heads)


def _adapted(
    build: Callable[[], nn.Module], adapter: Mapping[str, Any]
) -> tuple[Callable[[], nn.Module], dict[str, object]]:
    """What builds the network with adapters, and the record of them."""
    options = dict(adapter)
    known = [name for name in inspect.signature(adapt).parameters if name != "base"]
    base = options.pop("base", None)
    if base is None or not set(options) <= set(known):
        raise ValueError(f"adapter takes a base and {known}, got {sorted(adapter)}")
    network = seeded_module(build, 0)
    try:
        tensors = base if isinstance(base, Mapping) else _base_tensors(base, network)
    except (SafetensorError, OSError, IndexError, ValueError) as error:
        raise ValueError(f"cannot read the base of the adapters, {base}: {error}") from error
    trained = {name for name, param in adapt(network, **options).named_parameters() if param.requires_grad}
    buffers = dict(network.named_buffers())
    own = {name: value for name, value in network.state_dict().items() if name in trained or name in buffers}
    layout = ParamLayout.of(network)
    network.load_state_dict(layout.unflatten(layout.flatten({**own, **tensors})))  # says in a line what does not fit
    recorded = {"base": hash_of(tensors) if isinstance(base, Mapping) else os.fspath(base), "rank": 8, **options}
    return partial(adapt, network, **options), {name: _jsonable(value) for name, value in recorded.items()}


def _base_tensors(base: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """The network itself, a network of a file, or the last one of a zoo's first run."""
    if base == OWN:
        return network.state_dict()
    if not Path(base).is_dir():
        return load_file(base)
    from zoo.storage.zoo import Zoo  # its libraries are slow to load

    return Zoo.open(base).state_dict(0, -1, merged=True)


ARCHITECTURES: Final[Mapping[str, Callable[..., Callable[[], nn.Module]]]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "transformer": _transformer,
    "timm": timm_model,
    "transformers": transformers_model,
    OWN: own_module,
}


def _model_options(
    name: str, architecture: str, data_options: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    """Options of the architecture, which are all that the data have not, defaults filled in."""
    parameters = inspect.signature(ARCHITECTURES[architecture]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    unknown = sorted(set(options) - set(data_options) - set(known))
    if unknown:
        names = sorted({*data_options, *known})
        raise ValueError(f"task {name!r} with architecture {architecture!r} has the options {names}, got {unknown}")
    return _filled_in(name, known, {key: value for key, value in options.items() if key in known})


def _filled_in(name: str, known: Mapping[str, object], options: Mapping[str, object]) -> dict[str, object]:
    """All known options, those given checked against their defaults.

    Raises:
        ValueError: for one of another kind, and one that must be given.
    """
    for key, value in options.items():
        _check_like(key, value, known[key])
    values = {**known, **options}
    missing = [key for key, value in values.items() if value is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"task {name!r} needs the options {missing}")
    return values


def _check_like(name: str, value: object, default: object) -> None:
    """Raise ValueError unless an option is an integer, true or false, or a list of integers, where its default is."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        return
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    are_integers = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if isinstance(default, tuple) and (numbers is not value or not are_integers):
        raise ValueError(f"{name} must be a list of integers such as {list(default)}, got {value!r}")
    if isinstance(default, int) and (numbers is value or not are_integers):
        raise ValueError(f"{name} must be an integer such as {default}, got {value!r}")


def _jsonable(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if is_list else value  # type: ignore[call-overload]
