"""What generated networks are measured against, from the same rows.

Legend: S splits of a table, n rows, D features, K classes, H units.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from generator.tabular.network import TabularMLP, standardisation

LEARNING_RATES: Final = (3e-3, 1e-2, 3e-2)
HORIZONS: Final = (10, 20, 50, 100, 200)
_WEIGHT_DECAY: Final = 1e-2
_HELD_OUT: Final = 0.25


def estimators(seed: int) -> Mapping[str, Callable[[], object]]:
    """scikit-learn's, with its defaults; inputs are encoded as `GeneratedClassifier` encodes them."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        "gradient boosting": lambda: HistGradientBoostingClassifier(random_state=seed),
        "random forest": lambda: RandomForestClassifier(200, random_state=seed),
        "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "nearest neighbours": lambda: make_pipeline(StandardScaler(), KNeighborsClassifier()),
    }


def adamw_curves(
    inputs: Tensor, labels: Tensor, tests: Tensor, answers: Tensor, *, num_units: int, num_classes: int, seed: int
) -> Tensor:
    """Accuracy (S, learning rates, horizons) of the generated networks' kind, trained by AdamW and a cosine.

    All rows are in every step. The networks of the splits are one program.

    Args:
        inputs, labels: (S, n, D) and (S, n) to train on.
        tests, answers: (S, m, D) and (S, m).
        num_units: H.
        num_classes: K.
        seed: of the initial networks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = [TabularMLP(inputs.shape[-1], num_units, num_classes) for _ in range(len(inputs))]
    first, buffers = stack_module_state(modules)
    mean, scale = standardisation(inputs)
    buffers = {"mean": mean[:, 0], "scale": scale[:, 0]}
    shell = copy.deepcopy(modules[0]).to("meta")
    run = vmap(lambda params, some, rows: functional_call(shell, (params, some), (rows,)))
    accuracy = torch.empty(len(inputs), len(LEARNING_RATES), len(HORIZONS))
    for i, rate in enumerate(LEARNING_RATES):
        for j, horizon in enumerate(HORIZONS):
            params = {name: nn.Parameter(values.clone()) for name, values in first.items()}
            optimizer = torch.optim.AdamW(params.values(), rate, weight_decay=_WEIGHT_DECAY, fused=True)
            for step in range(horizon):
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / horizon)) / 2
                logits = run(params, buffers, inputs)
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) * len(inputs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                accuracy[:, i, j] = (run(params, buffers, tests).argmax(-1) == answers).float().mean(1)
    return accuracy


def tuned(held_out: Tensor, accuracy: Tensor) -> Tensor:
    """Accuracy (S,) of the learning rate and horizon that are best on rows held out, of curves of either kind."""
    return accuracy.flatten(1).gather(1, held_out.flatten(1).argmax(1, keepdim=True))[:, 0]


def split_held_out(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to choose on."""
    order = np.random.default_rng(seed).permutation(num_rows)
    count = max(1, round(_HELD_OUT * num_rows))
    return order[count:], order[:count]
