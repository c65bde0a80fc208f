"""One network trained as everybody does: what the speed of a population is compared with."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.tasks.task import Task
from zoo.training.batches import shared_indices


class PlainLoop:
    """A module of a task, Adam and its minibatches; `train` continues where it stopped."""

    def __init__(self, task: Task, batch_size: int = 64) -> None:
        self.model = task.make_model().to(task.device)
        self.optimizer = torch.optim.Adam(
            [param for param in self.model.parameters() if param.requires_grad], fused=True
        )
        self.train_split = task.dataset.train
        self.batches = shared_indices(0, len(self.train_split), batch_size, task.device)
        self.is_binary = task.objective.name == "binary_cross_entropy"

    def train(self, num_steps: int) -> None:
        inputs, targets = self.train_split.inputs, self.train_split.targets
        for _ in range(num_steps):
            indices = next(self.batches)
            self.optimizer.zero_grad()
            outputs = self.model(inputs[indices]).flatten(0, -2)
            if self.is_binary:
                loss = F.binary_cross_entropy_with_logits(outputs[:, 0], (targets[indices] < 5).float())
            else:
                loss = F.cross_entropy(outputs, targets[indices].flatten())
            loss.backward()
            self.optimizer.step()
