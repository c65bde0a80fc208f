"""The explorer: what it answers, and that a browser shows it."""

import io
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load

from generator import GeneratedParams, ParameterPipeline
from generator.model.objectives import ObjectiveConfig
from generator.training.config import GeneratorConfig, OptimizationConfig
from generator.training.pairs import PairConfig
from generator.training.train import train_generator
from scripts.explorer import app as app_module
from scripts.explorer.comparison import compare
from scripts.explorer.networks import MAX_LINES, evenly, history, plane, trajectories, weight_pictures
from scripts.explorer.prompting import Prompting, Request
from scripts.explorer.runs import RunTable
from scripts.json_values import json_value
from tests.devices import other_device
from zoo import Task, Zoo, build_zoo, get_task
from zoo.networks.adapters import adapt
from zoo.networks.architectures import MLP
from zoo.networks.randomness import seeded_module
from zoo.networks.symmetry import apply, sample

uvicorn = pytest.importorskip("uvicorn")


RIGHT = "\ue014"  # the arrow key, by its number in WebDriver


@pytest.fixture(scope="module")
def zoo(demo_folder):
    return Zoo.open(demo_folder / "zoo")


@pytest.fixture(scope="module")
def pipe(demo_folder):
    return ParameterPipeline.from_pretrained(demo_folder / "generator")


@pytest.fixture(scope="module")
def explorer(zoo, pipe):
    return app_module.Explorer(zoo, pipe)


# ----- the table


def test_the_table_has_every_column_and_the_last_value_of_every_metric(small_zoo):
    table = RunTable.of(small_zoo)
    assert set(table.columns) == {"run", *small_zoo.spec.metric_names, "inner_step", "lr", "split", "status"}
    assert table.columns["val_loss"] == pytest.approx(small_zoo.metric("val_loss")[:, -1], nan_ok=True)
    assert table.columns["status"].tolist().count("diverged") == 1
    for name in ("train", "val", "test"):
        members = table.columns["run"][table.rows(f"split = {name}")]
        assert members.tolist() == small_zoo.split(name, include_diverged=True).tolist()


def test_conditions_choose_and_columns_sort(small_zoo):
    table = RunTable.of(small_zoo)
    assert table.rows("").tolist() == list(range(10))
    assert table.rows("lr > 0.35 and lr <= 0.65, run != 4").tolist() == [3, 5]
    assert table.rows("status == diverged").tolist() == [4]
    for descending in (False, True):
        rows = table.sorted(table.rows(""), "val_loss", descending=descending)
        assert rows[-1] == 4  # NaN
        values = table.columns["val_loss"][rows[:-1]]
        assert (np.diff(values) * (-1 if descending else 1) >= 0).all()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("val_los < 1", "no column 'val_los'; did you mean val_loss"),
        ("lr < fast", "compared with a number, got 'fast'"),
        ("lr", "written like val_loss < 0.3, got 'lr'"),
        ("lr < 1; import os", "written like"),
    ],
)
def test_what_is_no_condition_is_said(small_zoo, where, message):
    with pytest.raises(ValueError, match=message):
        RunTable.of(small_zoo).rows(where)


# ----- networks


def test_many_runs_become_a_band_and_few_lines(small_zoo):
    runs = small_zoo.usable_runs()
    found = trajectories(small_zoo, "val_loss", runs)
    assert found["quantiles"] == pytest.approx(np.quantile(small_zoo.metric("val_loss")[runs], found["levels"], axis=0))
    assert found["steps"].tolist() == small_zoo.inner_step[0].tolist()
    assert [line["run"] for line in found["lines"]] == runs.tolist()
    assert trajectories(small_zoo, "val_loss", runs[:0])["lines"] == []
    assert len(evenly(np.arange(10_000), MAX_LINES)) == MAX_LINES


def test_the_plane_does_not_see_the_order_of_units(small_zoo, monkeypatch):
    before = plane(small_zoo, "PCA")
    read, layout = Zoo.read, small_zoo.layout

    def shuffled(self, pairs):
        params = torch.from_numpy(read(self, pairs))
        orders = sample(layout, len(params), torch.Generator().manual_seed(0))
        for order in orders.values():
            order[0] = torch.arange(order.shape[1])  # of the one that others are matched to
        return apply(layout, params, orders).numpy()

    monkeypatch.setattr(Zoo, "read", shuffled)
    after = plane(small_zoo, "PCA")
    assert before["runs"].tolist() == small_zoo.usable_runs().tolist()
    signs = np.sign((before["points"] * after["points"]).sum(0))
    assert after["points"] * signs == pytest.approx(before["points"], abs=1e-3)
    assert 0 < before["shares"][1] < before["shares"][0] < 1


def test_pictures_are_the_weights(zoo):
    params = torch.from_numpy(zoo.read([(0, -1), (1, -1)]))
    first, second = weight_pictures(zoo.layout, params, (8, 8))
    assert (first["name"], first["row_shape"], second["row_shape"]) == ("layers.0.weight", [8, 8], [1, 4])
    assert torch.equal(first["rows"][1].flatten(), params[1, zoo.layout.slots[0].span])
    frames = history(zoo, 0, (8, 8))
    assert frames["steps"].tolist() == zoo.inner_step[0].tolist()
    assert torch.equal(frames["tensors"][0]["rows"][-1], first["rows"][0])


def test_two_networks_side_by_side(zoo, explorer):
    found = compare(zoo, explorer.task, 0, 1)
    test = explorer.task.dataset.test
    params = torch.from_numpy(zoo.read([(0, -1), (1, -1)]))
    answers = explorer.task.predict(params, test.inputs).argmax(-1)
    assert found["confusion"].sum() == len(test)
    assert found["confusion"].trace() == len(test) - found["num_differ"]
    assert found["num_right"].tolist() == (answers == test.targets).sum(1).tolist()
    for one in found["examples"]:
        assert one["answers"].tolist() == answers[:, one["index"]].tolist()
        assert len(set(one["answers"].tolist())) == 2
    assert all(matched <= stored + 1e-4 for stored, matched in [found["layers"][0]["apart"]])
    same = compare(zoo, explorer.task, 0, 0)
    assert same["num_differ"] == 0
    assert max(max(layer["apart"]) for layer in same["layers"]) == 0
    assert "confusion" not in compare(zoo, None, 0, 1)


# ----- networks on request


def test_samples_are_measured_and_compared_and_can_be_taken_along(zoo, pipe, explorer):
    prompting = Prompting(pipe, zoo, explorer.task)
    request = Request(prompt=(("val_loss", 2.2),), num_samples=2, start=0, seed=3)
    answer = prompting.answer(request)
    name, content = prompting.file(request, 1, "safetensors")
    params = zoo.layout.flatten(load(content))[None]
    assert name == "sample_1.safetensors"
    assert torch.equal(params[0], prompting.sample(request).params[1])
    assert answer["samples"][1]["metrics"]["val_loss"] == explorer.task.evaluate(params, "val")["loss"]
    others = torch.from_numpy(zoo.read([(run, -1) for run in zoo.usable_runs()]))
    assert answer["samples"][1]["distance"] <= (others - params).norm(dim=1).min() + 1e-4
    assert torch.equal(Prompting(pipe, zoo, None).sample(request).params, prompting.sample(request).params)
    assert Prompting(pipe, zoo, None).answer(request)["samples"][0]["metrics"] == {}
    for change, message in [((5, "safetensors"), "sample must be from 0 to 1"), ((0, "peft"), "must be one of")]:
        with pytest.raises(ValueError, match=message):
            prompting.file(request, *change)
    with pytest.raises(ValueError, match="from 1 to"):
        Request(prompt=(), num_samples=99)


def test_samples_of_a_generator_on_another_device_are_measured_as_on_the_cpu(zoo, pipe, explorer):
    request = Request(prompt=(("val_loss", 1.0),), num_samples=2)
    expected = Prompting(pipe, zoo, explorer.task).answer(request)
    try:
        with other_device("sim") as device:
            found = Prompting(pipe.to(device), zoo, explorer.task).answer(request)
    finally:
        pipe.to("cpu")
    assert json_value(found) == json_value(expected)


def test_a_generated_adapter_is_packed_as_a_folder_for_peft(zoo, pipe, explorer, monkeypatch):
    base = MLP(64, (4,), 10)
    task = Task("adapters", explorer.task.dataset, lambda: adapt(base, rank=2), "cross_entropy")
    layout = task.layout
    made = GeneratedParams(torch.randn(2, layout.num_params, generator=torch.Generator().manual_seed(0)), layout)
    monkeypatch.setattr(Prompting, "sample", lambda self, request: made)
    monkeypatch.setattr(Prompting, "_adapted", lambda self: task.make_model())
    prompting = Prompting(pipe, zoo, None)
    assert prompting.summary()["formats"] == ["safetensors", "peft"]
    name, content = prompting.file(Request(prompt=()), 1, "peft")
    packed = zipfile.ZipFile(io.BytesIO(content))
    assert (name, json.loads(packed.read("adapter/adapter_config.json"))["r"]) == ("sample_1_peft.zip", 2)
    tensors = load(packed.read("adapter/adapter_model.safetensors"))
    held = torch.cat([value.flatten() for value in tensors.values()]).sort().values
    torch.testing.assert_close(held, made.params[1].sort().values)


# ----- the server


@contextmanager
def serving(zoo, pipe):
    server = uvicorn.Server(uvicorn.Config(app_module.make_app(zoo, pipe), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(zoo, pipe):
    with serving(zoo, pipe) as address:
        yield address


def get(address, path, host=None, content=None, **parameters):
    url = f"{address}/{path}?{urllib.parse.urlencode(parameters)}"
    request = urllib.request.Request(url, content, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_server_answers_in_json_and_says_what_is_wrong(address, explorer):
    status, content = get(address, "api/runs", where="split = test", sort="val_loss", descending=1)
    found = json.loads(content)
    assert status == 200
    assert found["count"] == len(explorer.zoo.split("test", include_diverged=True))
    assert found["columns"]["val_loss"] == sorted(found["columns"]["val_loss"], reverse=True)
    wrong = [
        ("api/runs", {"where": "nothing < 1"}, 400, "no column"),
        ("api/runs", {"what": 1}, 400, "unexpected keyword"),
        ("api/pair", {"first": 0, "second": 10**6}, 400, "no run 1000000"),
        ("api/map", {"method": "magic"}, 400, "method must be one of"),
        ("api/generate", {"beauty": 1}, 400, "not trained on metric 'beauty'"),
        ("api/nothing", {}, 404, "no 'nothing'"),
        ("..%2fapp.py", {}, 404, ""),
        ("app.py", {}, 404, "no such file"),
    ]
    for path, parameters, code, message in wrong:
        status, content = get(address, path, **parameters)
        assert (status, message in content.decode()) == (code, True), (path, content)


@pytest.fixture(scope="module")
def by_examples(tmp_path_factory):
    """Task, zoo and pipeline of adapters prompted by examples, and a folder with some of these as NPZ and as CSV."""
    folder = tmp_path_factory.mktemp("by_examples")
    task = get_task("warped_images", base="digits", hidden=(3,))
    task = get_task(**task.config, adapter={"base": seeded_module(task.make_model, 0).state_dict(), "rank": 1})
    zoo = build_zoo(folder / "zoo", task, num_runs=6, num_steps=2, num_snapshots=2, evaluated_splits=["val"])
    model = {"width": 8, "num_blocks": 1, "num_heads": 1, "diffusion": False, "use_start": False, "use_latent": False}
    config = GeneratorConfig(
        num_validation_starts=0,
        model=model,
        pairs=PairConfig(batch_size=2, start_share=0.0, num_examples=(4, 8)),
        objective=ObjectiveConfig(energy_score=False, function_energy_weight=0.0, function_examples=4),
        optimization=OptimizationConfig(num_steps=1, num_epochs=1, warmup_steps=0, precision="float32"),
    )
    pipe = train_generator(zoo, config, out=folder / "out", trainer_options={"enable_progress_bar": False})
    for decoder in pipe.model.decoders.values():  # a training this short leaves them near zero
        torch.nn.init.normal_(decoder.weight)
    inputs, targets = (values[0].numpy() for values in task.for_members([5]).batch(torch.arange(8), 1)[:2])
    np.savez(folder / "some.npz", inputs=inputs, targets=targets)
    table = np.column_stack((inputs.reshape(8, -1), targets))
    names = ",".join([*(f"x{i}" for i in range(table.shape[1] - 1)), "target"])
    np.savetxt(folder / "some.csv", table, delimiter=",", header=names, comments="", fmt="%.9g")
    return task, zoo, pipe, folder


def test_a_generator_prompted_by_examples_takes_them_as_files(by_examples, address, monkeypatch):
    task, zoo, pipe, folder = by_examples
    with np.load(folder / "some.npz") as saved:
        inputs, targets = saved["inputs"], saved["targets"]
    with serving(zoo, pipe) as prompted:
        assert json.loads(get(prompted, "api/about")[1])["prompting"]["examples"] == {
            "shape": [1, 8, 8],
            "num_classes": 10,
        }
        asked = {"num_samples": 2}
        samples = [get(prompted, "api/download", sample=1, **asked)[1]]
        for path in (folder / "some.npz", folder / "some.csv"):
            status, content = get(prompted, "api/examples", content=path.read_bytes(), name=path.name)
            taken = json.loads(content)
            assert (status, taken["count"], taken["num_labelled"]) == (200, 8, 8)
            asked["examples"] = taken["examples"]
            assert len(json.loads(get(prompted, "api/generate", **asked)[1])["samples"]) == 2
            samples.append(get(prompted, "api/download", sample=1, **asked)[1])
        expected = pipe(prompt={"examples": (inputs, targets)}, num_samples=2, task=task).state_dicts()[1]
        nothing, *given = map(load, samples)
        for name, value in expected.items():
            for found in given:
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert any(not torch.allclose(nothing[name], value, rtol=1e-2) for name, value in expected.items())
        short = io.BytesIO()
        np.savez(short, inputs=inputs[:3])
        for name, content, message in [
            ("a.npz", short.getvalue(), "4 to 512, got 3"),
            ("a.npz", b"nothing", "a.npz"),
            ("a.csv", b"a,target\n1,2\n", "inputs of examples must be"),
            ("a.pt", b"", "x.npz, x.csv or x.txt"),
        ]:
            status, found = get(prompted, "api/examples", content=content, name=name)
            assert (status, message in found.decode()) == (400, True), found
        status, found = get(prompted, "api/generate", examples="unknown")
        assert (status, "choose their file again" in found.decode()) == (400, True)
        monkeypatch.setattr(app_module, "_MAX_UPLOAD", 10)
        assert get(prompted, "api/examples", content=b"12345678901", name="a.csv")[0] == 413
    status, found = get(address, "api/examples", content=b"a\n1\n1\n1\n1\n", name="a.csv")
    assert (status, "not trained on examples" in found.decode()) == (400, True)


def test_only_this_machine_is_answered(address):
    assert get(address, "")[0] == 200
    assert get(address, "", host="rebound.example")[0] == 400


# ----- the page


def wait_for(session, script, seconds=60):
    ends = time.monotonic() + seconds
    while not (value := session.execute_script(f"return {script}")):
        assert time.monotonic() < ends, f"{script}: {session.find_element('id', 'error').text}"
        time.sleep(0.05)
    return value


def press(session, view):
    session.find_element("css selector", f'[data-view="{view}"]').click()
    wait_for(session, "document.body.getAttribute('aria-busy') === 'false'")
    assert session.find_element("id", "error").text == ""
    assert session.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.slow
@pytest.mark.parametrize("window", [(1280, "light"), (390, "dark")])
def test_open_filter_generate_and_download(address, browser, zoo, window):
    session = browser(f"{address}/", *window)
    wait_for(session, "document.body.dataset.ready")
    field = session.find_element("id", "where")
    field.send_keys("split = test")
    wait_for(session, f"document.getElementById('count').textContent.startsWith('{len(zoo.split('test'))} of')")
    for i, which in enumerate("ab"):
        session.find_elements("css selector", f"tbody button.{which}")[i].click()
        wait_for(session, f"document.querySelector('tbody button.{which}[aria-pressed=true]')")
    for view in ("trajectories", "map", "pair", "history"):
        press(session, view)
        if view == "map":
            canvas = session.find_element("id", "points")
            session.execute_script("arguments[0].focus()", canvas)
            canvas.send_keys(RIGHT)
            said = session.find_element("css selector", "#view-map output").text
            assert said.startswith(f"run {zoo.split('test')[0]}, val_loss")
    assert "they differ on" in session.find_element("id", "pair").get_attribute("textContent")
    assert session.find_element("id", "step").text == f"step {zoo.inner_step[0, -1]}"
    press(session, "generate")
    wait_for(session, "document.querySelectorAll('#samples tbody tr').length === 4")
    path = session.downloads / "sample_0.safetensors"
    path.unlink(missing_ok=True)
    session.find_element("css selector", "#samples a").click()
    ends = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert set(load(path.read_bytes())) == {slot.name for slot in zoo.layout}
    assert session.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in session.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith((address, "data:", "about:")) for url in asked)


@pytest.mark.slow
def test_examples_are_chosen_as_a_file_in_the_page(by_examples, browser):
    _, zoo, pipe, folder = by_examples
    with serving(zoo, pipe) as prompted:
        session = browser(f"{prompted}/", 390)
        wait_for(session, "document.body.dataset.ready")
        press(session, "generate")
        field = session.find_element("css selector", "#view-generate input[type=file]")
        short = folder / "short.csv"
        short.write_text("".join((folder / "some.csv").read_text().splitlines(keepends=True)[:3]))
        field.send_keys(str(short))
        wait_for(session, "document.getElementById('error').textContent.includes('4 to 512, got 2')")
        field.send_keys(str(folder / "some.csv"))
        wait_for(session, "document.getElementById('view-generate').textContent.includes('8 examples, 8 with a label')")
        wait_for(session, "document.querySelectorAll('#samples tbody tr').length === 4")
        assert session.find_element("id", "error").text == ""
