import math

import numpy as np
import pytest
import torch
from torch import nn

from generator.model.transformer import RecurrentDiffusionTransformer, model_widths
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from generator.tokens.normalizer import ParamNormalizer
from tests.ambient import AMBIENTS
from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.tasks.registry import get_task

METRICS = {"val_error": (0.05, 0.9), "val_loss": (0.1, 2.3)}


def make_pipeline(*layouts, kind="neuron", metrics=METRICS, statistics_per_number=False, **options):
    torch.manual_seed(0)
    networks = [torch.randn(20, layout.num_params).abs() for layout in layouts]
    own = {"statistics_per_number": statistics_per_number}
    normalizer = ParamNormalizer.fit(kind, layouts, networks, chunk_width=7, **own)
    nodes, edges = model_widths([normalizer.make_tokenizer(layout) for layout in layouts])
    defaults = {"width": 16, "num_blocks": 1, "num_heads": 2, "edge_width": 8}
    model = RecurrentDiffusionTransformer(nodes, edges, metrics, **{**defaults, **options}).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    return ParameterPipeline(model, normalizer, make_scheduler("sample"))


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline(ParamLayout.of(MLP(8, (6,), 3)))


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", ["neuron", "chunk"])
def test_generated_networks_load_into_a_fresh_module(kind):
    for module in (MLP(8, (6, 5), 3), CNN(1, (4, 6), 3)):
        pipe = make_pipeline(ParamLayout.of(module), kind=kind)
        out = pipe(prompt={"loss": 0.5}, num_samples=3, num_inference_steps=2, generator=seeded())
        assert out.params.shape == (3, ParamLayout.of(module).num_params)
        for state in out.state_dicts():
            module.load_state_dict(state)


def test_a_start_may_be_a_module_a_state_dict_or_vectors(pipe):
    module = MLP(8, (6,), 3)
    layout = ParamLayout.of(module)
    starts = (module, module.state_dict(), layout.flatten(module), layout.flatten(module)[None])
    outs = [pipe(start, {"loss": 0.5}, num_inference_steps=2, generator=seeded()).params for start in starts]
    assert all(torch.equal(outs[0], out) for out in outs)
    other = pipe(MLP(8, (6,), 3), {"loss": 0.5}, num_inference_steps=2, generator=seeded()).params
    assert not torch.equal(outs[0], other)


def test_calls_are_seeded_and_batched(pipe):
    one, two = (pipe(prompt={"loss": 0.5}, num_samples=4, generator=seeded()).params for _ in range(2))
    assert torch.equal(one, two)
    assert (one[0] - one[1]).abs().max() > 1e-3
    prompts = torch.tensor([0.2, 1.0])
    out = pipe(prompt={"loss": prompts, "error": 0.3}, num_samples=2, generator=seeded())
    assert len(out) == 2


def test_more_networks_than_one_pass_holds_are_generated_in_order(pipe):
    prompts, module = torch.linspace(0.2, 2.0, 300), MLP(8, (6,), 3)
    out = pipe(module, {"loss": prompts}, num_samples=300, num_inference_steps=1, generator=seeded()).params
    first = pipe(module, {"loss": prompts[:256]}, num_samples=256, num_inference_steps=1, generator=seeded()).params
    assert out.shape[0] == 300
    torch.testing.assert_close(out[:256], first)


def test_counters_are_copied_from_the_start():
    module = CNN(1, (4, 6), 3)
    module.norms[0].num_batches_tracked.fill_(123)
    pipe = make_pipeline(ParamLayout.of(module))
    (state,) = pipe(module, {"loss": 0.5}, num_inference_steps=2).state_dicts()
    assert state["norms.0.num_batches_tracked"].item() == 123
    assert (state["norms.1.running_var"] > 0).all()


def test_one_pipeline_generates_other_widths(pipe):
    wide = MLP(8, (11,), 3)
    layout = ParamLayout.of(wide)
    from_start = pipe(wide, {"loss": 0.5}, num_inference_steps=2)
    from_noise = pipe(prompt={"loss": 0.5}, layout=layout, num_inference_steps=2)
    for generated in (from_start, from_noise):
        assert generated.layout == layout
        wide.load_state_dict(generated.state_dicts()[0])
        assert torch.equal(layout.flatten(wide), generated.params[0])


def test_wrong_requests_are_refused(pipe):
    with pytest.raises(ValueError, match="not trained on metric 'accuracy'"):
        pipe(prompt={"accuracy": 0.9})
    with pytest.raises(ValueError, match="NaN"):
        pipe(prompt={"loss": math.nan})
    with pytest.raises(ValueError, match="one value or 1"):
        pipe(prompt={"loss": torch.ones(3)})
    with pytest.raises(ValueError, match="far larger"):
        pipe(torch.full((75,), 1e30), {"loss": 0.5})
    with pytest.raises(LayoutMismatchError):
        pipe(MLP(9, (6,), 3), {"loss": 0.5})
    with pytest.raises(LayoutMismatchError):
        pipe(nn.Linear(2, 2).state_dict(), {"loss": 0.5})
    with pytest.raises(LayoutMismatchError):
        pipe(torch.zeros(5), {"loss": 0.5})
    broken = MLP(8, (6,), 3)
    nn.init.constant_(broken.layers[0].weight, math.nan)
    with pytest.raises(ValueError, match="finite"):
        pipe(broken, {"loss": 0.5})
    with pytest.raises(ValueError, match="num_samples"):
        pipe(torch.zeros(2, ParamLayout.of(broken).num_params), {"loss": 0.5}, num_samples=3)
    with pytest.raises(ValueError, match="num_samples"):
        pipe(prompt={"loss": 0.5}, num_samples=0)
    with pytest.raises(ValueError, match="task_bits"):
        pipe(prompt={"loss": 0.5}, task_bits=[1, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "an integer above 0, got 0"),
        ({"num_inference_steps": -1}, "an integer above 0, got -1"),
        ({"num_inference_steps": 5041}, "from 1 to 5040, got 5041"),
        ({"num_inference_steps": 3000}, "must divide 5040"),
        ({"num_inference_steps": 2.5}, "must be an integer"),
        ({"num_samples": 2.0}, "must be an integer"),
        ({"guidance_scale": math.nan}, "guidance_scale must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        ({"guidance_scale": "2"}, "guidance_scale must be"),
        ({"eta": None}, "eta must be"),
        ({"eta": 1.5}, "eta must be"),
        ({"generator": 0}, "torch.Generator"),
        ({"prompt": 0.2}, "by metric"),
        ({"prompt": {"loss": "low"}}, "must be a number"),
        ({"prompt": {"loss": None}}, "must be a number"),
        ({"prompt": {"loss": 0.5, "val_loss": 0.6}}, "given once"),
        ({"prompt": {"loss": [0.5, 0.6]}}, "one for each network"),
        ({"start_metrics": {"loss": math.nan}}, "NaN"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(pipe, settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        pipe(**{"prompt": {"loss": 0.5}, "num_inference_steps": 2, **settings})
    assert "\n" not in str(refused.value)


def test_prompts_may_be_lists_arrays_and_tensors_of_any_kind(pipe):
    values = [0.2, 1.0]
    forms = (values, tuple(values), np.array(values), torch.tensor(values, dtype=torch.float64), np.float32(0.2))
    outs = [
        pipe(prompt={"loss": one}, num_samples=2, num_inference_steps=np.int64(2), generator=seeded()) for one in forms
    ]
    assert all(torch.equal(outs[0].params, out.params) for out in outs[:-1])
    assert torch.equal(outs[0].params[0], outs[-1].params[0])


def test_an_unconditional_pipeline_takes_no_prompt():
    layout = ParamLayout.of(MLP(8, (6,), 3))
    pipe = make_pipeline(layout, metrics={})
    assert pipe(num_samples=3, num_inference_steps=2).params.isfinite().all()
    with pytest.raises(ValueError, match="unconditional"):
        pipe(prompt={"loss": 0.5})


@pytest.mark.parametrize("kind", ["neuron", "chunk"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_give_the_same_networks_but_for_rounding(kind, dtype, tmp_path):
    module = MLP(8, (6, 5), 3)
    pipe = make_pipeline(ParamLayout.of(module), kind=kind)
    pipe.save_pretrained(tmp_path)

    def networks(pipe):
        out = pipe(module, {"loss": 0.5}, num_samples=20, guidance_scale=1.5, generator=seeded())
        assert out.params.dtype == torch.float32
        return pipe.normalizer.scale(pipe.normalizer.make_tokenizer(out.layout)).normalize(out.params)

    exact = networks(pipe)
    for other in (ParameterPipeline.from_pretrained(tmp_path, torch_dtype=dtype), pipe.to(dtype)):
        assert other.model.dtype == dtype
        assert other.normalizer.mean.dtype == torch.float32
        assert (networks(other) - exact).square().mean() < 1e-3 * exact.square().mean()


def test_a_task_of_another_architecture_is_refused(pipe):
    with pytest.raises(LayoutMismatchError, match="task 'digits' is of another architecture"):
        pipe(prompt={"loss": 0.5}, task=get_task("digits", hidden=(6,)))


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="was it moved"):
        ParameterPipeline.from_pretrained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="has not ended"):
        ParameterPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(("asked", "answered"), [(0.01, 0.1), (5.0, 2.3)])
def test_prompts_outside_the_trained_range_warn_and_are_answered_as_its_ends(pipe, asked, answered):
    with pytest.warns(UserWarning, match=rf"val_loss = {asked:g} is outside .* 0.1 to 2.3"):
        outside = pipe(prompt={"loss": asked}, num_inference_steps=2, generator=seeded()).params
    inside = pipe(prompt={"loss": answered}, num_inference_steps=2, generator=seeded()).params
    assert torch.equal(outside, inside)


def test_a_pipeline_of_several_layouts_asks_which(pipe):
    layouts = [ParamLayout.of(MLP(8, hidden, 3)) for hidden in ((6,), (5, 4))]
    several = make_pipeline(*layouts)
    with pytest.raises(ValueError, match="pass layout"):
        several(prompt={"loss": 0.5})
    vector = torch.zeros(layouts[1].num_params)
    assert several(vector, {"loss": 0.5}, num_inference_steps=2).layout == layouts[1]


def test_loading_says_nothing(tmp_path, caplog):
    pipe = make_pipeline(ParamLayout.of(MLP(8, (6,), 3)))
    pipe.register_to_config(tasks=[{"name": "digits", "hidden": [6]}, None])
    pipe.save_pretrained(tmp_path)
    assert ParameterPipeline.from_pretrained(tmp_path).config.tasks == pipe.config.tasks
    assert caplog.text == ""


def test_saving_keeps_everything_and_pickles_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = ParameterPipeline.from_pretrained(tmp_path)
    ours, theirs = (p(prompt={"error": 0.2}, num_samples=2, generator=seeded()).params for p in (pipe, loaded))
    torch.testing.assert_close(ours, theirs)
    assert loaded.metrics == pipe.metrics == ["val_error", "val_loss"]
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    assert loaded.scheduler.config.clip_sample is False


@pytest.mark.parametrize("name", AMBIENTS)
def test_networks_are_the_same_whatever_a_program_has_set_for_torch(pipe, tmp_path, name):
    def sampled(pipeline):
        return pipeline(num_samples=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).params

    expected = sampled(pipe)
    with AMBIENTS[name]():
        assert torch.equal(sampled(pipe), expected)
        pipe.save_pretrained(tmp_path)
        torch.testing.assert_close(sampled(ParameterPipeline.from_pretrained(tmp_path)), expected)
