"""Results are valid JSON, with few digits."""

import json
import math
from dataclasses import dataclass

import numpy as np
import torch

from scripts.json_values import json_value


@dataclass(frozen=True)
class Pair:
    one: float
    other: object


def test_nested_results_are_valid_json():
    found = json_value(
        {
            "a": np.array([1.0, math.nan]),
            "b": torch.tensor([math.inf, 1 / 3]),
            "c": ("x", None, True),
            4: Pair(2 / 3, 7),
        }
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "a": [1.0, None],
        "b": [None, 0.33333],
        "c": ["x", None, True],
        "4": {"one": 0.66667, "other": 7},
    }


def test_digits_and_what_is_not_finite_can_be_chosen():
    third, infinite = json_value([np.float32(1 / 3), Pair(math.inf, ())], 2, keep_nonfinite=True)
    assert (third, infinite) == (0.33, {"one": math.inf, "other": []})
