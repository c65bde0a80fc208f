"""Your own data: a CSV table becomes a zoo of 64 networks, one of which is taken out.

python examples/own_data.py
"""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_wine

from zoo import build_zoo, get_task

folder = Path(tempfile.mkdtemp())
wine = load_wine()  # stands for your table: thirteen numbers and a class
np.savetxt(
    folder / "wine.csv", np.column_stack([wine.data, wine.target]), delimiter=",", header="thirteen numbers, class"
)

table = np.loadtxt(folder / "wine.csv", delimiter=",")
x, y = table[:, :-1], table[:, -1].astype(np.int64)
np.savez(folder / "wine.npz", x=((x - x.mean(0)) / x.std(0)).astype(np.float32), y=y)

task = get_task("arrays", path=folder / "wine.npz", hidden=(16,))  # split by hash into train, validation and test
optimizer = {"name": "adam", "lr": {"log_uniform": [0.0003, 0.1]}}  # each run draws its own learning rate
zoo = build_zoo(folder / "zoo", task, num_runs=64, num_steps=150, optimizer=optimizer)

val_loss, accuracy = zoo.metric("val_loss")[:, -1], 100 * (1 - zoo.metric("test_error")[:, -1])
print(f"{zoo.num_runs} networks, {zoo.num_snapshots} snapshots each, {zoo.layout.num_params} parameters")
for name, run in (("best", val_loss.argmin()), ("worst", val_loss.argmax())):
    rate = zoo.runs["lr"][run]
    print(f"{name} validation loss {val_loss[run]:.3f}: learning rate {rate:.4f}, test accuracy {accuracy[run]:.0f}%")

model = task.make_model()
model.load_state_dict(zoo.state_dict(run=int(val_loss.argmin()), snapshot=-1))
print(model)
