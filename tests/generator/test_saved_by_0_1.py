"""Pipelines that release 0.1 saved, whose index names files, load and give the networks that they gave then."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from generator import ParameterPipeline
from zoo.tasks.registry import get_task

SAVED = Path(__file__).parent.parent / "data" / "saved_by_0_1" / "generators"


@pytest.mark.parametrize("name", ["neuron", "chunk"])
@pytest.mark.filterwarnings("ignore:.*outside the range of the training runs")
def test_networks_are_those_of_then(name, tmp_path):
    expected = load_file(SAVED / f"{name}.safetensors")
    task = get_task("digits", hidden=(2,)) if name == "neuron" else None
    for folder in (SAVED / name, SAVED / name / "pipeline"):
        pipe = ParameterPipeline.from_pretrained(folder)
        for key, start in (("from_start", expected["start"]), ("from_noise", None)):
            out = pipe(
                start=start,
                prompt={"loss": 1.5},
                num_samples=2,
                generator=torch.Generator().manual_seed(0),
                task=task,
            )
            torch.testing.assert_close(out.params, expected[key], rtol=1e-3, atol=1e-3)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["model"] == ["generator", "RecurrentDiffusionTransformer"]
    assert index["normalizer"] == ["generator", "ParamNormalizer"]
