"""What kind of tensor a parameter is, and which of its axes is which: from its module, its name, its use, its shape.

| kind      | tensors                                                                                   |
|-----------|-------------------------------------------------------------------------------------------|
| matrix    | weights of linear, convolutional, attention and recurrent modules, experts, adapters      |
| embedding | tables of tokens and positions, class tokens, prompts                                     |
| norm      | factors of activations: weights of norms, LayerScale, magnitudes                          |
| bias      | whatever is added, and vectors of unknown use                                             |

Axes: "oi" outputs x inputs (x kernel), "io" inputs x outputs (x kernel), "eoi" and "eio" stacks of such matrices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from zoo.networks.module_graph import ModuleGraph

AXES: Final = ("oi", "io", "eoi", "eio")

_MATRIX_MODULES: Final = (nn.Linear, nn.Bilinear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_NORM_MODULES: Final = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDING_MODULES: Final = (nn.Embedding, nn.EmbeddingBag)
_COLLECTIONS: Final = (nn.ParameterList, nn.ParameterDict)

# Names, in the order in which they are asked for.
_SCALE: Final = re.compile(
    r"(^|_)(gamma|alpha|scale|scaling|gain|ls|lambda|magnitude|temperature)s?(_?\d+)?$"
    r"|magnitude_vector|layer_?scale|ia3_l|lambda_[a-z]$|lora_(E|diag)$|boft_s|^D$"
)
_BIAS: Final = re.compile(r"(?<!attention_)(?<!position_)bias(_[a-z])?$|^A_log|^time_(mix|decay|first|shift)")
_ADAPTER: Final = re.compile(
    r"(lora|hada|lokr|hra|hira|deft|osf|miss|adamss|lily|peanut|shadow|vera|ia3|oft|road|c3a)_(?!embedding_A)"
)
_ELEMENTS: Final = re.compile(r"oft_R|c3a_kernel|logits(_[AB])?$|spectrum|values$")  # numbers of no rows and columns
_TABLE: Final = re.compile(
    r"embed|token|(^|_)pos(_|\d|$)|position|relative|(^|_)rel(_|$)|attention_bias|codevector|codebook|latent|prompt"
    r"|quer(y|ies)\d?$|probe|memory|vector_bank|rpb$",
    re.IGNORECASE,
)
_EMBEDDING: Final = re.compile(  # names in full, where there is no module
    r"(?<!un)(embed(?!_out)|(^|[._])(emb|embs|w[tp]e)(_|\b)|(^|\.)shared\b|relative_attention_bias)[^.]*(\.weight)?$"
)
_NORM: Final = re.compile(r"norm|(^|[._])(bn|ln|gn)\d*(_|\b)")
_WEIGHT: Final = re.compile(r"(^|_)(weights?|kernel|w)(_?\d+)?$")


@dataclass(frozen=True)
class Kind:
    """A kind, axes, and whether something spoke for them besides the shape."""

    name: str
    axes: str = "oi"
    known: bool = True


@dataclass(frozen=True)
class Owned:
    """A tensor with the module that it is part of and the part of its name that says most.

    What belongs to a parametrization or a collection of parameters is part of the module around it.
    """

    name: str
    tensor: Tensor
    owner: nn.Module
    label: str


def owned_tensors(module: nn.Module) -> dict[str, Owned]:
    """Every parameter and buffer by name, under each of its names if it is tied."""
    owners = dict(module.named_modules(remove_duplicate=False))
    tensors: dict[str, Owned] = {}
    for prefix, owner in owners.items():
        for local, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            name, parts, part_of, label = f"{prefix}.{local}".lstrip("."), prefix.split("."), owner, local
            if isinstance(owner, ParametrizationList):
                part_of, label = owners[".".join(parts[:-2])], parts[-1]
                if local != "original" and tensor.ndim and tensor.numel() < _largest(owner):
                    label = f"{label}_magnitude"  # of weight_norm
            elif isinstance(owner, _COLLECTIONS):
                part_of, label = owners[".".join(parts[:-1])], parts[-1]
            elif label.endswith(("_g", "_v")) and f"{local[:-2]}_g" in owner._parameters:
                label = f"{local[:-2]}_magnitude" if local.endswith("_g") else local[:-2]
            tensors[name] = Owned(name, tensor, part_of, label.removesuffix("_orig"))
    return tensors


def kind_of(owned: Owned, graph: ModuleGraph) -> Kind:
    """Kind of a parameter."""
    told = _of_module(owned)
    if told is None and (told := _of_name(owned)) and told.name == "matrix" and not is_adapter(owned.name):
        use = graph.use_of(owned.name)  # a name does not tell axes
        return replace(told, axes=use.axes) if use and use.kind in ("matrix", "kernel") else told
    if told is not None:
        return told
    use = graph.use_of(owned.name)
    if use is not None:
        stacked = use.kind == "matrix" and owned.tensor.ndim == 3
        return Kind("matrix" if use.kind == "kernel" else use.kind, f"e{use.axes}" if stacked else use.axes)
    return _of_shape(owned)


def kind_of_named(name: str, tensor: Tensor) -> Kind:
    """Kind of a parameter without its module, from its name ("" if it has none), its shape, and ones of new norms."""
    lower, label = name.lower(), name.rpartition(".")[2]
    if tensor.ndim == 2 and _EMBEDDING.search(lower) and not is_adapter(name):
        return Kind("embedding")
    if tensor.ndim < 2 and label != "bias" and (_NORM.search(lower) or _is_ones(tensor)):
        return Kind("norm")
    if told := _of_name(Owned(name, tensor, nn.Module(), label)):
        return told
    return Kind("matrix", "eoi" if tensor.ndim == 3 and "expert" in lower else "oi", known=False)


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to a low-rank adapter or its like, which is neither the first nor the last layer."""
    return any(_ADAPTER.search(part) for part in name.split("."))


def is_lookup(owned: Owned) -> bool:
    """Whether a tensor is the table of an embedding module, which reads tokens."""
    return isinstance(owned.owner, _EMBEDDING_MODULES) and owned.label == "weight"


def is_recurrent(owned: Owned) -> bool:
    """Whether a tensor belongs to a recurrent module, whose results it reads again itself."""
    return isinstance(owned.owner, nn.RNNBase | nn.RNNCellBase)


def _of_module(owned: Owned) -> Kind | None:
    """What the owner's class tells."""
    owner, label, class_name = owned.owner, owned.label, type(owned.owner).__name__.lower()
    found: Kind | None = None
    if is_lookup(owned):
        found = Kind("embedding")
    elif _SCALE.search(label):
        found = Kind("norm")
    elif isinstance(owner, _NORM_MODULES) or (owned.tensor.ndim < 2 and "norm" in class_name):
        found = Kind("bias" if label == "bias" else "norm")
    elif owned.tensor.ndim >= 2 and not label.startswith("bias") and not _ELEMENTS.search(owned.name):
        if isinstance(owner, _ConvTransposeNd) or hasattr(owner, "nf"):  # Hugging Face's Conv1D
            found = Kind("matrix", "io")
        elif isinstance(owner, _MATRIX_MODULES):
            found = Kind("matrix")
    return found


def _of_name(owned: Owned) -> Kind | None:
    """What the tensor's own name tells."""
    label, ndim, class_name = owned.label, owned.tensor.ndim, type(owned.owner).__name__.lower()
    found: Kind | None = None
    if _SCALE.search(label) or "magnitude_vector" in owned.name:
        found = Kind("norm")
    elif _BIAS.search(label) or _ELEMENTS.search(label):
        found = Kind("bias")
    elif is_adapter(owned.name):
        found = Kind("bias" if ndim < 2 else "matrix", "eio" if ndim == 3 else "oi")
    elif _TABLE.search(label) and "weight" not in label and "proj" not in label:
        found = Kind("embedding")
    elif ndim < 2:
        found = Kind("bias")
    elif _WEIGHT.search(label) and ndim != 3:
        found = Kind("matrix")
    elif "embed" in class_name:
        found = Kind("embedding")
    return found


def _of_shape(owned: Owned) -> Kind:
    """A guess: axes of length one belong to vectors and to tables that are broadcast over examples."""
    tensor, words = owned.tensor, f"{owned.name} {type(owned.owner).__name__}".lower()
    if tensor.ndim == 3 and (1 not in tensor.shape or "expert" in words):
        return Kind("matrix", _axes_of_stack(owned), known="expert" in words)
    if sum(size > 1 for size in tensor.shape) < 2:
        return Kind("bias")
    return Kind("embedding" if tensor.shape[0] == 1 and tensor.ndim > 2 else "matrix", known=False)


def _axes_of_stack(owned: Owned) -> str:
    """Axes of a stack of matrices: told by the module (Hugging Face), else by what fits the stack beside it."""
    if hasattr(owned.owner, "is_transposed"):
        return "eio" if owned.owner.is_transposed else "eoi"
    beside: list[Tensor] = [param for param in owned.owner.parameters(recurse=False) if param.ndim == 3]
    stacks = beside or [owned.tensor]
    (_, rows, columns), (_, next_rows, next_columns) = stacks[0].shape, stacks[-1].shape
    fits_io = rows == next_columns and columns % next_rows == 0  # inputs x inner, inner x outputs
    fits_oi = columns == next_rows and rows % next_columns == 0
    return "eio" if fits_io and not fits_oi else "eoi"


def _is_ones(tensor: Tensor) -> bool:
    return tensor.ndim == 1 and tensor.numel() > 1 and not tensor.is_meta and bool((tensor == 1).all())


def _largest(parametrization: ParametrizationList) -> int:
    return max(param.numel() for param in parametrization.parameters(recurse=False))
