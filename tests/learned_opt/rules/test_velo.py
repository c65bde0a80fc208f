"""VeLO's rule against a plain reading of its published formulas, and what it asks of whoever runs it."""

import math

import pytest
import torch
from torch import nn

from learned_opt import LearnedOptimizer, MuLO, Pretrained, load_pretrained
from learned_opt.rules.rule import TensorSpec
from learned_opt.rules.velo import VeloRule

SHAPES = {
    "square": (6, 6),
    "wide": (3, 10),
    "tall": (9, 4),
    "kernel": (4, 3, 3, 3),
    "square kernel": (5, 5, 3, 3),
    "line": (4, 6, 3),
    "row": (1, 7),
    "bias": (10,),
    "norm": (6,),
    "scalar": (),
}
SPECS = [TensorSpec(name, "hidden", 3, shape) for name, shape in SHAPES.items()]
NUM_STEPS = 50


def pylo_state(hidden=4, lstm=512, bank=256, seed=0) -> tuple[dict, dict]:
    """Random state dicts in the layout of PyLO's VeLORNN and VeLOMLP."""
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape, std=1.0):
        return std * torch.randn(shape, generator=rng)

    sizes = {
        "mix_layer1": (30, lstm),
        "mix_layer2": (30, lstm),
        "final_mix_layer": (30, lstm),
        "lstm.linear": (2 * lstm, 4 * lstm),
        "rnn_to_controls": (lstm, bank),
        "step_size": (lstm, 1),
    }
    rnn = {f"{name}.weight": randn(o, i, std=i**-0.5) for name, (i, o) in sizes.items()}
    rnn |= {f"{name}.bias": randn(o, std=0.1) for name, (_, o) in sizes.items()}
    rnn |= {f"lstm_init_state.{i}": randn(1, lstm, std=0.3) for i in range(2)}
    mlp = {"input_weights_": randn(bank, hidden, 30, std=0.2), "input_bias_": randn(bank, hidden, std=0.1)}
    mlp |= {"hidden_weights_.0": randn(bank, hidden, hidden, std=0.5), "hidden_bias_.0": randn(bank, hidden, std=0.1)}
    mlp |= {"output_weights_": randn(bank, 3, hidden, std=0.5), "output_bias_": randn(bank, 3, std=0.1)}
    mlp |= {name.replace("_.", ".").removesuffix("_"): x[0] for name, x in mlp.items()}  # what PyLO mixed last
    return rnn, mlp


class PlainVelo:
    """The published formulas, tensor by tensor, decays on the last axis; kernels are (*kernel, inputs, outputs)."""

    def __init__(self, rnn, mlp, params, num_steps):
        self.rnn, self.mlp, self.num_steps, self.iteration = rnn, mlp, num_steps, 0
        self.p = params
        self.m = [torch.zeros(*p.shape, 3) for p in params]
        self.rms = [torch.zeros(*p.shape, 1) for p in params]
        self.row = [torch.zeros(1)] * len(params)
        self.col = [torch.zeros(1)] * len(params)
        self.h, self.c = (rnn[f"lstm_init_state.{i}"].repeat(len(params), 1) for i in range(2))
        self.decays = torch.exp(-1 / torch.logspace(1, math.log10(num_steps), 10))
        self.means, self.minimum = torch.zeros(10), torch.full((10,), 999999999999.0)

    def step(self, grads, loss):
        grads = [g.clip(-1000, 1000) for g in grads]
        loss_features = self.loss_features(loss)
        inputs = torch.stack([self.lstm_features(i, loss_features) for i in range(len(self.p))])
        controls, lr_mult = self.lstm(inputs)
        for i, g in enumerate(grads):
            self.p[i] = self.p[i] - lr_mult[i] * self.mlp_step(i, g, controls[i])
        self.iteration += 1

    def loss_features(self, loss):
        t = self.iteration
        largest = (self.means / (1 - self.decays ** (t + 1))).max() if t else torch.tensor(loss)
        loss = min(2 * largest.abs().item(), loss)
        self.means = self.means * self.decays + loss * (1 - self.decays)
        mean = self.means / (1 - self.decays ** (t + 1))
        self.minimum = torch.minimum(self.minimum, mean)
        if t + 1 <= 2:
            return torch.zeros(9)
        span = (mean[1:] - self.minimum[:-1]).clamp(min=1e-8)
        return ((mean[:-1] - self.minimum[:-1]) / span - 1).clip(-1, 1)

    def lstm_features(self, i, loss_features):
        p, scale = self.p[i], self.p[i].square().mean().clamp(min=1e-9).rsqrt()
        m, rms = (self.m[i] * scale).reshape(-1, 3), (self.rms[i] * scale).reshape(-1, 1)
        scales = torch.tensor([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
        inputs = {
            "fraction_left": torch.tanh((self.iteration / self.num_steps - scales) * 10),
            "loss_features": loss_features,
            "var_m": clip_log_abs((m - m.mean(0)).square().mean(0)),
            "mean_rms": clip_log_abs(rms.mean(0)),
            "var_rms": clip_log_abs((rms - m.mean(0)).square().mean(0)),  # from the momenta's means, as published
            "rank": torch.eye(5)[sum(size > 1 for size in p.shape)],
        }
        return torch.cat([inputs[name] for name in sorted(inputs)])

    def lstm(self, x):
        def linear(name, x):
            return x @ self.rnn[f"{name}.weight"].T + self.rnn[f"{name}.bias"]

        x = linear("final_mix_layer", x) + linear("mix_layer2", x).relu().max(0, keepdim=True).values
        i, g, f, o = linear("lstm.linear", torch.cat([x, self.h], -1)).chunk(4, -1)
        self.c = torch.sigmoid(f + 1) * self.c + torch.sigmoid(i) * torch.tanh(g)
        self.h = torch.sigmoid(o) * torch.tanh(self.c)
        return linear("rnn_to_controls", self.h), linear("step_size", self.h).squeeze(-1)

    def mlp_step(self, i, g, control):
        p, decays = self.p[i], torch.tensor([0.9, 0.99, 0.999])
        shape = p.shape
        if not shape:
            p, g, self.m[i], self.rms[i] = p[None], g[None], self.m[i].reshape(1, 3), self.rms[i].reshape(1, 1)
        m = self.m[i] = decays * self.m[i] + (1 - decays) * g[..., None]
        rms = self.rms[i] = 0.999 * self.rms[i] + 0.001 * g[..., None] ** 2
        square, root = g[..., None].expand(*g.shape, 3) ** 2 + 1e-30, (rms + 1e-6).rsqrt()
        if p.ndim < 2:
            v = self.row[i] = decays * self.row[i] + (1 - decays) * square
            fac_g, fac_m, row, col = g[..., None] * safe_rsqrt(v + 1e-9), m * v**-0.5, v, v
        else:
            d1, d0 = sorted(range(p.ndim), key=lambda axis: p.shape[axis])[-2:]
            row = self.row[i] = decays * self.row[i] + (1 - decays) * square.mean(d0, keepdim=True)
            col = self.col[i] = decays * self.col[i] + (1 - decays) * square.mean(d1, keepdim=True)
            factor = safe_rsqrt(row / (row.mean(d1, keepdim=True) + 1e-9)) * safe_rsqrt(col)
            fac_g, fac_m, row, col = g[..., None] * factor, m * factor, row.expand_as(m), col.expand_as(m)
        g1 = g[..., None]
        inputs = [g1, g1.clip(-0.1, 0.1), p[..., None], m, rms, m * root, root, fac_g, g1 * root]
        inputs += [row, col, (row + 1e-8).rsqrt(), (col + 1e-8).rsqrt(), fac_m]
        over = tuple(range(p.ndim))
        x = torch.cat([x * (1e-5 + x.square().mean(over, keepdim=True)).rsqrt() for x in inputs], -1)
        for layer in ("input_{}_", "hidden_{}_.0", "output_{}_"):
            weight, bias = (self.mlp[layer.format(part)] for part in ("weights", "bias"))
            weight = 100 * (control[:, None, None] * weight).mean(0)
            x = x @ weight.T + 100 * (control[:, None] * bias).mean(0)
            x = x if layer.startswith("output") else x.relu()
        step = x[..., 0] * torch.exp(0.001 * x[..., 1]) * (p.square().mean() + 1e-9).sqrt() * 0.001
        return step.reshape(shape)


def clip_log_abs(x):
    return (1e-8 + (10 * x).abs()).log().clip(-5, 5) * 0.5


def safe_rsqrt(x):
    return x.clip(min=1e-9).rsqrt()


def published_layout(x):
    return x.permute(*range(2, x.ndim), 1, 0) if x.ndim >= 2 else x


def save_pylo(folder, **sizes) -> tuple:
    states, paths = pylo_state(**sizes), (folder / "rnn.pt", folder / "mlp.pt")
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    return paths, states


def random_tensors(seed, std=1.0):
    rng = torch.Generator().manual_seed(seed)
    return [std * torch.randn(shape, generator=rng) for shape in SHAPES.values()]


@pytest.mark.parametrize(
    ("sizes", "num_updates"), [({"lstm": 24, "bank": 12}, NUM_STEPS), ({}, 2)], ids=["small", "published sizes"]
)
def test_pylo_files_train_ten_tensors_as_the_published_formulas_say(tmp_path, sizes, num_updates):
    paths, states = save_pylo(tmp_path, **sizes)
    loaded = load_pretrained(paths)
    assert loaded.rule.config == {"hidden": 4, "lstm": 512, "bank": 256} | sizes
    params = [nn.Parameter(x) for x in random_tensors(0)]
    groups = [{"params": [p], "role": "hidden" if p.ndim > 1 else "bias"} for p in params]
    optimizer = LearnedOptimizer(groups, loaded, num_training_steps=NUM_STEPS)
    plain = PlainVelo(*states, [published_layout(p.detach().clone()) for p in params], NUM_STEPS)
    for i in range(num_updates):
        loss = 2 / (1 + i) + 0.1 * math.sin(9 * i) + 8 * (i == 30)
        grads = random_tensors(1 + i, 10.0 ** (i % 7 - 4))
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step(loss=torch.tensor(loss))
        plain.step([published_layout(g) for g in grads], loss)
    for name, p, start, expected in zip(SHAPES, params, random_tensors(0), plain.p, strict=True):
        moved = (p - start).norm()
        assert moved > 2e-5 * num_updates * start.norm(), name
        assert (published_layout(p) - expected).norm() < 1e-3 * moved, name


def small_pretrained(**options) -> Pretrained:
    rule = VeloRule(lstm=8, bank=6, **options)
    return Pretrained(rule, rule.init_theta(torch.Generator().manual_seed(0)))


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model(torch.randn(4, 5)).square().mean().backward()
    return model


def test_the_loss_is_given_or_asked_for_and_reaches_the_rule_from_a_closure_too():
    models = [model_with_gradients() for _ in range(3)]
    first = [p.detach().clone() for p in models[0].parameters()]
    optimizers = [MuLO(model, small_pretrained(), num_training_steps=9) for model in models]
    with pytest.raises(ValueError, match=r"reads the loss, got none; call optimizer.step\(loss=loss\)"):
        optimizers[0].step()
    assert all(map(torch.equal, first, models[0].parameters()))
    for i in range(4):
        optimizers[0].step(loss=3.0 - i)
        assert optimizers[1].step(lambda i=i: torch.tensor(3.0 - i)) == 3.0 - i
        optimizers[2].step(loss=3.0 + i)
    for a, b, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, other)
    with pytest.raises(ValueError, match="give num_training_steps"):
        LearnedOptimizer(models[0], small_pretrained(), average=8).step(loss=1.0)


def test_half_of_a_velo_is_refused(tmp_path):
    paths, (rnn, _) = save_pylo(tmp_path, lstm=8, bank=4)
    for path in paths:
        with pytest.raises(ValueError, match="VeLO is two files"):
            load_pretrained(path)
    del rnn["step_size.bias"]
    torch.save(rnn, paths[0])
    with pytest.raises(ValueError, match=r"these are missing: \['step_size.bias'\]"):
        load_pretrained(paths)


def test_the_scale_of_the_loss_and_the_size_of_chunks_do_not_matter(monkeypatch):
    def trained(scale: float) -> list[torch.Tensor]:
        model = model_with_gradients()
        optimizer = MuLO(model, small_pretrained(), num_training_steps=20)
        for i in range(6):
            optimizer.step(loss=scale * (3 + (-1) ** i - i / 5))
        return list(model.parameters())

    once = trained(1.0)
    monkeypatch.setattr("learned_opt.rules.velo.CHUNK_NUMEL", 8)
    for a, b in zip(once, trained(1000.0), strict=True):
        torch.testing.assert_close(a, b)


def test_tensors_hear_of_each_other_and_not_of_those_without_a_gradient():
    rule = VeloRule(lstm=8, bank=6)
    theta = rule.init_theta(torch.Generator().manual_seed(0))
    specs = [TensorSpec("a", "hidden", 4, (4, 4)), TensorSpec("b", "hidden", 4, (4, 4))]

    def updated(other_scale: float, active: bool = True) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        params = [torch.randn(1, 4, 4, generator=rng) for _ in range(2)]
        params[1] *= other_scale
        state = rule.init_state(specs, params)
        state["momentum"][1] += 1.0
        grads, masks = [torch.ones_like(p) for p in params], [None, torch.tensor([active])]
        rule.update(theta, specs, params, grads, state, inner_step=0, num_steps=9, loss=torch.tensor(1.0), active=masks)
        return params[0]

    assert not torch.equal(updated(1.0), updated(30.0))
    assert torch.equal(updated(1.0, active=False), updated(30.0, active=False))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_its_step(loss):
    rule = VeloRule(lstm=8, bank=4)
    model = nn.Linear(3, 2)
    optimizer = LearnedOptimizer(model, Pretrained(rule, rule.init_theta(torch.Generator())), num_training_steps=9)
    for told in (1.0, loss, 0.9):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step(loss=told)
        assert torch.equal(model.weight, before) == (told is loss)
    assert model.weight.isfinite().all()
    assert (optimizer.inner_step, optimizer.num_skipped_steps) == (2, 1)


def test_files_that_are_no_theta_together_are_refused(tmp_path):
    _, (rnn, mlp) = save_pylo(tmp_path, lstm=8, bank=4)
    torch.save(rnn | mlp, tmp_path / "both.pt")
    files = [tmp_path / name for name in ("rnn.pt", "mlp.pt", "both.pt")]
    for pair in (("mulo-norm", "mulo"), (), (1, 2), ("mulo-norm", *files[:2]), files, files[:1] * 2, files[1:]):
        with pytest.raises((ValueError, TypeError), match=r"several files are one theta only|theta must be a name"):
            load_pretrained(pair)
