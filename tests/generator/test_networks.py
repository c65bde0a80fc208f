"""A start may come in any form in which people have networks; what is none of these is refused in one line."""

import numpy as np
import pytest
import torch
from torch import nn

from generator.networks import GeneratedParams, read_start
from zoo.networks.architectures import MLP
from zoo.networks.layout import LayoutMismatchError, ParamLayout

MODULE = MLP(8, (6,), 3)
LAYOUT = ParamLayout.of(MODULE)
OTHER = ParamLayout.of(MLP(8, (5,), 3))
VECTOR = LAYOUT.flatten(MODULE)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in MODULE.state_dict().items()}


FORMS = {
    "module": lambda: MODULE,
    "compiled": lambda: torch.compile(MODULE),
    "DataParallel": lambda: nn.DataParallel(MODULE),
    "compiled DataParallel": lambda: torch.compile(nn.DataParallel(MODULE)),
    "part of a module": lambda: nn.ModuleDict({"network": MODULE}),
    "state dict": MODULE.state_dict,
    "state dict of DDP": lambda: prefixed("module."),
    "state dict of a Lightning module": lambda: prefixed("model._orig_mod."),
    "state dict in float64": lambda: {name: value.double() for name, value in MODULE.state_dict().items()},
    "state dict of arrays": lambda: {name: value.numpy() for name, value in MODULE.state_dict().items()},
    "vector": lambda: VECTOR,
    "vectors": lambda: VECTOR[None],
    "array": VECTOR.numpy,
    "float64 array": lambda: VECTOR.numpy().astype(np.float64),
    "numbers": VECTOR.tolist,
    "generated": lambda: GeneratedParams(VECTOR[None], LAYOUT),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vector(form):
    layout, vectors = read_start(FORMS[form](), [OTHER, LAYOUT])
    assert layout == LAYOUT
    assert torch.equal(vectors, VECTOR[None])


def test_a_list_holds_starts_in_any_forms():
    layout, vectors = read_start([MODULE, MODULE.state_dict(), VECTOR, VECTOR.numpy()], [LAYOUT])
    assert layout == LAYOUT
    assert torch.equal(vectors, VECTOR.expand(4, -1))


def test_a_wrapped_module_of_another_width_keeps_its_own_layout():
    wide = MLP(8, (11,), 3)
    for start in (wide, torch.compile(wide), nn.DataParallel(wide)):
        layout, vectors = read_start(start, [LAYOUT])
        assert layout == ParamLayout.of(wide)
        assert torch.equal(vectors[0], layout.flatten(wide))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("network.pt", "got str"),
        ([], "at least one network"),
        ({"model": MODULE.state_dict()}, "tensors by name"),
        (torch.zeros(0, LAYOUT.num_params), "at least one network"),
        (VECTOR * float("nan"), "finite"),
        ([MODULE, MLP(8, (5,), 3)], "one architecture"),
        (nn.Linear(2, 2).state_dict(), "fits none of the 1 layouts"),
        (torch.zeros(3), "another architecture"),
    ],
)
def test_others_are_refused(start, message):
    with pytest.raises(ValueError, match=message):
        read_start(start, [LAYOUT])


def test_a_state_dict_of_another_width_says_how_to_name_it():
    with pytest.raises(LayoutMismatchError, match="pass layout"):
        read_start(MLP(8, (5,), 3).state_dict(), [LAYOUT])
    layout, _ = read_start(MLP(8, (5,), 3).state_dict(), [LAYOUT], OTHER)
    assert layout == OTHER
