import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from tests.hub_stand_in import send_requests_to
from zoo.checkpoints.importer import import_checkpoints
from zoo.hub import HubError, local_copy
from zoo.networks.architectures import MLP
from zoo.storage.hub import zoo_card
from zoo.storage.zoo import Zoo

pytest.importorskip("huggingface_hub")


def test_a_zoo_goes_to_the_hub_and_is_read_there(hub, small_zoo):
    small_zoo.push_to_hub("me/tiny")
    there = Zoo.open("hf://datasets/me/tiny")
    np.testing.assert_array_equal(there.params[:], small_zoo.params[:])
    np.testing.assert_array_equal(there.metric("val_loss"), small_zoo.metric("val_loss"))
    assert there.verify() == []
    files = hub.repos["datasets/me/tiny"]
    assert not [name for name in files if "claims" in name]
    assert files["README.md"] == zoo_card(small_zoo, "me/tiny")


def test_the_card_says_what_the_attributes_say(small_zoo):
    card = zoo_card(small_zoo, "me/tiny", "cc-by-4.0").decode()
    assert card.startswith("---\ntags: [weightfoundry, model-zoo]\nlicense: cc-by-4.0\n---\n\n# tiny\n")
    assert "| runs | 10 (9 complete, 1 diverged) |" in card
    assert 'Zoo.open("hf://datasets/me/tiny")' in card
    made = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert made["task"] == dict(small_zoo.task_config)
    for slot in small_zoo.layout:
        assert f"| {slot.name} | {list(slot.shape)} | float32 |" in card


def test_what_is_there_is_replaced_on_request_alone(hub, small_zoo):
    hub.repos["datasets/me/tiny"] = {".gitattributes": b"", "notes.txt": b"mine"}
    with pytest.raises(FileExistsError, match=r"me/tiny holds 1 files already; replace=True"):
        small_zoo.push_to_hub("me/tiny")
    assert hub.repos["datasets/me/tiny"]["notes.txt"] == b"mine"
    small_zoo.push_to_hub("me/tiny", replace=True)
    assert "notes.txt" not in hub.repos["datasets/me/tiny"]
    assert Zoo.open("hf://datasets/me/tiny").verify() == []


def test_only_a_finished_zoo_in_a_folder_is_uploaded(hub, toy, tmp_path):
    from zoo.storage.writer import ZooWriter

    ZooWriter.create(tmp_path / "zoo", toy.spec())
    with pytest.raises(ValueError, match=r"10 runs of .* are not built yet"):
        Zoo.open(tmp_path / "zoo").push_to_hub("me/tiny")
    Zoo.open(toy.fill(tmp_path / "zoo").group.store_path.store.root).push_to_hub("me/tiny")
    with pytest.raises(ValueError, match="not on this disk"):
        Zoo.open("hf://datasets/me/tiny").push_to_hub("me/other")


def test_checkpoints_are_fetched_from_the_hub(hub, tmp_path):
    torch.manual_seed(0)
    states = [MLP(4, (3,), 2).state_dict() for _ in range(2)]
    hub.repos["models/me/runs"] = {
        f"seed{i}/checkpoint-{10 + i}/model.safetensors": save(s) for i, s in enumerate(states)
    }
    hub.repos["models/me/one"] = {"model.safetensors": save(states[0]), "README.md": b"card"}
    zoo = import_checkpoints("hf://me/runs", tmp_path / "a", model=MLP(4, (3,), 2))
    assert zoo.attributes["extra"]["run_names"] == ["seed0", "seed1"]
    assert zoo.inner_step.tolist() == [[10], [11]]
    zoo = import_checkpoints(["hf://me/one", "hf://me/runs/seed1"], tmp_path / "b", model=MLP(4, (3,), 2))
    assert zoo.attributes["extra"]["run_names"] == ["one", "seed1"]
    assert torch.equal(zoo.state_dict(1, 0)["layers.0.weight"], states[1]["layers.0.weight"])
    with pytest.raises((HubError, FileNotFoundError), match="me/nothing"):
        import_checkpoints("hf://me/nothing", tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="there is nothing at hf://me/one/x"):
        local_copy("hf://me/one/x")


def test_a_hub_that_cannot_be_reached_is_one_line(small_zoo, tmp_path, monkeypatch):
    send_requests_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(HubError, match=r"^cannot upload to me/tiny: .*"):
        small_zoo.push_to_hub("me/tiny", token="hf_none")
    with pytest.raises(OSError, match=r"^cannot (fetch|read) hf://datasets/me/tiny"):
        Zoo.open("hf://datasets/me/tiny")
    with pytest.raises(HubError, match=r"^cannot fetch hf://me/one"):
        local_copy("hf://me/one")
