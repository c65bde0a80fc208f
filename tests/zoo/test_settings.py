"""The one answer to "are these the same settings?": what is equal, what differs, and how it is said."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.settings import SettingsMismatchError, as_json, differences, digest, require_same, warn_of_other_software


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Outer:
    name: str
    num_steps: int = 100
    inner: Inner = field(default_factory=Inner)
    options: dict = field(default_factory=dict)
    stages: tuple[Inner, ...] = ()


FULL = Outer("a", options={"start": torch.arange(3.0), "mode": None}, stages=(Inner(), Inner(rate=1)))
SETTINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


def read_back(settings: object) -> object:
    return json.loads(json.dumps(as_json(settings)))


@given(SETTINGS)
def test_settings_are_those_of_their_record(settings):
    assert differences(read_back(settings), settings) == []
    assert digest(read_back(settings)) == digest(settings)


def test_nested_settings_are_those_of_their_record():
    assert differences(read_back(FULL), FULL) == []
    assert digest(FULL) == digest(read_back(FULL))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (replace(FULL, num_steps=200), "num_steps: begun with 100, now 200"),
        (replace(FULL, inner=Inner(betas=(0.9, 0.99))), "inner.betas: begun with [0.9, 0.999], now [0.9, 0.99]"),
        (replace(FULL, stages=(Inner(), Inner(rate=2))), "stages[1].rate: begun with 1, now 2"),
        (replace(FULL, stages=(Inner(),)), "stages: begun with [{"),
        (replace(FULL, options={"start": torch.arange(3.0)}), "options.mode: begun with null, now nothing"),
        (
            replace(FULL, options={**FULL.options, "start": torch.arange(3)}),
            'options.start: begun with "torch.float32 (3,) sha256:',
        ),
    ],
)
def test_each_field_that_differs_is_named(changed, line):
    (found,) = differences(read_back(FULL), changed)
    assert found.startswith(line)
    assert digest(changed) != digest(FULL)


def test_what_json_changes_is_the_same():
    assert differences({"a": 1, "b": [1, 2], "c": "nan"}, {"a": 1.0, "b": (1, 2), "c": math.nan}) == []
    assert differences({"a": 1}, {"a": True}) == ["a: begun with 1, now true"]
    for odd in (torch.zeros(0), torch.zeros(3, 2).T, torch.zeros(2, dtype=torch.bfloat16), np.zeros(1, np.uint32)):
        assert differences(read_back(odd), odd) == []
    same = {"a": np.float64(0.5), "b": np.arange(3), "c": Path("x"), "d": torch.float32, "e": range(2)}
    assert differences(read_back(same), same | {"b": torch.arange(3), "e": [0, 1]}) == []


def test_a_field_that_an_older_release_did_not_have_had_its_default():
    older = read_back(FULL)
    del older["num_steps"], older["inner"]["betas"], older["stages"][0]["rate"]
    assert differences(older, FULL) == []
    assert differences(older, replace(FULL, num_steps=7)) == ["num_steps: begun with 100, now 7"]
    del older["inner"], older["name"]
    assert differences(older, replace(FULL, inner=Inner(rate=3))) == [
        'name: begun with nothing, now "a"',
        "inner.rate: begun with 0.1, now 3",
    ]


def test_defaults_of_mappings_can_be_told():
    defaults = {"optimizer": {"lr": 0.1, "momentum": 0.0}}
    begun, now = {"optimizer": {"lr": 0.1}}, {"optimizer": {"momentum": 0.0}}
    assert differences(begun, now, defaults=defaults) == []
    assert len(differences(begun, now)) == 2


def test_free_fields_may_differ_with_all_below_them():
    changed = replace(FULL, num_steps=1, inner=Inner(rate=5), name="b")
    assert differences(read_back(FULL), changed, free=("num_steps", "inner")) == ['name: begun with "a", now "b"']


def test_the_refusal_says_where_what_and_what_to_do():
    with pytest.raises(SettingsMismatchError) as error:
        require_same(read_back(FULL), replace(FULL, num_steps=1), "the generator in out/x")
    text = (
        "the generator in out/x was begun with other settings (num_steps: begun with 100, now 1); give the old values"
    )
    assert str(error.value).startswith(text)
    require_same(read_back(FULL), FULL, "x")
    many = {str(i): i for i in range(20)}
    with pytest.raises(SettingsMismatchError, match="; and 12 more"):
        require_same(many, {name: -1 - i for name, i in many.items()}, "x")


def test_objects_are_no_settings():
    with pytest.raises(TypeError, match="settings are dataclasses"):
        as_json({"a": object()})


def test_other_software_is_pointed_out():
    with pytest.warns(UserWarning, match=r"the zoo x was begun with other software \(torch 2\.0 -> 2\.1\)"):
        warn_of_other_software({"torch": "2.0", "numpy": "2"}, {"torch": "2.1", "numpy": "2"}, "the zoo x")
