"""A demo at tiny sizes, run once for all tests that look at it."""

import pytest

from scripts import cli, demo

TINY = [
    "zoo.num_runs=80",
    "zoo.num_steps=40",
    "zoo.num_snapshots=4",
    "zoo.block_size=40",
    "zoo.architecture.hidden=[4]",
    "zoo.plain_loop_seconds=0.01",
    "generator.generator.model.width=16",
    "generator.generator.model.num_heads=2",
    "generator.generator.model.num_blocks=1",
    "generator.generator.optimization.num_steps=6",
    "generator.generator.optimization.num_epochs=3",
    "generator.generator.num_validation_starts=2",
    "generator.device=cpu",
    "prompting.num_starts=3",
    "prompting.num_prompts=3",
    "prompting.num_novelty_starts=3",
    "prompting.num_inference_steps=2",
    "optimizer.task.name=digits",
    "optimizer.task.hidden=[8]",
    "optimizer.num_steps=6",
    "optimizer.num_seeds=2",
    "optimizer.learning_rates=[1e-3,1e-2]",
    "join.num_networks=3",
    "join.num_steps=6",
]


def compose(folder, *overrides):
    return cli.compose("demo", [f"out='{folder}'", *TINY, *overrides])


@pytest.fixture(scope="session")
def tiny_demo():
    """Overrides that make a demo of seconds."""
    return TINY


@pytest.fixture(scope="session")
def compose_demo():
    """Function from a folder and further overrides to the config of a tiny demo."""
    return compose


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """A finished demo, in a folder whose name has spaces and signs."""
    folder = tmp_path_factory.mktemp("demos") / "my demo, (first) = 1"
    demo.main(compose(folder))
    return folder
