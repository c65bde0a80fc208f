"""The module paths of release 0.1 are those of today's modules, said with a warning."""

import sys
from importlib import import_module

import pytest

from zoo.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}"):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__name__ == MOVED[old]
