"""Collections of many PEFT adapters, as lorahub (pickled tensors), Lots-of-LoRAs and W2T (safetensors) publish them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoints.importer import import_checkpoints

CONFIG = {
    "base_model_name_or_path": "google/flan-t5-large",
    "bias": "none",
    "inference_mode": True,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q", "v"],
    "task_type": "SEQ_2_SEQ_LM",
}


def write_adapter(folder, seed, *, pickled):
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.encoder.block.{i}.layer.0.SelfAttention.{m}" for i in range(2) for m in "qv"]
    tensors = {f"{name}.lora_A.weight": torch.randn(4, 8, generator=rng) for name in names}
    tensors |= {f"{name}.lora_B.weight": torch.randn(8, 4, generator=rng) for name in names}
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    return tensors


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pickled", [True, False])
def test_each_adapter_of_a_collection_is_a_run_by_its_name(tmp_path, pickled):
    names = [
        "flan_t5_large-adversarial_qa_dbert_answer_the",
        "flan_t5_large-amazon_polarity_Is_this_review",
    ]
    written = [write_adapter(tmp_path / "loras" / name, i, pickled=pickled) for i, name in enumerate(names)]
    zoo = import_checkpoints(tmp_path / "loras", tmp_path / "zoo")
    assert zoo.verify() == []
    assert zoo.attributes["extra"]["run_names"] == names
    assert zoo.attributes["extra"]["adapter_config"]["lora_alpha"] == 32
    for run, tensors in enumerate(written):
        read = zoo.state_dict(run, -1)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], value) for name, value in tensors.items())


@pytest.mark.filterwarnings("error")
def test_w2ts_collections_of_image_models_keep_each_adapter_in_a_folder_of_its_unet(tmp_path):
    names = ["sd15_celeb_3", "sd15_celeb_12"]
    written = [write_adapter(tmp_path / "loras" / name / "unet", i, pickled=False) for i, name in enumerate(names)]
    zoo = import_checkpoints(tmp_path / "loras", tmp_path / "zoo")
    assert zoo.attributes["extra"]["run_names"] == names
    assert zoo.inner_step[:].tolist() == [[0], [0]]
    assert all(torch.equal(zoo.state_dict(1, -1)[name], value) for name, value in written[1].items())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("whole", [True, False])
def test_w2ts_collections_of_language_models_are_files_side_by_side(whole, tmp_path):
    folder = tmp_path / "goemotions" / "Llama-3.2-3B"
    folder.mkdir(parents=True)
    names = [f"lora_goemotions_Llama-3.2-3B_{i}" for i in (0, 7, 11)]
    written = []
    for i, name in enumerate(names):
        written.append(write_adapter(tmp_path / "tmp" / name, i, pickled=False))
        (tmp_path / "tmp" / name / "adapter_model.safetensors").rename(folder / f"{name}.safetensors")
        (tmp_path / "tmp" / name / "adapter_config.json").rename(folder / f"{name}_config.json")
    (folder / "labels.json").write_text(json.dumps({"labels": ["joy", "anger"]}))
    (folder.parent / "metadata_gpu_0.csv").write_text("run_id,dataset,learning_rate\n0,goemotions,0.0001\n")
    zoo = import_checkpoints(folder.parent if whole else folder, tmp_path / "zoo")
    assert zoo.attributes["extra"]["run_names"] == names
    assert zoo.inner_step[:].tolist() == [[0]] * 3
    assert zoo.attributes["extra"]["adapter_config"]["lora_alpha"] == 32
    for run, tensors in enumerate(written):
        assert all(torch.equal(zoo.state_dict(run, -1)[name], value) for name, value in tensors.items())
