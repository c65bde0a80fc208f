import math

import pytest
import torch

from generator.inversion import Inversion
from generator.model.objectives import PREDICTIONS
from generator.networks import in_one_form
from tests.generator.test_pipeline import make_pipeline, seeded
from tests.generator.test_prompted_by_examples import adapter_task
from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.networks.symmetry import apply

LAYOUT = ParamLayout.of(MLP(8, (6,), 3))


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(LAYOUT)


def networks(num_networks=3, seed=1):
    return torch.randn(num_networks, LAYOUT.num_params, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_inverted_comes_back_whatever_the_model_says(prediction):
    mixing = torch.randn(20, 20, generator=seeded()) / 4

    def output(noisy, time):
        return (2 * noisy @ mixing + time).sin()

    clean, inversion = torch.randn(5, 20, generator=seeded()), Inversion(prediction, 24)
    noise = inversion.invert(output, clean)
    back = inversion.regenerate(output, *noise)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, clean.double(), rtol=0, atol=1e-5)
    assert (inversion.regenerate(lambda noisy, time: output(noisy, time) + 0.1, *noise) - clean).abs().max() > 1e-2


def test_both_copies_end_as_noise_of_the_data_s_own_scale():
    """A model that knows Gaussian data of deviation 1 foresees signal * noisy; then noise has deviation 1, too."""

    def output(noisy, time):
        return math.cos(time * math.pi / 2) * noisy

    first, second = Inversion("sample", 48).invert(output, torch.randn(40, 50, generator=seeded()))
    assert first.std().item() == pytest.approx(1, rel=0.1)
    assert (first - second).std() < 0.15


@pytest.mark.parametrize("kind", ["neuron", "chunk"])
@pytest.mark.parametrize("start", [None, networks(seed=2)], ids=["from noise", "updates of a start"])
def test_a_network_asked_for_its_own_prompt_comes_back(kind, start):
    pipe = make_pipeline(LAYOUT, kind=kind)
    own = {"loss": torch.tensor([0.4, 0.6, 0.8]), "error": 0.3}
    same = pipe.edit(networks(), own, own_prompt=own, start=start, generator=seeded()).params
    torch.testing.assert_close(same, networks(), rtol=0, atol=1e-5)
    other = pipe.edit(networks(), {"loss": 0.2}, own_prompt=own, start=start, generator=seeded()).params
    assert (other - networks()).abs().max() > 1e-3


def test_adapters_learned_as_they_were_trained_are_edited_as_they_are():
    layout = adapter_task().layout
    network = torch.randn(1, layout.num_params, generator=seeded())
    asked = {"loss": 0.5}
    for as_trained in (True, False):
        pipe = make_pipeline(layout, statistics_per_number=as_trained)
        same = pipe.edit(network, asked, own_prompt=asked, generator=seeded()).params
        expected = network if as_trained else in_one_form(layout, network)
        torch.testing.assert_close(same, expected, rtol=0, atol=1e-5)


def test_edits_are_seeded_and_take_what_a_start_may_be(pipe):
    module = MLP(8, (6,), 3)
    given = (module, module.state_dict(), LAYOUT.flatten(module))
    edited = [pipe.edit(one, {"loss": 0.2}, num_inference_steps=2, generator=seeded()).params for one in given]
    assert all(torch.equal(edited[0], one) for one in edited)
    module.load_state_dict(pipe.edit(module, {"loss": 0.2}, num_inference_steps=2).state_dicts()[0])


def test_a_permutation_of_units_permutes_those_of_the_edited_network():
    pipe = make_pipeline(LAYOUT, use_latent=False)
    (group,) = LAYOUT.groups
    order = torch.randperm(group.size, generator=seeded())
    permuted = apply(LAYOUT, networks(1), {group.name: order[None]})
    one, other = (pipe.edit(some, {"loss": 0.2}, num_inference_steps=4).params for some in (networks(1), permuted))
    torch.testing.assert_close(apply(LAYOUT, one, {group.name: order[None]}), other, rtol=1e-4, atol=1e-4)


def test_counters_are_copied():
    module = CNN(1, (4, 6), 3)
    module.norms[0].num_batches_tracked.fill_(123)
    (state,) = make_pipeline(ParamLayout.of(module)).edit(module, {"loss": 0.5}, num_inference_steps=1).state_dicts()
    assert state["norms.0.num_batches_tracked"].item() == 123


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (None, {}, "needs a network"),
        (networks() * math.nan, {}, "finite"),
        (networks() * 1e30, {}, "far larger"),
        (networks(), {"prompt": {"loss": [0.1, 0.2]}}, "one for each network"),
        (networks(), {"own_prompt": {"loss": math.nan}}, "NaN"),
        (networks(), {"own_prompt": {"accuracy": 0.9}}, "not trained on metric"),
        (networks(), {"num_inference_steps": 0}, "an integer above 0"),
        (networks(), {"generator": 0}, "torch.Generator"),
        (networks(), {"start": networks(2)}, "one start, or 3"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_one_line(pipe, network, settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        pipe.edit(network, **{"prompt": {"loss": 0.5}, **settings})
    assert "\n" not in str(refused.value)


def test_networks_of_another_architecture_and_pipelines_without_noise_are_refused(pipe):
    with pytest.raises(LayoutMismatchError):
        pipe.edit(MLP(9, (6,), 3), {"loss": 0.5})
    for use_start, instead in ((True, r"pipe\(start=network\)"), (False, r"pipe\(prompt=\.\.\.\)")):
        with pytest.raises(ValueError, match=f"in one pass.*use {instead}"):
            make_pipeline(LAYOUT, diffusion=False, use_start=use_start).edit(networks(), {"loss": 0.5})
