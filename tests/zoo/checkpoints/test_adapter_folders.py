"""Folders of many PEFT adapters, as lorahub (pickled tensors) and Lots-of-LoRAs (safetensors) publish them."""

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
