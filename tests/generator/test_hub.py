"""Pipelines on the hub: what comes back is what went there, and the card can be followed."""

import re

import pytest
import torch

from generator.hub import pipeline_card
from generator.pipeline import ParameterPipeline
from tests.generator.test_pipeline import make_pipeline, seeded
from zoo.hub import HubError
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(ParamLayout.of(MLP(4, (3,), 2)))


def test_a_pipeline_goes_to_the_hub_and_back(hub, pipe):
    pipe.push_to_hub("me/generator", license="apache-2.0")
    back = ParameterPipeline.from_pretrained("hf://me/generator")
    expected, found = (one(prompt={"loss": 0.5}, num_samples=2, generator=seeded()).params for one in (pipe, back))
    torch.testing.assert_close(found, expected)
    assert hub.repos["models/me/generator"]["README.md"] == pipeline_card(pipe, "me/generator", license="apache-2.0")
    with pytest.raises(FileExistsError, match="replace=True"):
        pipe.push_to_hub("me/generator")
    with pytest.raises((HubError, FileNotFoundError), match="me/nothing"):
        ParameterPipeline.from_pretrained("hf://me/nothing")


def test_the_card_says_what_can_be_asked_and_of_what_it_learned(pipe, small_zoo):
    results = {"from a start": {"r2": 0.99634, "spearman": 0.998}}
    card = pipeline_card(pipe, "me/generator", license="apache-2.0", zoos=[small_zoo], results=results).decode()
    assert card.startswith("---\ntags: [weightfoundry, parameter-generation]\nlicense: apache-2.0\n---\n")
    assert "| can be asked for | val_error from 0.05 to 0.9, val_loss from 0.1 to 2.3 |" in card
    assert '- 10 runs of 5 snapshots; data `unknown`; task `{"name": "made up"}`' in card
    assert "- from a start: r2 0.9963, spearman 0.998" in card


def test_the_code_on_the_card_runs(hub, pipe):
    pipe.push_to_hub("me/generator")
    card = hub.repos["models/me/generator"]["README.md"].decode()
    session: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], session)
    assert len(session["states"]) == 4
