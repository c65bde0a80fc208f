"""Your own module: any nn.Module is trained in a population; one that names its interchangeable units can be aligned.

python examples/own_module.py
"""

import tempfile

import torch
from torch import nn

from zoo import GroupAxis, SymmetryGroup, Task, build_zoo, get_task
from zoo.networks.metrics import matched_distances, mean_over_pairs
from zoo.tasks.objectives import OBJECTIVES


class Gated(nn.Module):
    """Hidden units that multiply a linear map of the image with a gate."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(64, width), nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.head(self.value(x) * self.gate(x).sigmoid())

    def symmetry_groups(self) -> tuple[SymmetryGroup, ...]:  # optional: every axis that the hidden units index
        names = [f"{layer}.{kind}" for layer in ("value", "gate") for kind in ("weight", "bias")]
        axes = (*(GroupAxis(name, 0) for name in names), GroupAxis("head.weight", 1))
        return (SymmetryGroup("units", self.head.in_features, axes),)


digits = get_task("digits").dataset
task = Task("gated-digits", digits, Gated, OBJECTIVES["cross_entropy"])
zoo = build_zoo(tempfile.mkdtemp() + "/zoo", task, num_runs=16, num_steps=300)

networks = torch.from_numpy(zoo.params[:, -1])  # (16, P): the last snapshot of each run
accuracy = 100 * (1 - zoo.metric("test_error")[:, -1])
print(f"{zoo.num_runs} networks of {zoo.layout.num_params:,} parameters, test accuracy {accuracy.mean():.1f}%")
print(f"distance of two networks as they are:       {mean_over_pairs(torch.cdist(networks, networks)):.2f}")
print(f"the same with their hidden units matched:   {mean_over_pairs(matched_distances(zoo.layout, networks)):.2f}")
