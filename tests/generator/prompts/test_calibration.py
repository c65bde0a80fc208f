import math

import pytest
import torch

from generator.pipeline import ParameterPipeline
from generator.prompts.calibration import Calibration
from generator.prompts.prompt import Prompt
from zoo.networks.architectures import MLP
from zoo.networks.layout import ParamLayout

from ..test_pipeline import make_pipeline

PROMPTS = torch.logspace(math.log10(0.1), math.log10(2.2), 16)


def test_an_unbiased_model_is_asked_for_what_is_meant():
    calibration = Calibration.fit(PROMPTS, PROMPTS.expand(5, -1))
    values = torch.tensor([0.1, 0.37, 2.2])
    torch.testing.assert_close(calibration(values), values)


def test_a_bias_is_taken_out():
    def model(asked):  # answers with networks that are better than asked, most of all at low prompts
        return asked * (0.7 + 0.1 * asked)

    calibration = Calibration.fit(PROMPTS, model(PROMPTS).expand(5, -1))
    meant = torch.linspace(0.1, 1.9, 7)
    torch.testing.assert_close(model(calibration(meant)), meant, rtol=5e-3, atol=0)


def test_noise_keeps_the_order_of_prompts():
    noise = 0.3 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    calibration = Calibration.fit(PROMPTS, PROMPTS * noise.exp())
    asked = calibration(torch.logspace(-1.5, 1, 50))
    assert (asked.diff() >= 0).all()
    assert asked.min() >= PROMPTS[0] - 1e-6
    assert asked.max() <= PROMPTS[-1] + 1e-6


def test_returns_are_averaged_as_they_are():
    prompts = torch.linspace(500, 20, 16)  # the best first
    achieved = prompts - 30 + torch.tensor([[-20.0], [20.0]])
    calibration = Calibration.fit(prompts, achieved, "val_return")
    torch.testing.assert_close(calibration(torch.tensor([100.0, 470.0, 500.0])), torch.tensor([130.0, 500.0, 500.0]))


def test_what_is_not_asked_stays_so():
    calibration = Calibration.fit(PROMPTS, PROMPTS.expand(2, -1))
    assert calibration(torch.tensor([math.nan, 0.5])).isnan().tolist() == [True, False]


def test_a_pipeline_asks_its_model_by_layout_and_mode(tmp_path):
    shallow, deep, wide = (ParamLayout.of(MLP(8, hidden, 3)) for hidden in ((6,), (6, 6), (7, 7)))
    pipe = make_pipeline(shallow, deep)
    shifted = {"meant": [0.2, 2.0], "asked": [0.4, 2.0]}
    same = {"meant": [0.2, 2.0], "asked": [0.2, 2.0]}
    pipe.register_to_config(calibrations=[{"start": shifted, "noise": same}, {"noise": shifted}])
    pipe.save_pretrained(tmp_path)
    loaded = ParameterPipeline.from_pretrained(tmp_path)
    prompt = Prompt.of({"loss": 0.2, "error": 0.3}, loaded.metrics, 1)

    def asked(layout, mode):
        return loaded._calibrated(prompt, loaded._calibration(layout, mode)).target[0].tolist()

    assert asked(shallow, "start") == pytest.approx([0.3, 0.4])
    assert asked(shallow, "noise") == pytest.approx([0.3, 0.2])
    assert asked(deep, "noise") == pytest.approx([0.3, 0.4])
    assert asked(deep, "start") == pytest.approx([0.3, 0.2])  # trained from noise alone
    assert asked(wide, "noise") == pytest.approx([0.3, 0.2])  # never seen in training

    start = torch.randn(1, shallow.num_params, generator=torch.Generator().manual_seed(1))
    plain = make_pipeline(shallow, deep)
    called = [
        one(start, {"loss": value}, layout=shallow, generator=torch.Generator().manual_seed(0)).params
        for one, value in ((loaded, 0.2), (plain, 0.4))
    ]
    torch.testing.assert_close(*called)
