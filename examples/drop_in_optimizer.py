"""A learned optimizer in an ordinary loop: MuLO beside AdamW at three learning rates.

python examples/drop_in_optimizer.py
"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from learned_opt import MuLO

NUM_STEPS = 200
images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
labels = torch.tensor(load_digits().target)


def train(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[float, float]:
    """Mean training loss of the last 20 steps, and accuracy of what is kept on images that were not trained on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = make_optimizer(model)
    losses = []
    for _ in range(NUM_STEPS):
        batch = torch.randint(1500, (64,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if isinstance(optimizer, MuLO):
        optimizer.eval()  # averaged weights, where the length of the run was not known
    accuracy = (model(images[1500:]).argmax(-1) == labels[1500:]).float().mean().item()
    return sum(losses[-20:]) / 20, 100 * accuracy


methods = {
    f"AdamW, lr {lr:g}": lambda model, lr=lr: torch.optim.AdamW(model.parameters(), lr) for lr in (1e-3, 1e-2, 1e-1)
}
methods["MuLO(model)"] = MuLO
methods["MuLO(model, num_training_steps=T)"] = lambda model: MuLO(model, num_training_steps=NUM_STEPS)
for name, make_optimizer in methods.items():
    loss, accuracy = train(make_optimizer)
    print(f"{name:34} final training loss {loss:.5f}, accuracy {accuracy:.1f}%")
