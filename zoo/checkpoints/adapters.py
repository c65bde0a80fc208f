"""Adapters as PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

A network from `zoo.networks.adapters.adapt` becomes such a folder, and takes one, without PEFT. What a network with
adapters of PEFT's own trains goes through PEFT itself, which knows all its kinds.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save
from torch import Tensor, nn

from zoo.checkpoints.inferred_layout import layout_of_state_dict
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.adapters import SCALINGS, LowRankConv2d, LowRankEmbedding, adapted_layers
from zoo.networks.base import sharing_copy, with_own_memory
from zoo.networks.wrappers import unwrapped
from zoo.settings import Json
from zoo.storage.durable import is_free, staged_directory, write_files

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
# What gives an adapter's tensors their meaning; other settings, such as the path of the base model, may differ.
ADAPTER_KEYS: Final = (
    "peft_type",
    "r",
    "init_r",  # of AdaLoRA, by which its scale is divided however many components are left
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "num_virtual_tokens",
    *("rank", "alpha", "scaling"),  # of `adapt`
)
_PEFT_PARTS: Final = (  # what PEFT puts into names of tensors, and what stands there in ours
    (re.compile(rf"^({re.escape(_PREFIX)})+"), ""),
    (re.compile(r"\.(lora_[AB])(?:\.default)?\.weight$"), r".\1"),
    (re.compile(r"\.(lora_embedding_[AB])\.default$"), r".\1"),
    (re.compile(r"\.base_layer\."), "."),
    (re.compile(r"\.modules_to_save(?:\.default)?\."), "."),
)


def save_adapter(folder: str | Path, tensors: Mapping[str, Tensor], network: nn.Module | Mapping[str, Json]) -> None:
    """Write a folder that `PeftModel.from_pretrained(base, folder)` loads.

    Args:
        folder: that does not exist or is empty.
        tensors: what was trained, by name, such as `zoo.state_dict(run, -1)` or an entry of `out.state_dicts()`.
        network: what they belong to: a module from `adapt`, a PeftModel, or, for tensors that PEFT saved and a zoo
            imported, their config (`zoo.attributes["extra"]["adapter_config"]`).

    Raises:
        FileExistsError: if the folder holds something.
        ValueError: if PEFT has no form for what was trained.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be what was trained, by name, got {type(tensors).__name__}; network comes third")
    folder = Path(folder).absolute()
    if not is_free(folder):
        raise FileExistsError(f"{folder} is not empty; choose another folder for the adapter")
    if isinstance(network, nn.Module) and not is_peft(network):
        tensors, network = _in_peft_names(tensors, network)
    if isinstance(network, Mapping):
        content = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        config = json.dumps(dict(network), indent=2).encode()
        write_files({folder / TENSOR_FILE: [save(content, metadata={"format": "pt"})], folder / CONFIG_FILE: [config]})
        return
    model: Any = with_own_memory(sharing_copy(network)).cpu()
    model.load_state_dict(dict(tensors), strict=False)
    with staged_directory(folder) as staged:
        model.save_pretrained(staged)


def adapter_tensors(saved: Mapping[str, Tensor], config: Mapping[str, Json], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of an adapter that PEFT saved, under the names that a network with such adapters gives them.

    Args:
        saved: tensors of the folder.
        config: of the folder.
        network: a module from `adapt`, or a PeftModel.

    Raises:
        CheckpointError: if the adapter is of another kind, or means something else by its numbers.
    """
    if not is_peft(network):
        _check_scales(config, network)
        named = {_own_name(name): tensor for name, tensor in saved.items() if ".original_module." not in name}
        shapes = {name: param.shape for name, param in network.named_parameters()}
        return {
            name: tensor.view(shapes[name]) if name in shapes and tensor.numel() == shapes[name].numel() else tensor
            for name, tensor in named.items()
        }
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    model: Any = with_own_memory(sharing_copy(network)).cpu()
    if differing := different_settings(config, peft_config(network)):
        raise CheckpointError(f"the adapter is of another kind than the model's: {differing}")
    if config.get("peft_type") == "ADALORA":
        model.peft_config[model.active_adapter].rank_pattern = None  # PEFT would prune again what is pruned
    expected = get_peft_model_state_dict(model)
    full = {name.removeprefix(_PREFIX): name for name in expected}
    layout = layout_of_state_dict({name: expected[full[name]] for name in full})
    tensors = unwrapped({name.removeprefix(_PREFIX): tensor for name, tensor in saved.items()}, layout)
    layout.flatten(tensors)  # raises for what is missing, unexpected or misshapen
    tensors = {full[name]: tensor for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that an adapter never has
        set_peft_model_state_dict(model, tensors)
    return {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}


def is_peft(network: nn.Module) -> bool:
    """Whether a network is a PeftModel, told without importing PEFT."""
    return hasattr(network, "peft_config") and hasattr(network, "save_pretrained")


def peft_config(network: Any) -> dict[str, Json]:
    """What the adapter_config.json of a PeftModel would hold."""
    config = network.peft_config[network.active_adapter].to_dict()
    return json.loads(json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def different_settings(first: Mapping[str, Json], second: Mapping[str, Json]) -> str:
    """Which settings give two adapters' tensors different meanings, in words; empty if none does."""
    pairs = {key: (_setting(first, key), _setting(second, key)) for key in ADAPTER_KEYS}
    return ", ".join(f"{key} {mine} and {theirs}" for key, (mine, theirs) in pairs.items() if mine != theirs)


def _setting(config: Mapping[str, Json], key: str) -> Json:
    """A setting, None for nothing. AdaLoRA's mask of the components that it kept is their number: the rest is gone."""
    value = config.get(key) or None
    if key == "rank_pattern" and isinstance(value, Mapping):
        return {name: kept.count(True) if isinstance(kept, list) else kept for name, kept in value.items()}
    return value


def _in_peft_names(tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Tensors of a network from `adapt` under PEFT's names, and the config that goes with them."""
    layers = adapted_layers(network)
    if not layers or "" in layers:
        raise ValueError(
            f"expected a network with layers from adapt(), got {type(network).__name__}; see adapted_layers"
        )
    renamed: dict[str, Tensor] = {}
    others = dict(tensors)
    expected = {f"{name}.{own}" for name, layer in layers.items() for own in layer.names}
    if missing := sorted(expected - others.keys()):
        raise ValueError(f"expected the tensors of all adapters of the network, but {missing[:4]} are missing")
    for name, layer in layers.items():
        suffix = "" if isinstance(layer, LowRankEmbedding) else ".weight"
        for own in layer.names:
            tensor = others.pop(f"{name}.{own}")
            is_pointwise = isinstance(layer, LowRankConv2d) and own == "lora_B"
            renamed[f"{_PREFIX}{name}.{own}{suffix}"] = tensor[..., None, None] if is_pointwise else tensor
    biases = {name for name, _ in network.named_parameters() if name.rpartition(".")[2] == "bias"}
    own_biases = {name for name in biases if name.rpartition(".")[0] in layers}
    bias = {frozenset(biases): "all", frozenset(own_biases): "lora_only"}.get(frozenset(others)) if others else "none"
    modules = sorted({name.rpartition(".")[0] for name in others} if bias is None else ())
    wholes = {f"{name}.{own}" for name in modules for own, _ in network.get_submodule(name).named_parameters()}
    known = [name for name, _ in network.named_modules()]
    unclear = [name for name in modules if name in layers or sum(one.endswith(name) for one in known) > 1]
    if bias is None and (wholes != set(others) or unclear):
        raise ValueError(
            f"PEFT saves, beside adapters, all biases or whole modules without adapters; got {sorted(others)}"
        )
    for name, tensor in others.items():
        owner, _, own = name.rpartition(".")
        renamed[f"{_PREFIX}{owner}.base_layer.{own}" if owner in layers else _PREFIX + name] = tensor
    first = next(iter(layers.values()))
    rank = len(first.factors[0])
    config: dict[str, Json] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "bias": bias or "none",
        "target_modules": "|".join(map(re.escape, layers)),
        "modules_to_save": list(modules) or None,
    }
    return renamed, config


def _own_name(name: str) -> str:
    for pattern, replacement in _PEFT_PARTS:
        name = pattern.sub(replacement, name)
    return name


def _check_scales(config: Mapping[str, Json], network: nn.Module) -> None:
    """Raise CheckpointError unless an adapter's config gives the layers of a network the scales that they have."""
    kind: Any = config.get("peft_type")
    if kind != "LORA" or config.get("use_dora"):
        raise CheckpointError(f"the model has plain low-rank adapters, the checkpoint is {kind} (DoRA or another kind)")
    settings: dict[str, Any] = dict(config)
    scaling = SCALINGS["rslora" if settings.get("use_rslora") else "standard"]
    for name, layer in adapted_layers(network).items():
        rank, alpha = (
            next(
                (v for key, v in (settings.get(f"{what}_pattern") or {}).items() if _is_at(key, name)), settings[given]
            )
            for what, given in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        scale = scaling(alpha, rank)
        if abs(scale - layer.scale) > 1e-6 * abs(layer.scale):
            raise CheckpointError(
                f"the adapter of {name!r} is scaled by {scale:g}, in the model by {layer.scale:g}; "
                f"make the model by adapt(..., rank={rank}, alpha={scale * rank:g})"
            )


def _is_at(pattern: str, name: str) -> bool:
    """Whether a key of PEFT's patterns means a module."""
    return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None
