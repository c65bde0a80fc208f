import pytest
import torch

from zoo.checkpoints.inferred_layout import layout_of_state_dict
from zoo.networks import low_rank
from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import ParamLayout
from zoo.operations import Networks, combine, extrapolate, ties


def networks_of(module, count, steps=None, seed=0):
    layout = ParamLayout.of(module)
    params = torch.randn(count, layout.num_params, generator=torch.Generator().manual_seed(seed))
    return Networks(layout, params, tuple(map(str, range(count))), tuple(steps or [None] * count), {})


@pytest.fixture
def with_buffers():
    """Three CNNs with BatchNorm after 10, 20 and 40 batches."""
    networks = networks_of(CNN(1, (4,), 2), 3, (10, 20, 40))
    views = networks.layout.views(networks.params)
    views["norms.0.running_var"].copy_(torch.tensor([1.0, 2.0, 6.0])[:, None].expand(3, 4))
    views["norms.0.num_batches_tracked"].copy_(torch.tensor([10.0, 20.0, 40.0]))
    return networks


BASED = {"task_arithmetic": {"scale": 2.0}, "ties": {}, "dare": {}}


@pytest.mark.parametrize(
    ("method", "settings", "variance"),
    [
        ("average", {}, 3.0),
        ("average", {"weights": [1.0, 0.0, 1.0]}, 3.5),
        ("exponential_average", {"decay": 0.5}, 3.75),
        ("extrapolate", {"to_step": 400}, 6.0),
        *((method, settings, 3.0) for method, settings in BASED.items()),
    ],
)
def test_statistics_are_averaged_and_counters_are_the_last_ones(with_buffers, method, settings, variance):
    base = networks_of(CNN(1, (4,), 2), 1, seed=1) if method in BASED else None
    params, remarks = combine(with_buffers, method, base=base, **settings)
    state = with_buffers.layout.unflatten(params)
    torch.testing.assert_close(state["norms.0.running_var"], torch.full((4,), variance))
    assert state["norms.0.num_batches_tracked"] == 40
    assert any("recompute" in remark for remark in remarks)
    CNN(1, (4,), 2).load_state_dict(state)


def test_teleportation_moves_statistics_with_their_units(with_buffers):
    one = Networks(with_buffers.layout, with_buffers.params[:1], ("a",), (None,), {})
    views = one.layout.views(one.params)
    views["norms.0.running_mean"].copy_(torch.arange(4.0))
    state = one.layout.unflatten(combine(one, "teleport", std=0.0, seed=1).params)
    order = state["norms.0.running_mean"].long()
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert torch.equal(state["convs.0.weight"], views["convs.0.weight"][0][order])
    assert state["norms.0.num_batches_tracked"] == 10


def test_only_what_is_trained_goes_through_the_method(with_buffers):
    base = networks_of(CNN(1, (4,), 2), 1, seed=1)
    count = with_buffers.layout.num_trainable
    params, _ = combine(with_buffers, "ties", base=base, density=0.3)
    assert torch.equal(params[:count], ties(with_buffers.params[:, :count], base.params[0, :count], 0.3))


def test_integers_that_are_no_counters_are_named_if_they_differ():
    layout = ParamLayout.of(MLP(2, (3,), 1))
    module = MLP(2, (3,), 1)
    module.register_buffer("mask", torch.tensor([True, False]))
    networks = networks_of(module, 2)
    networks.params[:, layout.num_params :] = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    params, remarks = combine(networks, "average")
    assert remarks == ["mask differs between the networks; the last one's was taken"]
    assert networks.layout.unflatten(params)["mask"].tolist() == [True, True]


def test_adapters_are_averaged_by_their_products():
    layout = layout_of_state_dict({"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(4, 2)})
    one = torch.randn(1, layout.num_params, generator=torch.Generator().manual_seed(0))
    mixed = low_rank.apply(layout, one, low_rank.sample(layout, 1, torch.Generator().manual_seed(1)))
    networks = Networks(layout, torch.cat([one, mixed]), ("a", "b"), (0, 1), {})
    for method in ("average", "exponential_average"):
        params, remarks = combine(networks, method)
        assert low_rank.distances(layout, params[None], one).item() < 1e-3
        assert "by their products" in remarks[0]
    assert low_rank.distances(layout, networks.params.mean(0)[None], one).item() > 0.1
    assert "factor by factor" in combine(networks, "dare", base=Networks(layout, one, ("c",), (0,), {})).remarks[0]


def test_extrapolation_goes_tensor_by_tensor():
    networks = networks_of(MLP(2, (3,), 1), 4, (0, 1, 2, 3))
    sizes = [slot.numel for slot in networks.layout]
    assert torch.equal(
        combine(networks, "extrapolate", to_step=9).params, extrapolate(networks.params, (0, 1, 2, 3), 9, sizes)
    )


def test_the_soup_weighs_buffers_by_its_members(with_buffers):
    params, _ = combine(with_buffers, "greedy_soup", evaluate=lambda params: params[:, 0].abs())
    variance = with_buffers.layout.unflatten(params)["norms.0.running_var"]
    kept = with_buffers.params[:, 0].abs().argmin()
    assert params[0].abs() <= with_buffers.params[kept, 0].abs() + 1e-6
    assert any(torch.allclose(variance, torch.tensor(v)) for v in (1.0, 2.0, 6.0, 1.5, 3.5, 4.0, 3.0))


@pytest.mark.parametrize("method", sorted(BASED))
def test_drops_repeat_from_the_seed_and_a_base_is_needed(with_buffers, method):
    base = networks_of(CNN(1, (4,), 2), 1, seed=1)
    one, same, other = (combine(with_buffers, method, base=base, seed=seed).params for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (method != "dare")
    with pytest.raises(ValueError, match=rf"{method} with \{{'scale': nan\}} gives NaN or infinity"):
        combine(with_buffers, method, base=base, scale=float("nan"))
    for wrong in (None, with_buffers):
        with pytest.raises(ValueError, match=f"{method} needs base=..., the one network"):
            combine(with_buffers, method, base=wrong)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("mean", {}, "no method 'mean'; there are average,"),
        ("average", {"density": 0.1}, r"average has no settings \['density'\]; it takes"),
        ("dare", {"rng": 1}, r"dare has no settings \['rng'\]; it takes \['drop_rate', 'scale'\]"),
        ("extrapolate", {"steps": 1}, r"it takes \['sizes', 'to_step'\]"),
        ("greedy_soup", {}, "needs the task"),
        ("extrapolate", {"to_step": 9}, "inner step of every network"),
    ],
)
def test_what_is_missing_or_unknown_is_named(method, settings, message):
    with pytest.raises(ValueError, match=message):
        combine(networks_of(MLP(2, (3,), 1), 3), method, **settings)
