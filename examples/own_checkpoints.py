"""Your own checkpoints: an ordinary training loop saves them, and they become runs of a zoo.

python examples/own_checkpoints.py
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from zoo import import_checkpoints

folder = Path(tempfile.mkdtemp())
images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
labels = torch.tensor(load_digits().target)

for seed in range(3):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = folder / "checkpoints" / f"seed-{seed}"
    run.mkdir(parents=True)
    table = ["file,step,val_loss"]  # optional: what is known about each checkpoint
    for step in range(201):
        if step % 50 == 0:
            save_file(model.state_dict(), run / f"step-{step}.safetensors")
            table.append(f"step-{step}.safetensors,{step},{F.cross_entropy(model(images[1500:]), labels[1500:])}")
        batch = torch.randint(1500, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    (run / "metrics.csv").write_text("\n".join(table))

zoo = import_checkpoints(folder / "checkpoints", folder / "zoo", model=model)
print(f"{zoo.num_runs} runs, {zoo.num_snapshots} snapshots each, {zoo.layout.num_params:,} parameters")
for run, losses in enumerate(zoo.metric("val_loss")):
    print(f"run {run}: steps {zoo.inner_step[run].tolist()}, val loss {', '.join(f'{loss:.2f}' for loss in losses)}")
model.load_state_dict(zoo.state_dict(run=0, snapshot=2))
print("the network of run 0 after 100 steps is loaded; zoo.verify():", zoo.verify())
