import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from learned_opt import LearnedOptimizer, MlpRule, NormalizedRule, Pretrained, available, load_pretrained, save_theta
from learned_opt.pretrained.files import ThetaFileError


def theta_of(rule, seed: int = 0) -> torch.Tensor:
    return rule.init_theta(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", [MlpRule(8, "sp"), NormalizedRule(), NormalizedRule(feedback=False)])
def test_written_and_read_again(rule, tmp_path):
    path = tmp_path / "deep" / "mine.safetensors"
    save_theta(path, theta_of(rule), rule, {"seeds": [0, 1], "meta_loss": [3.0, 0.5]})
    loaded = load_pretrained(path)
    assert torch.equal(loaded.theta, theta_of(rule))
    assert (loaded.rule.name, loaded.rule.config) == (rule.name, rule.config)
    assert loaded.name == "mine"
    assert loaded.info == {"seeds": [0, 1], "meta_loss": [3.0, 0.5]}
    assert loaded.hash == Pretrained(rule, theta_of(rule)).hash


def test_hash_tells_rules_and_numbers_apart():
    scalars = NormalizedRule(feedback=False)
    hashes = {
        Pretrained(scalars, theta_of(scalars)).hash,
        Pretrained(scalars, theta_of(scalars) + 1e-6).hash,
        Pretrained(MlpRule(4), theta_of(MlpRule(4))).hash,
        Pretrained(MlpRule(4, "sp"), theta_of(MlpRule(4, "sp"))).hash,
    }
    assert len(hashes) == 4


def test_wrong_theta_for_the_rule_is_refused():
    with pytest.raises(ValueError, match="has 72 meta-parameters"):
        Pretrained(NormalizedRule(), torch.zeros(20))


def rewrite(path, **metadata):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        old = file.metadata()
    save_file(load_file(path), path, {**old, **metadata})


def test_damaged_or_newer_or_foreign_files_are_refused(tmp_path):
    path, rule = tmp_path / "x.safetensors", MlpRule(4)
    save_theta(path, theta_of(rule), rule)
    rewrite(path, hash="0" * 16)
    with pytest.raises(ThetaFileError, match="damaged"):
        load_pretrained(path)
    rewrite(path, version="4")
    with pytest.raises(ThetaFileError, match="version 4, this release reads up to 3"):
        load_pretrained(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ThetaFileError, match="damaged or no safetensors file"):
        load_pretrained(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ThetaFileError, match="holds no meta-parameters"):
        load_pretrained(path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ThetaFileError, match="no state dict"):
        load_pretrained(tmp_path / "list.pt")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="no pretrained optimizer 'nothing'"):
        load_pretrained("nothing")


class MetaMLP(nn.Module):
    """The network of PyLO's small_fc_lopt files."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.add_module("input", nn.Linear(39, hidden))
        self.network.add_module("relu_input", nn.ReLU())
        self.network.add_module("linear_0", nn.Linear(hidden, hidden))
        self.network.add_module("relu_0", nn.ReLU())
        self.network.add_module("output", nn.Linear(hidden, 2))


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_pylo_meta_mlp_computes_the_same(suffix, tmp_path):
    torch.manual_seed(0)
    network, path = MetaMLP(8), tmp_path / f"theirs.{suffix}"
    state = network.state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    loaded = load_pretrained(path)
    assert isinstance(loaded.rule, MlpRule)
    layers, decays = loaded.rule.unpack(loaded.theta[None])
    x = torch.randn(39, 5)
    y = x
    for i, layer in enumerate(layers):
        y = layer.weight[0] @ y + layer.bias[0][:, None]
        y = torch.relu(y) if i < 2 else y
    torch.testing.assert_close(y.T, network.network(x.T))
    torch.testing.assert_close(decays.momentum, torch.tensor([[0.9, 0.99, 0.999]]))


def celo2_state(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    dims = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
    state = {f"w0.{i}": torch.randn(d, 8, generator=rng) for i, d in enumerate(dims)}
    state |= {"b0": torch.randn(8, generator=rng), "dense_w.0": torch.randn(8, 8, generator=rng)}
    state |= {"dense_b.0": torch.randn(8, generator=rng), "dense_w.1": torch.randn(8, 3, generator=rng)}
    return state | {"dense_b.1": torch.randn(3, generator=rng)}


def elo_celo2(state, p, grads, rates):
    """A matrix (rows, columns) after steps by the formulas of the paper, from the stored layers."""
    decays = torch.tensor([0.9, 0.99, 0.999])
    m, v, row, column = torch.zeros(*p.shape, 3), torch.zeros(*p.shape, 1), 0.0, 0.0
    for g, rate in zip(grads, rates, strict=True):
        g1 = g[..., None]
        m, v = decays * m + (1 - decays) * g1, 0.95 * v + 0.05 * g1**2
        row = decays * row + (1 - decays) * (g1**2).mean(1, keepdim=True).expand_as(m)
        column = decays * column + (1 - decays) * (g1**2).mean(0, keepdim=True).expand_as(m)
        factor = (row / row.mean(0, keepdim=True)).rsqrt() * column.rsqrt()
        root = (v + 1e-8).rsqrt()
        groups = [g1, g1.clamp(-0.1, 0.1), p[..., None], m, v, m * root, root, g1 * factor, g1 * root]
        groups += [row, column, (row + 1e-8).rsqrt(), (column + 1e-8).rsqrt(), m * factor]
        groups = [x * (1e-9 + x.square().mean((0, 1), keepdim=True)).rsqrt() for x in groups]
        h = torch.relu(sum(x @ state[f"w0.{i}"] for i, x in enumerate(groups)) + state["b0"])
        h = torch.relu(h @ state["dense_w.0"] + state["dense_b.0"])
        x = (h @ state["dense_w.1"] + state["dense_b.1"])[..., 0]
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        p = p - rate * (x / x.square().mean().sqrt() + 0.1 * p)
    return p


def test_pylo_celo2_trains_as_elo_celo2_does(tmp_path):
    """By PyLO's recipe: clipping, decay, a cosine, and AdamW at twenty times the rate for vectors."""
    state, num_steps = celo2_state(), 12
    save_file(state, tmp_path / "celo2.safetensors")
    loaded = load_pretrained(tmp_path / "celo2.safetensors")
    assert loaded.theta.numel() == 347

    rng = torch.Generator().manual_seed(1)
    first = [torch.randn(shape, generator=rng) for shape in ((3, 4), (4,))]
    weight, bias, vector = (nn.Parameter(x.clone()) for x in (*first, first[1]))
    groups = [{"params": [weight], "role": "hidden", "lr": 0.316}, {"params": [bias], "role": "bias", "lr": 6.32}]
    ours = LearnedOptimizer(groups, loaded, weight_decay=0.1)
    adam = torch.optim.AdamW([vector], 6.32e-3, betas=(0.9, 0.95), weight_decay=0.1)
    factor = [0.55 + 0.45 * math.cos(math.pi * i / num_steps) for i in range(num_steps + 1)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor.__getitem__) for optimizer in (ours, adam)]
    clipped = []
    for _ in range(num_steps):
        weight.grad, bias.grad = (torch.randn(x.shape, generator=rng) for x in first)
        nn.utils.clip_grad_norm_([weight, bias], 1.0)
        clipped.append(weight.grad.clone())
        vector.grad = bias.grad.clone()
        for changing in (ours, adam, *schedules):
            changing.step()
    expected = elo_celo2(state, first[0], clipped, [3.16e-4 * f for f in factor[:-1]])
    torch.testing.assert_close(weight - first[0], expected - first[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(bias, vector)


def test_pylo_celo2_of_the_first_release_is_the_same(tmp_path):
    later = celo2_state()
    first = {name.replace("w0.", "first_layer_weights."): x.T for name, x in later.items() if name.startswith("w0.")}
    first["first_layer_bias"] = later["b0"]
    for i, layer in enumerate(("hidden", "output")):
        first |= {f"{layer}.weight": later[f"dense_w.{i}"].T, f"{layer}.bias": later[f"dense_b.{i}"]}
    save_file(later, tmp_path / "later.safetensors")
    torch.save(first, tmp_path / "first.pt")
    assert load_pretrained(tmp_path / "first.pt").hash == load_pretrained(tmp_path / "later.safetensors").hash


def test_pylo_file_of_another_shape_is_refused(tmp_path):
    state = MetaMLP(8).state_dict()
    del state["network.linear_0.bias"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="MetaMLP must have the tensors"):
        load_pretrained(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", available() or ["none"])
def test_shipped_files_load_and_have_a_card(name):
    if name == "none":
        pytest.skip("no meta-weights in this package")
    from learned_opt.pretrained.files import DIRECTORY

    loaded = load_pretrained(name)
    assert torch.isfinite(loaded.theta).all()
    assert (DIRECTORY / f"{name}.md").is_file()
    json.dumps(loaded.info)


SHIPPED = {
    "mulo": "d76fdff5820ba3a7",
    "mulo-norm": "48de0c7ab715ed26",
    "mulo-norm-scalars": "4d3b316013bf93ef",
    "mulo-wide": "7ff4f4acc60f4cdf",
}
SAVED_BY_0_1 = Path(__file__).parents[2] / "data" / "saved_by_0_1"


@pytest.mark.parametrize(
    ("rule", "num_theta", "digest"),
    [("mlp", 2409, "b8d0d79c384d3cb2"), ("normalized", 72, "6a02654e16e611c8"), ("celo2", 347, "a2a2bc754601f873")],
)
def test_files_of_the_previous_release_load(rule, num_theta, digest):
    loaded = load_pretrained(SAVED_BY_0_1 / f"theta_{rule}.safetensors")
    assert (loaded.rule.name, loaded.rule.num_theta, loaded.hash) == (rule, num_theta, digest)


def test_shipped_weights_are_what_they_were():
    assert {name: load_pretrained(name).hash for name in available()} == SHIPPED


def test_theta_goes_to_the_hub_with_a_card_and_trains_from_there(hub):
    shipped = load_pretrained("mulo-norm")
    shipped.push_to_hub("me/mulo-norm", license="apache-2.0")
    card = hub.repos["models/me/mulo-norm"]["README.md"].decode()
    assert "license: apache-2.0" in card
    assert 'LearnedOptimizer(model, "me/mulo-norm", num_training_steps=T)' in card
    assert "**Trained on**" in card  # the package's own card is part of it
    optimizer = LearnedOptimizer(nn.Linear(3, 2), "me/mulo-norm", num_training_steps=5)
    assert torch.equal(optimizer.pretrained.theta, shipped.theta)

    rule = NormalizedRule(feedback=False)
    info = {"command": "meta_train", "seed": 3, "meta_loss": [3.0, 1.0, 0.5], "data_hash": "abc"}
    Pretrained(rule, theta_of(rule), "mine", info).push_to_hub("me/mine")
    card = hub.repos["models/me/mine"]["README.md"].decode()
    assert "| command | meta_train |" in card
    assert "| meta-loss | 3.0 at the beginning, 0.5 at the end |" in card
    with pytest.raises(OSError, match="me/nothing"):
        load_pretrained("me/nothing")
