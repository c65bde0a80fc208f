"""A network for a table in one pass, without training; then the same network, trained further by MuLO.

python examples/unseen_table.py
"""

from functools import partial

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_score

from generator import GeneratedClassifier
from learned_opt import MuLO

X, y = load_breast_cancer(return_X_y=True)
finetuned = {"finetune_steps": 20, "optimizer": partial(MuLO, num_training_steps=20, lr=0.1)}
methods = {
    "one pass": GeneratedClassifier(),
    "and 20 steps of MuLO": GeneratedClassifier(**finetuned),
    "gradient boosting": HistGradientBoostingClassifier(random_state=0),
}
for name, method in methods.items():
    print(f"{name:20} accuracy {100 * cross_val_score(method, X, y, cv=5).mean():.1f}%")

# What comes out is an ordinary module, to be saved, exported or trained.
model = GeneratedClassifier(device="cpu").fit(X, y)
rows = torch.tensor(model.encoder_.transform(X), dtype=torch.float32)
print(model.module_)
print(torch.export.export(model.module_, (rows,)).module()(rows[:1].expand_as(rows))[0].softmax(-1).tolist())
