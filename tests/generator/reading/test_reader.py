import copy

import numpy as np
import pytest
import torch

from generator import WeightReader, train_reader
from generator.evaluation.neighbours import nearest_runs
from generator.evaluation.reading import reading_report
from generator.prompts.prompt import Prompt
from generator.reading.choice import best_of
from generator.reading.reader import WeightReading, told_outputs
from generator.reading.statistics import weight_statistics
from generator.training.reader import ReaderConfig
from tests.ambient import AMBIENTS
from tests.generator.test_pipeline import make_pipeline
from zoo.building.build import build_zoo
from zoo.networks import symmetry
from zoo.networks.architectures import MLP
from zoo.networks.layout import LayoutMismatchError, ParamLayout
from zoo.storage.zoo import Zoo
from zoo.tasks.registry import get_task

CONFIG = ReaderConfig(num_steps=120, num_inputs=16, width=48, batch_size=64)
LR = {"name": "adam", "lr": {"log_uniform": [0.001, 0.1]}}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "digits"
    build_zoo(path, get_task("digits", hidden=(4,)), num_runs=120, num_steps=40, optimizer=LR, num_snapshots=4)
    return Zoo.open(path)


@pytest.fixture(scope="module")
def reader(zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("reader")
    trained = train_reader(zoo, CONFIG, out=out, device="cpu")
    kept = WeightReader.from_pretrained(out)
    params = zoo.read([(0, -1), (1, 0)])
    assert torch.equal(trained.read(params).values["val_loss"], kept.read(params).values["val_loss"])
    return kept


def test_networks_of_runs_never_seen_are_read(zoo, reader):
    report = reading_report(reader, zoo)
    assert set(report) == {*zoo.spec.metric_names, "lr"}
    assert report["val_loss"]["r2"] > 0.8
    assert report["test_error"]["r2"] > 0.7
    assert report["val_loss"]["coverage"] > 0.6
    narrow = reading_report(reader.eval(), zoo, "val")
    assert all(0.88 <= figures["coverage"] <= 1 for figures in narrow.values()), "scaled on these runs"


def test_the_order_of_units_does_not_matter(zoo, reader):
    params = torch.from_numpy(zoo.read([(0, -1), (1, 2), (5, 1)]))
    rng = torch.Generator().manual_seed(0)
    permuted = symmetry.apply(zoo.layout, params, symmetry.sample(zoo.layout, len(params), rng))
    assert not torch.equal(params, permuted)
    one, other = reader.read(params), reader.read(permuted)
    for name in reader.quantities:
        torch.testing.assert_close(one.values[name], other.values[name], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.high[name], other.high[name], rtol=1e-3, atol=1e-4)


def test_nothing_impossible_is_promised(zoo, reader):
    params = torch.from_numpy(zoo.params[:, -1])
    for scale in (0.0, 1.0, 100.0):  # networks of no zoo, too
        read = reader.read(scale * params)
        assert all((read.low[name] >= 0).all() for name in reader.quantities)
        assert all((read.high[name] <= 1).all() for name in ("val_error", "test_error"))


def test_any_form_of_a_network_is_read_and_other_widths_with_their_task(zoo, reader):
    module = get_task("digits", hidden=(4,)).make_model()
    of_module, of_vector = reader.read(module), reader.read(zoo.layout.flatten(module))
    assert torch.equal(of_module.values["lr"], of_vector.values["lr"])
    wider = get_task("digits", hidden=(7,))
    read = reader.read(wider.make_model(), task=wider)
    assert all(read.low[name] <= read.values[name] <= read.high[name] for name in reader.quantities)
    with pytest.raises(ValueError, match="pass task=get_task"):
        reader.read(wider.make_model())
    with pytest.raises(LayoutMismatchError, match="knows networks of the tensors"):
        reader.read(MLP(64, (4, 4), 10), layout=ParamLayout.of(MLP(64, (4, 4), 10)))


@pytest.mark.parametrize("name", AMBIENTS)
def test_readings_are_the_same_whatever_a_program_has_set_for_torch(zoo, reader, name):
    params = zoo.read([(0, -1), (1, 0)])
    expected = reader.read(params).values["val_loss"]
    with AMBIENTS[name]():
        assert torch.equal(reader.read(params).values["val_loss"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_read_the_same_but_for_rounding(zoo, reader, dtype):
    params = zoo.read([(0, -1), (1, 0)])
    expected, other = reader.read(params), copy.deepcopy(reader).to(dtype).read(params)
    for name, values in expected.values.items():
        torch.testing.assert_close(other.values[name], values, rtol=0.1, atol=0.05)


def test_outputs_that_are_no_classes_are_read_as_they_are(tmp_path):
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "numbers.npz", x=inputs, y=inputs[:, :1])
    np.savez(tmp_path / "halves.npz", x=inputs, y=(inputs[:, 0] > 0).long())
    tasks = [get_task("arrays", path=str(tmp_path / "numbers.npz"), hidden=(4,))]
    tasks += [get_task("arrays", path=str(tmp_path / "halves.npz"), hidden=(4,), objective="binary_cross_entropy")]
    for task, num_outputs in zip(tasks, (1, 2), strict=True):
        told = told_outputs(task, task.init(torch.Generator().manual_seed(0), 2), inputs)
        assert told.shape == (2, 64, num_outputs)
        assert (told[0] - told[1]).abs().mean() > 0.01


def test_statistics_are_those_of_numpy():
    layout = ParamLayout.of(MLP(3, (2,), 2))
    params = torch.randn(2, layout.num_params, generator=torch.Generator().manual_seed(0))
    statistics = weight_statistics(layout, params).unflatten(1, (len(layout.slots), 7))
    for slot, found in zip(layout, statistics.unbind(1), strict=True):
        values = params[:, slot.span].numpy()
        np.testing.assert_allclose(found[:, 0], values.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[:, 1].exp(), values.std(1), rtol=1e-4)
        np.testing.assert_allclose(found[:, 2:], np.quantile(values, (0, 0.25, 0.5, 0.75, 1), axis=1).T, rtol=1e-5)


def test_bad_input_is_refused(zoo, small_zoo):
    with pytest.raises(ValueError, match=r"does not record \['speed'\]"):
        train_reader(zoo, ReaderConfig(quantities=["speed"]), device="cpu")
    with pytest.raises(TypeError, match=r"zoos must be open, as from Zoo.open"):
        train_reader("zoo")
    with pytest.raises(ValueError, match="coverage must be between 0 and 1, got 2"):
        ReaderConfig(coverage=2)
    with pytest.raises(ValueError, match="no run with 1 snapshots"):
        train_reader(small_zoo, CONFIG, device="cpu")


def test_a_pipeline_keeps_its_reader_and_returns_what_reads_best(zoo, reader, tmp_path):
    pipe = make_pipeline(zoo.layout)
    with pytest.raises(ValueError, match="has no reader"):
        pipe(prompt={"loss": 1.0}, best_of=2)
    pipe.reader = reader
    pipe.save_pretrained(tmp_path)
    pipe = type(pipe).from_pretrained(tmp_path)

    def seeded():
        return torch.Generator().manual_seed(0)

    options = {"prompt": {"loss": 2.0}, "num_inference_steps": 2}
    everything = pipe(**options, num_samples=12, generator=seeded()).params
    best = pipe(**options, num_samples=3, best_of=4, generator=seeded()).params
    read = pipe.read(everything).values["val_loss"].log().unflatten(0, (3, 4))
    chosen = (read - torch.tensor(2.0).log()).abs().argmin(1)
    torch.testing.assert_close(best, everything.unflatten(0, (3, 4))[torch.arange(3), chosen])


def test_without_a_prompt_the_lowest_loss_is_the_best(reader):
    value = torch.tensor([0.5, 0.2, 0.9, 0.1])
    reading = WeightReading(dict.fromkeys(reader.quantities, value), {}, {})
    nothing = torch.full((2, 1), torch.nan)
    prompt = Prompt(nothing, nothing, torch.zeros(2, 0))
    assert best_of(reader, reading, prompt, ["val_loss"]).tolist() == [1, 3]
    asked = Prompt(torch.tensor([[0.6], [0.6]]), nothing, torch.zeros(2, 0))
    assert best_of(reader, reading, asked, ["val_loss"]).tolist() == [0, 2]
    with pytest.raises(ValueError, match="does not read"):
        best_of(reader, reading, prompt, ["sharpness"])


def test_the_nearest_run_of_a_network_is_its_own(zoo):
    params = torch.from_numpy(zoo.read([(3, -1), (8, -1)]))
    rng = torch.Generator().manual_seed(0)
    permuted = symmetry.apply(zoo.layout, params, symmetry.sample(zoo.layout, len(params), rng))
    found = nearest_runs(zoo, permuted, k=2)
    assert found.index[:, 0].tolist() == [3, 8]
    assert (found.distances[:, 0] < 1e-4).all()
    assert (found.distances[:, 1] > 0.1).all()


def test_another_device_learns_and_reads_the_same(zoo, device):
    config = ReaderConfig(num_steps=3, num_inputs=4, width=8, batch_size=8)
    here, there = (train_reader(zoo, config, device=place) for place in ("cpu", device))
    params = zoo.read([(0, -1), (1, 0)])
    read, moved = here.read(params), there.to(device).read(params)
    for name in here.quantities:
        torch.testing.assert_close(moved.values[name].cpu(), read.values[name], rtol=1e-3, atol=1e-4)
