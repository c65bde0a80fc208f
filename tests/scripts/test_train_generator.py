import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from generator import ParameterPipeline
from scripts import cli, read_params, sample_params, train_generator, train_reader
from zoo.building.build import build_zoo
from zoo.tasks.registry import get_task


def compose(name, *overrides):
    return cli.compose(name, overrides)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "digits"
    build_zoo(path, get_task("digits", hidden=(4,)), num_runs=60, num_steps=10, snapshot_steps=(0, 5, 10))
    return path


SMALL = ["generator.model.width=16", "generator.model.num_heads=2", "generator.model.num_blocks=1"]
STEPS = ["generator.optimization.num_steps=4", "generator.optimization.num_epochs=2"]
COUNTS = ["num_starts=2", "generator.num_validation_starts=2", "generator.pairs.batch_size=4"]
QUIET = ["device=cpu", "+trainer.enable_progress_bar=false"]


def test_a_generator_is_trained_sampled_and_loaded(zoo, tmp_path):
    out = tmp_path / "generator"
    train_generator.main(compose("train_generator", f"zoo={zoo}", f"out={out}", *SMALL, *STEPS, *COUNTS, *QUIET))
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["alignment"][str(zoo)]) == {"start", "noise"}
    assert (out / "config.yaml").exists()
    assert (out / "checkpoints" / "last.ckpt").exists()

    sample = tmp_path / "x.safetensors"
    options = [f"pipeline={out}", f"out={sample}", "num_inference_steps=2"]
    sample_params.main(compose("sample_params", *options, "prompt.loss=2.25", "num_samples=2"))
    module = get_task("digits", hidden=(4,)).make_model()
    module.load_state_dict(load_file(tmp_path / "x_1.safetensors"))
    start = f"start={tmp_path / 'x_0.safetensors'}"
    sample_params.main(compose("sample_params", *options, "prompt.loss=2.25", start))
    assert all(torch.isfinite(value).all() for value in load_file(sample).values())
    edit = [f"edit={tmp_path / 'x_0.safetensors'}", "own_loss=2.25"]
    sample_params.main(compose("sample_params", *options, "prompt.loss=2.25", *edit))
    for name, value in load_file(tmp_path / "x_0.safetensors").items():
        torch.testing.assert_close(load_file(sample)[name], value, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="not trained on metric 'train_error'"):
        sample_params.main(compose("sample_params", *options, "prompt.train_error=0.2"))


def test_a_reader_is_trained_reads_files_and_chooses_samples(zoo, tmp_path):
    generator, reader, sample = tmp_path / "generator", tmp_path / "reader", tmp_path / "x.safetensors"
    settings = [*SMALL, *STEPS, *COUNTS[1:], *QUIET, "num_starts=0"]
    train_generator.main(compose("train_generator", f"zoo={zoo}", f"out={generator}", *settings))
    small = ["training.num_steps=4", "training.num_inputs=4", "training.width=8", "device=cpu"]
    train_reader.main(compose("train_reader", f"zoo={zoo}", f"out={reader}", f"pipeline={generator}", *small))
    options = ["prompt.loss=2.25", "best_of=2", "num_samples=2", "num_inference_steps=2"]
    sample_params.main(compose("sample_params", f"pipeline={generator}", f"out={sample}", *options))
    assert json.loads((tmp_path / "x-sample" / "summary.json").read_text())["files"] == [
        f"x_{i}.safetensors" for i in (0, 1)
    ]

    out, networks = tmp_path / "read", f"params=[{tmp_path / 'x_0.safetensors'},{tmp_path / 'x_1.safetensors'}]"
    read_params.main(compose("read_params", f"reader={reader}", networks, f"zoo={zoo}", f"out={out}"))
    for read in json.loads((out / "summary.json").read_text()).values():
        value, low, high = read["val_loss"]
        assert 0 < low < value < high
        assert len(read["nearest_runs"]) == 3
    junk = tmp_path / "junk.safetensors"
    junk.write_text("no network")
    with pytest.raises(ValueError, match="must be safetensors files"):
        read_params.main(compose("read_params", f"reader={reader}", f"params={junk}", f"out={out}"))


def test_a_generator_that_looks_at_functions_is_sampled_with_its_zoo(zoo, tmp_path):
    out = tmp_path / "generator"
    settings = ["generator.fingerprints=true", "generator.pairs.start_share=1", "num_starts=0"]
    options = [*SMALL, *STEPS, *COUNTS[1:], *QUIET, *settings]
    train_generator.main(compose("train_generator", f"zoo={zoo}", f"out={out}", *options))
    (calibration,) = ParameterPipeline.from_pretrained(out / "pipeline").config["calibrations"]
    assert set(calibration) == {"start"}
    start, sample = tmp_path / "start.safetensors", tmp_path / "x.safetensors"
    save_file(get_task("digits", hidden=(4,)).make_model().state_dict(), start)
    options = [f"pipeline={out}", f"out={sample}", f"start={start}", "prompt.loss=2.25"]
    with pytest.raises(ValueError, match="zoo=PATH"):
        sample_params.main(compose("sample_params", *options))
    sample_params.main(compose("sample_params", *options, f"zoo={zoo}"))
    assert all(torch.isfinite(value).all() for value in load_file(sample).values())


def test_whole_networks_are_made_from_a_file_of_examples(tmp_path):
    zoo, out = tmp_path / "zoo", tmp_path / "generator"
    build_zoo(zoo, get_task("digits_subset", hidden=(4,)), num_runs=1022, num_steps=1, snapshot_steps=(0, 1))
    options = [*SMALL, *STEPS, "generator.pairs.batch_size=4", *QUIET, "experiment=generator_subset_examples"]
    train_generator.main(compose("train_generator", f"zoo={zoo}", f"out={out}", *options))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["alignment"][str(zoo)]["unseen tasks"]["num_tasks"] > 20

    pipe = ParameterPipeline.from_pretrained(out)
    for module in pipe.model.decoders.values():
        torch.nn.init.normal_(module.weight)  # a training this short leaves them near zero
    pipe.save_pretrained(out / "pipeline")
    inputs, targets, _ = get_task("digits_subset").for_members([5]).batch(torch.arange(16), 1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    made = {}
    for name, labels, some in (
        ("told", targets[0], slice(None)),
        ("shuffled", targets[0], order),
        ("complement", 1 - targets[0], slice(None)),
    ):
        np.savez(tmp_path / f"{name}.npz", inputs=inputs[some], targets=labels[some])
        asked = f"examples={tmp_path / f'{name}.npz'}"
        sample_params.main(compose("sample_params", f"pipeline={out}", f"out={tmp_path / name}.safetensors", asked))
        made[name] = torch.cat([value.flatten() for value in load_file(tmp_path / f"{name}.safetensors").values()])
    torch.testing.assert_close(made["shuffled"], made["told"], rtol=1e-3, atol=1e-4)
    assert (made["complement"] - made["told"]).abs().max() > 1e-2


@pytest.mark.slow
def test_two_processes_train_one_generator(zoo, tmp_path):
    """Two processes share each step; both end with the same weights, of which one is saved."""
    out = tmp_path / "generator"
    parallel = ["+trainer.devices=2", "+trainer.strategy=ddp"]
    options = [f"zoo={zoo}", f"out={out}", *SMALL, *STEPS, *COUNTS, *QUIET, *parallel]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.train_generator", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert (out / "pipeline" / "model_index.json").exists()
    assert json.loads((out / "summary.json").read_text())["alignment"]
