import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zoo.checkpoints.importer import import_checkpoints
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks.architectures import CNN, MLP
from zoo.networks.layout import ParamLayout
from zoo.storage.schema import RunStatus
from zoo.storage.zoo import Zoo


def states(num, build=lambda: MLP(4, (3,), 2)):
    torch.manual_seed(0)
    return [build().state_dict() for _ in range(num)]


def save_all(folder, saved, suffix="safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, state in enumerate(saved):
        path = folder / f"net_{i}.{suffix}"
        save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    return folder


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value.dtype, value.shape) == (second[name].dtype, second[name].shape)
        assert torch.equal(value.reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8))


def test_round_trip_is_exact_and_loads_into_the_module(tmp_path):
    saved = states(5, lambda: CNN(1, (4, 6), 3))
    for state in saved:
        state["norms.0.num_batches_tracked"] += 123_457
    zoo = import_checkpoints(save_all(tmp_path / "in", saved), tmp_path / "zoo", model=CNN(1, (4, 6), 3))
    assert zoo.verify() == []
    assert zoo.layout == ParamLayout.of(CNN(1, (4, 6), 3))
    assert (zoo.status == RunStatus.IMPORTED).all()
    for run, state in enumerate(saved):
        zoo.export(run, -1, tmp_path / "out.safetensors")
        back = load_file(tmp_path / "out.safetensors")
        assert_same_bits(state, back)
        CNN(1, (4, 6), 3).load_state_dict(back)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_every_finite_bit_pattern_survives(tmp_path, dtype):
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    if dtype.itemsize < 4:
        patterns = torch.arange(2 ** (8 * dtype.itemsize)).to(integers)
    else:
        patterns = torch.randint(-(2**31), 2**31, (20_000,)).to(integers)
    values = patterns.view(dtype)
    values = values[values.float().isfinite()]
    for name, tensors in {"alone": {"w": values}, "with integers": {"w": values, "n": torch.tensor(2**24)}}.items():
        save_file(tensors, tmp_path / "a.safetensors")
        zoo = import_checkpoints([tmp_path / "a.safetensors"], tmp_path / name)
        zoo.export(0, 0, tmp_path / "b.safetensors")
        assert_same_bits(tensors, load_file(tmp_path / "b.safetensors"))


def test_half_precision_checkpoints_take_half_the_space(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        save_file({"w": torch.randn(10).to(dtype)}, tmp_path / "a.safetensors")
        zoo = import_checkpoints(tmp_path / "a.safetensors", tmp_path / str(dtype))
        assert zoo.spec.dtype == str(dtype).removeprefix("torch.")


def test_an_export_comes_back_with_layout_steps_metrics_and_settings(tmp_path):
    rows = [{"file": str(tmp_path / f"in/net_{i}.safetensors"), "val_loss": 0.1 * i, "seed": 7 + i} for i in range(3)]
    rows[1]["val_loss"] = None
    config = {"name": "digits", "hidden": [3]}
    first = import_checkpoints(
        save_all(tmp_path / "in", states(3)), tmp_path / "a", model=MLP(4, (3,), 2), metrics=rows, task_config=config
    )
    (tmp_path / "out").mkdir()
    for run in range(3):
        first.export(run, 0, tmp_path / f"out/{run}.safetensors")
    second = import_checkpoints(tmp_path / "out", tmp_path / "b")
    assert second.layout == first.layout
    assert second.task_config == config
    np.testing.assert_array_equal(second.metric("val_loss"), first.metric("val_loss"))
    np.testing.assert_array_equal(second.runs["seed"], [7, 8, 9])
    np.testing.assert_array_equal(second.params[:], first.params[:])


def test_tied_tensors_are_found_under_any_of_their_names(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    save_file({"head.weight": model.head.weight.detach()}, tmp_path / "a.safetensors")
    zoo = import_checkpoints(tmp_path / "a.safetensors", tmp_path / "zoo", model=model)
    zoo.export(0, 0, tmp_path / "b.safetensors")
    fresh = Tied()
    fresh.load_state_dict(load_file(tmp_path / "b.safetensors"))
    assert torch.equal(fresh.embedding.weight, model.embedding.weight)


def test_tied_names_that_hold_different_numbers_are_refused(tmp_path):
    tensors = {name: torch.randn(2, 2) for name in ("0.weight", "1.weight")}
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*'1\.weight' is tied to '0\.weight'"):
        import_checkpoints(tmp_path / "a.safetensors", tmp_path / "zoo", model=model)
    assert_same_bits(import_checkpoints(tmp_path / "a.safetensors", tmp_path / "zoo").state_dict(0, 0), tensors)


@pytest.mark.filterwarnings("error")
def test_wrapped_and_plain_checkpoints_mix(tmp_path):
    saved = states(3)
    for i, prefix in enumerate(("module._orig_mod.", "", "model._forward_module.module.")):
        torch.save({prefix + name: value for name, value in saved[i].items()}, tmp_path / f"{i}.pt")
    for model in (None, MLP(4, (3,), 2)):
        zoo = import_checkpoints(tmp_path, tmp_path.parent / f"{tmp_path.name}-{model is None}", model=model)
        for run, state in enumerate(saved):
            assert_same_bits(zoo.state_dict(run, 0), state)


def test_an_average_loses_its_counter_with_a_word(tmp_path):
    model = MLP(4, (3,), 2)
    for i in range(2):
        torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / f"{i}.pt")
    with pytest.warns(UserWarning, match=r"n_averaged of 2 files such as .*0\.pt was left out"):
        zoo = import_checkpoints(tmp_path, tmp_path / "zoo", model=model)
    assert_same_bits(zoo.state_dict(1, 0), model.state_dict())


def test_other_networks_in_a_file_are_named(tmp_path):
    first, second = states(2)
    torch.save({"state_dict": first, "ema": second}, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"entry 'ema' of 1 files such as .*a\.pt was left out"):
        assert_same_bits(import_checkpoints(tmp_path / "a.pt", tmp_path / "zoo").state_dict(0, 0), first)


def test_stacked_networks_are_refused(tmp_path):
    stacked = {name: torch.stack([state[name] for state in states(5)]) for name in states(1)[0]}
    save_file(stacked, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"5 networks stacked along a leading axis; save each"):
        import_checkpoints(tmp_path / "a.safetensors", tmp_path / "zoo", model=MLP(4, (3,), 2))


@pytest.mark.filterwarnings("error")
def test_models_cut_into_files_stand_beside_whole_ones(tmp_path):
    early, late = states(2)
    folder = tmp_path / "in/run/checkpoint-5"
    folder.mkdir(parents=True)
    places = {name: f"model-{i}-of-{len(early)}.safetensors" for i, name in enumerate(early, 1)}
    for name, place in places.items():
        save_file({name: early[name]}, folder / place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "in/run/checkpoint-9").mkdir()
    save_file(late, tmp_path / "in/run/checkpoint-9/model.safetensors")
    zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo", model=MLP(4, (3,), 2))
    assert zoo.inner_step.tolist() == [[5, 9]]
    assert_same_bits(zoo.state_dict(0, 0), early)
    assert_same_bits(zoo.state_dict(0, 1), late)


def test_the_model_must_be_one(tmp_path):
    save_all(tmp_path / "in", states(1))
    with pytest.raises(TypeError, match="must be a module or a ParamLayout, got type"):
        import_checkpoints(tmp_path / "in", tmp_path / "zoo", model=MLP)


def test_truth_values_and_unsigned_integers_are_kept(tmp_path):
    tensors = {"mask": torch.tensor([True, False]), "count": torch.tensor([1, 2], dtype=torch.uint16)}
    torch.save({"w": torch.ones(2), **tensors}, tmp_path / "a.pt")
    read = import_checkpoints(tmp_path / "a.pt", tmp_path / "zoo").state_dict(0, 0)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert read[name].tolist() == value.tolist()


def test_damage_of_an_imported_zoo_is_repaired_by_importing_again(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    import_checkpoints(tmp_path / "a.pt", tmp_path / "zoo", task_config={"name": "digits"})
    (shard,) = (path for path in (tmp_path / "zoo/params").rglob("*") if path.is_file() and path.suffix != ".json")
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    (finding,) = Zoo.open(tmp_path / "zoo").verify()
    assert "import the checkpoints again" in finding.message


def test_trajectories_of_different_length_are_kept(tmp_path):
    for run, steps in {"a": (0, 10, 100), "b": (5,)}.items():
        for step in steps:
            (tmp_path / "in" / run).mkdir(parents=True, exist_ok=True)
            save_file({"w": torch.full((2, 2), float(step))}, tmp_path / f"in/{run}/step_{step}.safetensors")
    zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo")
    np.testing.assert_array_equal(zoo.inner_step, [[0, 10, 100], [5, -1, -1]])
    np.testing.assert_array_equal(zoo.params[0, :, 0], [0, 10, 100])
    assert zoo.params[1, 0, 0] == 5
    assert zoo.verify() == []
    assert zoo.attributes["extra"]["run_names"] == ["a", "b"]
    with pytest.raises(IndexError, match="no snapshot"):
        zoo.export(1, 2, tmp_path / "x.safetensors")


def adapter(folder, rank=4, alpha=8, seed=0):
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.layers.{i}.q_proj" for i in range(2)]
    tensors = {f"{name}.lora_A.weight": torch.randn(rank, 16, generator=rng) for name in names}
    tensors |= {f"{name}.lora_B.weight": torch.randn(16, rank, generator=rng) for name in names}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def test_adapters_are_runs_or_checkpoints_of_a_run(tmp_path):
    originals = [
        adapter(tmp_path / f"in/run{r}/checkpoint-{step}", seed=step + r) for r in (0, 1) for step in (10, 200)
    ]
    zoo = import_checkpoints(tmp_path / "in", tmp_path / "zoo")
    np.testing.assert_array_equal(zoo.inner_step, [[10, 200], [10, 200]])
    assert zoo.attributes["extra"]["adapter_config"]["lora_alpha"] == 8
    assert [group.size for group in zoo.layout.groups] == [4, 4]
    zoo.export(1, 0, tmp_path / "b.safetensors")
    assert_same_bits(originals[2], load_file(tmp_path / "b.safetensors"))
    adapter(tmp_path / "in/run2/checkpoint-10", alpha=16)
    with pytest.raises(CheckpointError, match="lora_alpha 16 and 8"):
        import_checkpoints(tmp_path / "in", tmp_path / "zoo2")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, save):
    save({"w": torch.zeros(2), "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt .* refused"):
        import_checkpoints(tmp_path / "a.pt", tmp_path / "zoo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def damaged(state, how):
    state = dict(state)
    if how == "missing":
        del state["layers.0.bias"]
    elif how == "extra":
        state["stray"] = torch.zeros(1)
    elif how == "misshapen":
        state["layers.0.weight"] = torch.zeros(5, 4)
    elif how == "dtype":
        state["layers.0.weight"] = state["layers.0.weight"].half()
    elif how == "quantised":
        state["layers.0.weight"] = (10 * state["layers.0.weight"]).to(torch.int8)
    elif how == "infinite":
        state["layers.0.weight"] = state["layers.0.weight"] / 0
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing 'layers\.0\.bias' \(3,\)"),
        ("extra", "unexpected 'stray'"),
        ("misshapen", r"'layers\.0\.weight' must be \(3, 4\), got \(5, 4\)"),
        ("dtype", r"is torch\.float16, in the zoo's layout it is float32"),
        ("quantised", r"parameter 'layers\.0\.weight' is torch\.int8, as of a quantised model"),
        ("infinite", r"infinities or NaN in \['layers\.0\.weight'\]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, how, message):
    first, second = states(2)
    folder = save_all(tmp_path / "in", [first, damaged(second, how)])
    with pytest.raises(CheckpointError, match=rf"net_1\.safetensors.*{message}"):
        import_checkpoints(folder, tmp_path / "zoo")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nonfinite_runs_are_kept_on_request_and_marked(tmp_path):
    first, second = states(2)
    folder = save_all(tmp_path / "in", [first, damaged(second, "infinite")])
    zoo = import_checkpoints(folder, tmp_path / "zoo", keep_nonfinite=True)
    assert zoo.status.tolist() == [RunStatus.IMPORTED, RunStatus.DIVERGED]
    zoo.export(1, 0, tmp_path / "b.safetensors")
    assert_same_bits(damaged(second, "infinite"), load_file(tmp_path / "b.safetensors"))


def test_rounding_needs_consent(tmp_path):
    save_file({"w": torch.tensor([0.1], dtype=torch.float64)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="dtype='float32'"):
        import_checkpoints(tmp_path / "a.safetensors", tmp_path / "zoo")
    zoo = import_checkpoints(tmp_path / "a.safetensors", tmp_path / "zoo", dtype="float32")
    assert zoo.state_dict(0, 0)["w"] == torch.tensor(0.1).double()
    save_file({"w": torch.tensor([1 / 3]), "n": torch.tensor(257)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="int64 numbers of 'n' are not exact in bfloat16"):
        import_checkpoints(tmp_path / "b.safetensors", tmp_path / "zoo2", dtype="bfloat16")


def test_what_is_there_is_never_overwritten(tmp_path):
    folder = save_all(tmp_path / "in", states(1))
    import_checkpoints(folder, tmp_path / "zoo")
    for out in (tmp_path / "zoo", tmp_path / "in", tmp_path / "in/net_0.safetensors"):
        with pytest.raises(FileExistsError, match="not empty"):
            import_checkpoints(folder, out)
    assert Zoo.open(tmp_path / "zoo").verify() == []


def test_many_runs_fill_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.checkpoints.importer._MAX_BLOCK_RUNS", 4)
    saved = states(10)
    zoo = import_checkpoints(save_all(tmp_path / "in", saved), tmp_path / "zoo")
    assert zoo.num_blocks == 3
    for run, state in enumerate(saved):
        assert_same_bits(state, zoo.state_dict(run, 0))


def test_the_export_path_must_say_what_it_is(tmp_path):
    zoo = import_checkpoints(save_all(tmp_path / "in", states(1)), tmp_path / "zoo")
    with pytest.raises(ValueError, match=r"end in \.safetensors"):
        zoo.export(0, 0, tmp_path / "net.pt")
    with pytest.raises(IndexError):
        zoo.export(1, 0, tmp_path / "net.safetensors")


def noted(folder, **files):
    """Networks with JSON beside them."""
    folder.mkdir()
    for (name, known), state in zip(files.items(), states(len(files)), strict=True):
        save_file(state, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(known))
    return folder


def test_what_only_some_runs_note_is_kept(tmp_path):
    folder = noted(tmp_path / "in", a={"run": {"lr": 0.1, "status": 2}}, b={"run": {"width": 3}})
    zoo = import_checkpoints(folder, tmp_path / "zoo")
    np.testing.assert_array_equal(zoo.runs["lr"], [0.1, np.nan])
    np.testing.assert_array_equal(zoo.runs["width"], [np.nan, 3])
    assert zoo.status.tolist() == [RunStatus.DIVERGED, RunStatus.IMPORTED]


def test_settings_that_differ_between_checkpoints_are_not_recorded_as_the_first_ones(tmp_path):
    same, other = (
        {"task": {"name": "digits"}, "optimizer": {"lr": 1}},
        {"task": {"name": "digits"}, "optimizer": {"lr": 2}},
    )
    with pytest.warns(UserWarning, match="the optimizer noted beside the checkpoints differs"):
        zoo = import_checkpoints(noted(tmp_path / "in", a=same, b=other), tmp_path / "zoo")
    assert (zoo.task_config, zoo.spec.optimizer_config) == ({"name": "digits"}, {})


def test_a_checkpoint_without_numbers_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(0)}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match=r"do not make a zoo: .* positive integer, got 0"):
        import_checkpoints(tmp_path / "empty.pt", tmp_path / "zoo")


def test_a_broken_link_is_not_passed_over(tmp_path):
    save_all(tmp_path / "runs" / "first", states(1))
    (tmp_path / "runs" / "first" / "net_1.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"cannot read .*net_1.safetensors: .*No such file"):
        import_checkpoints(tmp_path / "runs", tmp_path / "zoo")
