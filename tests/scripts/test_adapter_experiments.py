"""The experiments with adapters: a base, then a zoo of adapters on it, from the commands that their configs state."""

import pytest
import torch

from generator.training.tasks import task_of
from scripts import build_zoo
from scripts.cli import compose
from zoo.networks.adapters import merge

TINY = ("num_steps=3", "num_snapshots=2", "batch_size=4", "executor=in_process", "device=cpu")
SMALL = {
    "zoo_lora_images": ("task.base=digits", "task.image_size=null", "architecture.hidden=[8]"),
    "zoo_lora_text": ("task.context=8", "task.num_windows=8", "architecture.width=8", "architecture.num_heads=2"),
}


@pytest.mark.parametrize("experiment", SMALL)
def test_adapters_are_trained_on_the_base_of_their_experiment(experiment, tmp_path):
    small = list(SMALL[experiment])
    if experiment == "zoo_lora_text":  # the whole standard library takes seconds
        for name in "abc":
            (tmp_path / "texts" / name).mkdir(parents=True)
            (tmp_path / "texts" / name / "one.txt").write_text(f"{name} and again " * 800)
        small.append(f"task.path='{tmp_path / 'texts'}'")

    def built(name, *overrides):
        config = compose("build_zoo", [f"experiment={name}", f"out='{tmp_path / name}'", *small, *TINY, *overrides])
        return build_zoo.build(config, lambda state: None)

    base = built(f"{experiment}_base")
    zoo = built(experiment, "num_runs=3", "block_size=2", f"task.adapter.base='{base.group.store_path.store.root}'")
    assert zoo.verify() == []
    assert len(set(zoo.runs["member"])) == 3
    trained = base.state_dict(0, -1)
    assert all(torch.equal(value, trained[name]) for name, value in zoo.base.items())

    task = task_of(zoo)
    module = task.make_model()
    module.load_state_dict(zoo.state_dict(1, -1, merged=True))
    inputs = task.dataset.val.inputs[:4]
    torch.testing.assert_close(merge(module)(inputs), task.predict(torch.from_numpy(zoo.params[1:2, -1]), inputs)[0])
