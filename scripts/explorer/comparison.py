"""Two networks side by side: what differs in their weights, and on which test examples they differ.

Legend: P numbers of one network, E examples, K classes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from zoo import Task, Zoo
from zoo.inspection.summary import last_snapshots
from zoo.networks.alignment import align
from zoo.tasks.families.family_task import FamilyTask
from zoo.tasks.objectives import CrossEntropy

from .networks import image_shape, weight_pictures

_MAX_EXAMPLES: Final = 24


def compare(zoo: Zoo, task: Task | None, first: int, second: int) -> dict[str, Any]:
    """The last networks of two runs, the second one with its units matched to the first.

    Returns:
        "tensors": pictures of the first, the second and their difference; "layers": for each tensor its norms and the
        norm of the difference, as stored and matched; with a task that classifies, "confusion" (K, K) of the answers
        on the test split, and "examples" on which they differ.
    """
    runs = np.array([first, second])
    params = torch.from_numpy(zoo.read(np.stack([runs, last_snapshots(zoo)[runs]], axis=1)))
    if not bool(params.isfinite().all()):
        raise ValueError(f"runs {first} and {second} must not have failed: their weights are no numbers")
    mine, stored = params
    other = align(zoo.layout, params[1:], mine).params[0]
    layers = [
        {
            "name": slot.name,
            "shape": slot.shape,
            "norms": [float(one[slot.span].norm()) for one in (mine, stored)],
            "apart": [float((one - mine)[slot.span].norm()) for one in (stored, other)],
        }
        for slot in zoo.layout
        if slot.kind != "buffer"
    ]
    pictures = weight_pictures(zoo.layout, torch.stack((mine, other, other - mine)), image_shape(task))
    answers = {} if task is None else compare_answers(task, params)
    return {"runs": runs, "layers": layers, "tensors": pictures, **answers}


def compare_answers(task: Task, params: torch.Tensor) -> dict[str, Any]:
    """What two networks (2, P) answer on the test split; empty unless they classify the same examples by one rule."""
    test = task.dataset.test
    is_shared = isinstance(task.objective, CrossEntropy) and not isinstance(task, FamilyTask)
    if not is_shared or test.targets.ndim != 1:
        return {}
    outputs = task.predict(params, test.inputs)
    predicted = outputs.argmax(-1)  # (2, E)
    num_classes = outputs.shape[-1]
    pairs = predicted[0] * num_classes + predicted[1]
    differ = (predicted[0] != predicted[1]).nonzero().flatten()
    shape, shown = image_shape(task), differ[:_MAX_EXAMPLES]
    return {
        "num_test": len(test),
        "num_right": (predicted == test.targets).sum(1),
        "num_differ": len(differ),
        "confusion": torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes),
        "image": shape,
        "examples": [
            {
                "index": int(i),
                "target": int(test.targets[i]),
                "answers": predicted[:, i],
                "inputs": test.inputs[i].flatten() if shape else None,
            }
            for i in shown
        ],
    }
