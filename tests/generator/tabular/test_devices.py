"""The generator of tables gives the numbers of the CPU on another device."""

import copy

import numpy as np
import torch

from generator import GeneratedClassifier
from generator.tabular.files import load_tabular
from generator.tabular.training import TabularConfig, table_loss


def test_losses_and_gradients_are_those_of_the_cpu(device):
    config = TabularConfig(rows_per_batch=64, max_rows=24, num_queries=8)
    models = [load_tabular().requires_grad_(True)]
    models.append(copy.deepcopy(models[0]).to(device))
    losses = [table_loss(model, config, 3, next(model.parameters()).device) for model in models]
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-4, atol=1e-5)
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-2, atol=1e-4)


def test_the_classifier_is_that_of_the_cpu(device):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    models = [GeneratedClassifier(finetune_steps=3, device=place).fit(X, y) for place in ("cpu", device)]
    assert models[1].module_.mean.device.type == device.type
    np.testing.assert_allclose(models[1].predict_proba(X), models[0].predict_proba(X), atol=1e-3)
