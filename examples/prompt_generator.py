"""Prompt a generator: train a tiny one on a zoo, ask it for networks by their loss, and see what they have.

    python examples/prompt_generator.py

A few seconds of training are enough to see prompts followed. The defaults of `python -m scripts.train_generator` take
minutes, meet them closely, and make networks that differ as real ones do.
"""

import tempfile

import torch

from generator import GeneratorConfig, ObjectiveConfig, OptimizationConfig, PairConfig, train_generator
from zoo import build_zoo, get_task

folder = tempfile.mkdtemp()
task = get_task("digits", hidden=(16,))  # 8x8 digits, MLP 64-16-10
zoo = build_zoo(f"{folder}/zoo", task, num_runs=256, num_steps=400)

config = GeneratorConfig(
    model={"width": 64, "num_blocks": 2},
    pairs=PairConfig(batch_size=32, start_share=1.0),
    objective=ObjectiveConfig(energy_score=False, function_energy_weight=0.0),
    optimization=OptimizationConfig(num_steps=200, num_epochs=1, average_decay=0.97),
)
pipe = train_generator([zoo], config, out=f"{folder}/generator", trainer_options={"enable_progress_bar": False})

start = task.make_model()  # an initial network that no run of the zoo began with
print("loss asked for   validation loss   test loss   test accuracy")
for prompt in (2.0, 1.0, 0.5, 0.25):
    generated = pipe(start=start, prompt={"loss": prompt}, num_samples=8, generator=torch.Generator().manual_seed(0))
    val, test = task.evaluate(generated.params, "val"), task.evaluate(generated.params, "test")
    accuracy = 100 * (1 - test["error"].mean())
    print(f"{prompt:14.2f}   {val['loss'].mean():15.2f}   {test['loss'].mean():9.2f}   {accuracy:12.1f}%")

model = task.make_model()
model.load_state_dict(generated.state_dicts()[0])  # an ordinary module with generated parameters
images, labels = task.dataset.test.inputs[:10], task.dataset.test.targets[:10]
print("the last one reads", model(images).argmax(-1).tolist(), "where it says", labels.tolist())
