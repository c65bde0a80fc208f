"""A demo at tiny sizes, run once for all tests that look at it."""

import pytest

from scripts import cli, demo
from scripts.bench.all import TINY_DEMO

TINY = ["device=cpu", *TINY_DEMO.split()]


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
