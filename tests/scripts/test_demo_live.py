"""What the page computes by itself is what PyTorch computes."""

import base64
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import scipy.stats
import torch

from generator import ParameterPipeline
from generator.tabular.files import SHIPPED, load_tabular
from generator.training.tasks import task_of
from scripts import demo
from scripts.demo_report import live
from zoo import Zoo, get_task

SCRIPT = "".join(
    (Path(live.__file__).parent / name).read_text() for name in ("tensors.js", "generator.js", "tabular.js")
)
BYTES = "Uint8Array.from(atob(given.file), (c) => c.charCodeAt(0))"
READ = f"new Generator(readSafetensors({BYTES}))"
NUM_STEPS = 3


@pytest.fixture(scope="module")
def task(demo_folder):
    return task_of(Zoo.open(demo_folder / "zoo"))


@pytest.fixture
def pipe(demo_folder):
    """A generator all of whose numbers matter: one of a few training steps changes almost nothing."""
    pipe = ParameterPipeline.from_pretrained(demo_folder / "generator")
    rng = torch.Generator().manual_seed(0)
    for value in pipe.model.parameters():
        value.data += 0.2 * torch.randn(value.shape, generator=rng)
    return pipe


def in_node(code, given):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    program = f"{SCRIPT}\nconst given = JSON.parse(require('fs').readFileSync(0));\n"
    program += f"console.log(JSON.stringify((() => {{ {code} }})()));"
    done = subprocess.run(["node", "-e", program], input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def in_browser(code, given, browser):
    return browser("about:blank").execute_script(f"const given = arguments[0];\n{SCRIPT}\n{code}", given)


ENGINES = [pytest.param(in_node, id="node"), pytest.param(in_browser, id="browser", marks=pytest.mark.slow)]


def run(engine, code, given, request):
    return engine(code, given, *([request.getfixturevalue("browser")] if engine is in_browser else []))


@pytest.mark.filterwarnings("ignore:.*outside the range")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_latent": False}, {"recurrence": 0}, {"recurrence": 2, "num_heads": 4, "num_blocks": 2}],
    ids=["demo", "no latent", "no recurrence", "other sizes"],
)
def test_networks_and_their_losses_are_those_of_pytorch(pipe, task, options, engine, request):
    pipe.register_modules(model=with_options(pipe.model, options))
    starts = task.init(torch.Generator().manual_seed(1), 3)
    low, high = pipe.model.ranges["val_loss"].low, pipe.model.ranges["val_loss"].high
    asks, wanted = [], []
    for i, (start, loss) in enumerate(zip(starts, (low / 2, math.sqrt(low * high), 2 * high), strict=True)):
        rng = torch.Generator().manual_seed(i)
        noise = [torch.randn(1, len(start), generator=rng)[0] for _ in range(1 + NUM_STEPS)]
        asks.append({"start": start.tolist(), "noise": [one.tolist() for one in noise], "loss": loss})
        rng.manual_seed(i)
        wanted.append(pipe(start, {"loss": loss}, num_inference_steps=NUM_STEPS, generator=rng).params[0])
    code = f"""
      const generator = {READ};
      return given.asks.map(({{ start, noise, loss }}) => {{
        const params = generator.generate(Float32Array.from(start), loss, noise.map((one) => Float32Array.from(one)));
        return {{ params: Array.from(params), ...generator.evaluate(params) }};
      }});"""
    given = {"file": base64.b64encode(live.pack(pipe, task, NUM_STEPS)).decode(), "asks": asks}
    found = run(engine, code, given, request)
    networks = torch.stack(wanted)
    assert networks.std(0).mean() > 0.01  # it matters what was asked
    torch.testing.assert_close(torch.tensor([one["params"] for one in found]), networks, atol=1e-4, rtol=1e-4)
    measured = task.evaluate(networks, "val")
    assert [one["loss"] for one in found] == pytest.approx(measured["loss"].tolist(), rel=1e-4)
    assert [1 - one["accuracy"] for one in found] == pytest.approx(measured["error"].tolist(), abs=1e-6)


TABLES = [(12, 2, 2), (60, 2, 2), (150, 2, 2), (40, 5, 3)]  # rows, features, classes


@pytest.mark.parametrize("engine", ENGINES)
def test_classifiers_made_of_points_are_those_of_pytorch(engine, request):
    rng, generator = torch.Generator().manual_seed(0), load_tabular()
    asks, wanted = [], []
    for num_rows, num_features, num_classes in TABLES:
        rows, probes = (3 * torch.randn(count, num_features, generator=rng) + 1 for count in (num_rows, 50))
        labels = (rows[:, 0] * rows[:, 1] > 0).long() + (num_classes - 2) * (rows[:, -1] > 2)
        asks.append({"rows": rows.flatten().tolist(), "labels": labels.tolist(), "probes": probes.flatten().tolist()})
        networks = generator.double()(rows.double()[None], labels[None], num_classes)
        wanted.append(networks.logits(probes.double()[None])[0])
    code = f"""
      const generator = new TabularGenerator(readSafetensors({BYTES}));
      return given.asks.map(({{ rows, labels, probes }}) => {{
        const network = generator.generate(Float32Array.from(rows), labels, Math.max(...labels) + 1);
        return Array.from(logitsOf(network, Float32Array.from(probes)));
      }});"""
    found = run(engine, code, {"file": base64.b64encode(SHIPPED.read_bytes()).decode(), "asks": asks}, request)
    for logits, real in zip(found, wanted, strict=True):
        assert real.std() > 0.1
        torch.testing.assert_close(torch.tensor(logits).double().view_as(real), real, atol=1e-4, rtol=1e-4)


def with_options(model, options):
    """A model with other options and random weights; without options the same."""
    if not options:
        return model
    rng = torch.Generator().manual_seed(1)
    changed = type(model).from_config({**model.config, **options})
    for value in changed.parameters():
        value.data += 0.2 * torch.randn(value.shape, generator=rng)
    return changed


def test_starts_and_noise_have_their_distributions(pipe, task):
    code = f"""
      const generator = {READ};
      return [1, 2, 3, 4, 5, 6, 7, 8].map((seed) => {{
        const {{ start, noise }} = generator.draw(seed);
        return {{ start: Array.from(start), noise: noise.map((one) => Array.from(one)) }};
      }});"""
    drawn = in_node(code, {"file": base64.b64encode(live.pack(pipe, task, NUM_STEPS)).decode()})
    starts, real = torch.tensor([one["start"] for one in drawn]), task.init(torch.Generator().manual_seed(0), 64)
    for slot in task.layout:
        assert scipy.stats.ks_2samp(starts[:, slot.span].flatten(), real[:, slot.span].flatten()).pvalue > 1e-3
    noise = torch.tensor([one["noise"] for one in drawn])
    assert noise.shape == (8, 1 + NUM_STEPS, task.layout.num_params)
    assert scipy.stats.kstest(noise.flatten(), "norm").pvalue > 1e-3
    assert torch.corrcoef(torch.cat((noise[0], noise[1]))).fill_diagonal_(0).abs().max() < 0.3


@pytest.mark.parametrize("options", [{"activation": "tanh"}, {"hidden": (4, 4)}, {"parametrization": "mup"}])
def test_what_the_page_does_not_know_is_left_to_pytorch(pipe, task, options):
    assert live.can_run(pipe, task)
    assert not live.can_run(pipe, get_task(**{**task.config, **options}))


def test_a_page_without_a_generator_has_no_live_section(demo_folder, compose_demo, tmp_path):
    shutil.copytree(demo_folder / "stages", tmp_path / "stages")
    (tmp_path / "stages" / "prompting.json").unlink()
    demo.main(compose_demo(tmp_path, "stages=[]"))
    assert 'id="live"' not in (tmp_path / "report.html").read_text()
    assert 'id="live"' in (demo_folder / "report.html").read_text()
