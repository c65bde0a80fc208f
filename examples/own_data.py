"""Your own data: a CSV table becomes a zoo of 64 networks, one of which is taken out.

python examples/own_data.py
"""

import csv
import tempfile
from pathlib import Path

from sklearn.datasets import load_wine

from zoo import build_zoo, get_task

folder = Path(tempfile.mkdtemp())
wine = load_wine()  # stands for your table: thirteen numbers and a class
with open(folder / "wine.csv", "w", newline="") as file:
    rows = [[*values, wine.target_names[kind]] for values, kind in zip(wine.data, wine.target, strict=True)]
    csv.writer(file).writerows([[*wine.feature_names, "kind"], *rows])

# Numbers are standardised; rows are split by hash into train, validation and test.
task = get_task("table", path=folder / "wine.csv", target="kind", hidden=(16,))
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
