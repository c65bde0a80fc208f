import json

import pytest
import torch

from generator.model import denoiser
from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.prompts.prompt import Prompt
from generator.tokens.tokenizer import ChunkTokenizer, NeuronTokenizer
from zoo.networks import symmetry
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import ParamLayout

LAYOUTS = {
    "mlp-1": lambda: MLP(8, (6,), 3),
    "mlp-3": lambda: MLP(8, (6, 5, 4), 3),
    "cnn": lambda: CNN(1, (4, 6), 3),
    "transformer": lambda: ByteTransformer(vocabulary=11, context=7, width=8, num_blocks=2, num_heads=2),
}
METRICS = {"val_loss": (0.1, 2.3)}


def make_model(*tokenizers, **options):
    """A model whose zero-initialised layers are not zero, so that its outputs depend on everything."""
    torch.manual_seed(0)
    nodes, edges = model_widths(tokenizers)
    defaults = {"width": 16, "num_blocks": 2, "num_heads": 4, "edge_width": 8}
    model = RecurrentDiffusionTransformer(nodes, edges, METRICS, **{**defaults, **options}).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return model


def make_inputs(layout, batch=3):
    rng = torch.Generator().manual_seed(1)
    noisy, latent, start = torch.randn(3, batch, layout.num_params, generator=rng).unbind()
    prompt = Prompt.of({"loss": 0.3}, ["val_loss"], batch)
    inputs = {"noisy": noisy, "latent": latent, "start": start, "timestep": torch.rand(batch, generator=rng)}
    return prompt, inputs


@pytest.mark.parametrize("recurrence", [0, 2])
@pytest.mark.parametrize("name", LAYOUTS)
def test_permuting_units_permutes_the_output(name, recurrence):
    layout = ParamLayout.of(LAYOUTS[name]())
    tokenizer = NeuronTokenizer(layout)
    model = make_model(tokenizer, recurrence=recurrence)
    prompt, inputs = make_inputs(layout)
    perms = symmetry.sample(layout, 3, torch.Generator().manual_seed(2))
    permuted = {
        key: value if key == "timestep" else symmetry.apply(layout, value, perms) for key, value in inputs.items()
    }
    with torch.no_grad():
        expected = symmetry.apply(layout, model(tokenizer, prompt, **inputs), perms)
        torch.testing.assert_close(model(tokenizer, prompt, **permuted), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recurrence", [0, 1])
def test_every_input_matters(recurrence):
    layout = ParamLayout.of(MLP(8, (6, 5), 3))
    tokenizer = NeuronTokenizer(layout)
    model = make_model(tokenizer, recurrence=recurrence)
    prompt, inputs = make_inputs(layout)
    with torch.no_grad():
        base = model(tokenizer, prompt, **inputs)
        for name, value in inputs.items():
            changed = model(tokenizer, prompt, **{**inputs, name: value * 0.5 + 0.1})
            assert (changed - base).abs().amax(1).min() > 1e-4, name
        asked = model(tokenizer, Prompt.of({"loss": 1.5}, ["val_loss"], 3), **inputs)
        assert (asked - base).abs().amax(1).min() > 1e-4
        nothing = model(tokenizer, Prompt.of(None, ["val_loss"], 3), **inputs)
        assert nothing.isfinite().all()
        without = model(tokenizer, prompt, **{**inputs, "has_start": torch.tensor([0, 1, 1])})
        torch.testing.assert_close(without[1:], base[1:])
        absent = model(tokenizer, prompt, **{**inputs, "start": None})
        torch.testing.assert_close(without[:1], absent[:1])


def test_prompt_and_start_may_be_read_once():
    layout = ParamLayout.of(MLP(8, (6, 5), 3))
    tokenizer = NeuronTokenizer(layout)
    model = make_model(tokenizer)
    prompt, inputs = make_inputs(layout)
    with torch.no_grad():
        reading = model.read(tokenizer, prompt, start=inputs["start"])
        torch.testing.assert_close(
            model(tokenizer, prompt, **inputs, reading=reading), model(tokenizer, prompt, **inputs)
        )


def test_one_model_serves_several_widths_and_depths():
    layouts = [ParamLayout.of(MLP(8, hidden, 3)) for hidden in ((6,), (5, 4))]
    model = make_model(*(NeuronTokenizer(layout) for layout in layouts))
    for hidden in ((6,), (5, 4), (7, 7, 7)):
        layout = ParamLayout.of(MLP(8, hidden, 3))
        prompt, inputs = make_inputs(layout)
        assert model(NeuronTokenizer(layout), prompt, **inputs).shape == (3, layout.num_params)


def test_a_new_model_predicts_zero():
    """Zero in normalised space is the mean network: the safest first guess."""
    tokenizer = NeuronTokenizer(ParamLayout.of(MLP(8, (6, 5), 3)))
    model = RecurrentDiffusionTransformer(*model_widths([tokenizer]), METRICS, width=16)
    prompt, inputs = make_inputs(tokenizer.layout)
    assert not model(tokenizer, prompt, **inputs).any()


@pytest.mark.parametrize("window", [0, 4])
def test_sampled_windows_are_those_of_the_whole(window):
    tokenizer = ChunkTokenizer(ParamLayout.of(MLP(8, (6, 5), 3)), 7)
    model = make_model(tokenizer, window=window)
    prompt, inputs = make_inputs(tokenizer.layout)
    with torch.no_grad():
        whole = tokenizer.encode(model(tokenizer, prompt, **inputs))["chunks"]
        length = whole.shape[1]
        size = window or length
        last = (length - 1) // size
        part = model(tokenizer, prompt, **inputs, windows=torch.tensor([last]))
    begin = last * size
    mask = tokenizer.mask[begin:].float()
    torch.testing.assert_close(part[:, : length - begin] * mask, whole[:, begin:] * mask)


def test_the_recurrence_carries_what_crosses_windows():
    tokenizer = ChunkTokenizer(ParamLayout.of(MLP(8, (6, 5), 3)), 7)
    prompt, inputs = make_inputs(tokenizer.layout)
    changed = {**inputs, "start": inputs["start"].clone()}
    changed["start"][:, :7] += 1.0  # the first chunk only
    for recurrence, reaches in ((0, False), (1, True)):
        model = make_model(tokenizer, window=2, recurrence=recurrence)
        with torch.no_grad():
            moved = (model(tokenizer, prompt, **changed) - model(tokenizer, prompt, **inputs)).abs()
        assert bool(moved[:, -7:].max() > 1e-6) == reaches


def test_plain_and_fused_attention_agree(monkeypatch):
    query, key, value = torch.randn(3, 2, 4, 9, 5)
    plain = denoiser.attend(query, key, value)
    monkeypatch.setattr(denoiser, "_SHORT_SEQUENCE", 0)
    torch.testing.assert_close(denoiser.attend(query, key, value), plain)


def test_missing_or_surplus_inputs_are_refused():
    tokenizer = NeuronTokenizer(ParamLayout.of(MLP(8, (6,), 3)))
    prompt, inputs = make_inputs(tokenizer.layout)
    with pytest.raises(ValueError, match="latent"):
        make_model(tokenizer)(tokenizer, prompt, **{**inputs, "latent": None})
    with pytest.raises(ValueError, match="without a start"):
        make_model(tokenizer, use_start=False)(tokenizer, prompt, **inputs)
    with pytest.raises(ValueError, match="timestep"):
        make_model(tokenizer)(tokenizer, prompt, **{**inputs, "timestep": None})
    with pytest.raises(ValueError, match="all are off"):
        make_model(tokenizer, diffusion=False, use_latent=False, use_start=False)


def test_configuration_round_trip(tmp_path):
    tokenizer = NeuronTokenizer(ParamLayout.of(MLP(8, (6, 5), 3)))
    model = make_model(tokenizer)
    model.save_pretrained(tmp_path)
    loaded = RecurrentDiffusionTransformer.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    prompt, inputs = make_inputs(tokenizer.layout)
    torch.testing.assert_close(loaded(tokenizer, prompt, **inputs), model(tokenizer, prompt, **inputs))
    assert not list(tmp_path.glob("*.bin"))


def test_without_recurrence_none_of_its_parameters_are_left():
    tokenizer = NeuronTokenizer(ParamLayout.of(MLP(8, (6, 5, 4, 3), 3)))
    names = [{name for name, _ in make_model(tokenizer, recurrence=layers).named_parameters()} for layers in (0, 1)]
    parts = {name.partition(".")[0] for name in names[1] - names[0]}
    assert parts == {"recurrent", "recurrence_condition", "summary", "prototype"}
    assert names[0] < names[1]


def test_a_new_model_with_a_start_skip_returns_the_edges_of_the_start():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    tokenizer = NeuronTokenizer(layout)
    model = RecurrentDiffusionTransformer(*model_widths([tokenizer]), METRICS, start_skip=0.5, width=16, num_heads=2)
    prompt, inputs = make_inputs(layout)
    with torch.no_grad():
        output = model(tokenizer, prompt, **inputs)
    kernel = layout["convs.1.weight"].span
    torch.testing.assert_close(output[:, kernel], 0.5 * inputs["start"][:, kernel])
    assert not output[:, : kernel.start].any()


def test_without_a_start_the_noisy_network_takes_its_place():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    tokenizer = NeuronTokenizer(layout)
    model = make_model(tokenizer, noisy_as_start=True, num_fingerprints=2, fingerprint_scale=3.0)
    prompt, inputs = make_inputs(layout)
    inputs["fingerprints"] = {group.name: torch.randn(3, group.size, 2) for group in tokenizer.groups[1:]}
    start = inputs.pop("start")
    has_start = torch.tensor([0.0, 1.0, 0.0])
    with torch.no_grad():
        alone = model(tokenizer, prompt, **inputs)
        mixed = model(tokenizer, prompt, start=start, has_start=has_start, **inputs)
        given = model(tokenizer, prompt, start=start, **inputs)
        unread = model(tokenizer, prompt, **(inputs | {"fingerprints": None}))
    torch.testing.assert_close(mixed[[0, 2]], alone[[0, 2]])
    torch.testing.assert_close(mixed[1], given[1])
    assert not torch.allclose(alone, unread, atol=1e-3)


def test_saved_models_load_without_networks_that_vote_and_are_refused_with_them(tmp_path):
    kind = {"shape": (2,), "num_symbols": 0, "num_classes": 3, "num_features": 2}
    model = make_model(NeuronTokenizer(ParamLayout.of(LAYOUTS["mlp-1"]())), examples=kind)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    old = saved | {"references": [], "examples": saved["examples"] | {"num_votes": 0}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    again = RecurrentDiffusionTransformer.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    (tmp_path / "config.json").write_text(json.dumps(old | {"references": [8, 75]}))
    with pytest.raises(ValueError, match="num_references, which is no longer there: train it again"):
        RecurrentDiffusionTransformer.from_pretrained(tmp_path)
