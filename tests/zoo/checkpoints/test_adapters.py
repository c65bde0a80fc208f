"""Adapters travel between our networks, zoos and PEFT's folders, and compute the same everywhere."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zoo.building.build import build_zoo
from zoo.checkpoints.adapters import save_adapter
from zoo.checkpoints.importer import import_checkpoints
from zoo.checkpoints.tensors import CheckpointError
from zoo.networks import low_rank, symmetry
from zoo.networks.adapters import adapt
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.base import sharing_copy
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task

DIGITS = get_task("digits")
TRAINING = {"num_runs": 2, "num_steps": 8, "num_snapshots": 2, "optimizer": {"name": "adam", "lr": 0.03}}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def digits_task(build):
    return Task("adapters", DIGITS.dataset, build, OBJECTIVES["cross_entropy"])


def images():
    return DIGITS.dataset.test.inputs[:32]


def outputs(model, inputs):
    with torch.no_grad():
        result = model.eval()(inputs)
    return getattr(result, "logits", result)


class TestOurs:
    """Adapters made here load in PEFT, and back."""

    @pytest.mark.parametrize(
        ("base", "options"),
        [
            (MLP(64, (16, 8), 10), {"rank": 3, "alpha": 12}),
            (MLP(64, (16, 8), 10), {"rank": 3, "targets": "layers.[01]", "train": "layers.2.*"}),
            (MLP(64, (16, 8), 10), {"rank": 2, "train": "*.bias"}),
            (MLP(64, (16, 8), 10), {"rank": 2, "targets": "layers.1", "train": "layers.1.bias"}),
            (CNN(1, (4, 6), 10), {"rank": 3, "alpha": 2, "scaling": "rslora"}),
        ],
        ids=["mlp", "modules_to_save", "all biases", "own bias", "cnn"],
    )
    def test_an_adapter_made_here_loads_in_peft_and_back(self, tmp_path, base, options):
        peft = pytest.importorskip("peft")
        task = digits_task(lambda: adapt(base, **options))
        zoo = build_zoo(tmp_path / "zoo", task, **TRAINING)
        state = zoo.state_dict(1, -1)
        save_adapter(tmp_path / "run", state, task.make_model())
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "run")
        expected = task.predict(torch.from_numpy(zoo.params[1, -1])[None], images())[0]
        torch.testing.assert_close(outputs(loaded, images()), expected, rtol=0, atol=1e-5)
        loaded.save_pretrained(tmp_path / "again")
        back = import_checkpoints([tmp_path / "again"], tmp_path / "back", model=adapt(base, **options))
        assert back.verify() == []
        model = adapt(base, **options)
        model.load_state_dict(back.state_dict(0, 0, merged=True))
        torch.testing.assert_close(outputs(model, images()), expected, rtol=0, atol=1e-5)
        assert {name for name, _ in back.state_dict(0, 0).items()} == set(state)

    def test_adapters_of_a_transformer_with_its_embeddings_load_in_peft(self, tmp_path):
        peft = pytest.importorskip("peft")
        base = ByteTransformer(128, 16, 16, 1, 2)
        model = adapt(base, rank=2, alpha=6)
        state = {name: torch.randn_like(p) / 4 for name, p in model.named_parameters() if p.requires_grad}
        model.load_state_dict(state, strict=False)
        save_adapter(tmp_path / "a", state, model)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
        tokens = torch.randint(128, (4, 16))
        torch.testing.assert_close(outputs(loaded, tokens), outputs(model, tokens), rtol=0, atol=1e-5)

    def test_what_peft_cannot_hold_is_refused(self, tmp_path):
        model = adapt(MLP(64, (16,), 10), targets="layers.0", train="layers.1.weight")
        state = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with pytest.raises(ValueError, match="all biases or whole modules"):
            save_adapter(tmp_path / "a", state, model)
        (tmp_path / "full").mkdir()
        (tmp_path / "full/file").touch()
        with pytest.raises(FileExistsError, match="not empty"):
            save_adapter(tmp_path / "full", state, model)

    def test_a_scale_that_differs_is_refused_with_the_remedy(self, tmp_path):
        base = MLP(64, (16,), 10)
        model = adapt(base, rank=2, alpha=8)
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        save_adapter(tmp_path / "a", state, model)
        with pytest.raises(CheckpointError, match=r"scaled by 4, in the model by 1; .*rank=2, alpha=8"):
            import_checkpoints([tmp_path / "a"], tmp_path / "zoo", model=adapt(base, rank=2))
        with pytest.raises(CheckpointError, match=r"'layers.0.lora_A' must be \(3, 64\), got \(2, 64\)"):
            import_checkpoints([tmp_path / "a"], tmp_path / "zoo", model=adapt(base, rank=3, alpha=12))

    def test_tensors_that_are_missing_are_named(self, tmp_path):
        model = adapt(MLP(64, (16,), 10), rank=2)
        with pytest.raises(ValueError, match=r"\['layers.0.lora_A', 'layers.0.lora_B', .* are missing"):
            save_adapter(tmp_path / "a", {}, model)

    def test_networks_on_another_base_are_refused(self, tmp_path):
        base, other = MLP(64, (16,), 10), MLP(64, (16,), 10)
        zoo = build_zoo(tmp_path / "zoo", digits_task(lambda: adapt(base, rank=2)), **TRAINING)
        zoo.export(0, -1, tmp_path / "part/a.safetensors")
        zoo.export(0, -1, tmp_path / "whole/a.safetensors", merged=True)
        for folder in ("part", "whole"):
            with pytest.raises(CheckpointError, match="another base than the model"):
                import_checkpoints(tmp_path / folder, tmp_path / "zoo2", model=adapt(other, rank=2))
        whole = import_checkpoints(tmp_path / "whole", tmp_path / "zoo2")
        part = import_checkpoints(tmp_path / "part", tmp_path / "zoo3", model=adapt(base, rank=2))
        for one in (whole, part):
            assert one.verify() == []
            assert one.spec.base_hash == zoo.spec.base_hash
            assert one.layout == zoo.layout
        with pytest.warns(UserWarning, match="base of these networks is not in the checkpoints"):
            assert not import_checkpoints(tmp_path / "part", tmp_path / "zoo4").base


def peft_networks():
    """Configs by name, for an MLP of three layers."""
    peft = pytest.importorskip("peft")
    layers = ["layers.0", "layers.1", "layers.2"]
    return {
        "lora": peft.LoraConfig(r=3, lora_alpha=6, target_modules=layers, rank_pattern={"layers.1": 2}),
        "rslora": peft.LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=layers),
        "patterns": peft.LoraConfig(
            r=2, target_modules=layers[:2], alpha_pattern={"layers.1": 3}, modules_to_save=["layers.2"]
        ),
        "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=layers),
        "lora and biases": peft.LoraConfig(r=2, target_modules=layers, bias="all"),
        "vera": peft.VeraConfig(r=4, target_modules=layers, save_projection=True),
        "ia3": peft.IA3Config(target_modules=layers, feedforward_modules=layers[1:]),
        "adalora": peft.AdaLoraConfig(init_r=3, target_modules=layers, total_step=100),
    }


KINDS = ["lora", "rslora", "patterns", "dora", "lora and biases", "vera", "ia3", "adalora"]
LINEAR = {"lora": 3, "rslora": 3, "patterns": 2, "dora": 3, "lora and biases": 3}


class TestPeft:
    """Models with PEFT's adapters are tasks, and their runs are PEFT's folders."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_population_of_peft_models_goes_to_folders_and_back(self, tmp_path, kind):
        peft = pytest.importorskip("peft")
        base, config = MLP(64, (16, 8), 10), peft_networks()[kind]
        task = digits_task(lambda: peft.get_peft_model(sharing_copy(base), copy.deepcopy(config)))
        assert task.layout.num_params == task.layout.num_trainable < task.layout.base.num_params
        linear = [group for group in task.layout.groups if group.kind == "linear"]
        assert len(linear) == LINEAR.get(kind, 0)
        assert len(task.layout.groups) - len(linear) == (3 if kind == "adalora" else 0)
        zoo = build_zoo(tmp_path / "zoo", task, **TRAINING)
        params = torch.from_numpy(zoo.params[:, -1])
        expected = task.predict(params, images())
        model = task.make_model()
        for run in range(2):
            save_adapter(tmp_path / f"runs/{run}", zoo.state_dict(run, -1), model)
            loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / f"runs/{run}")
            torch.testing.assert_close(outputs(loaded, images()), expected[run], rtol=0, atol=1e-5)
        back = import_checkpoints(tmp_path / "runs", tmp_path / "back", model=task.make_model())
        torch.testing.assert_close(torch.from_numpy(back.params[:, 0]), params, rtol=0, atol=0)
        assert back.base.keys() == zoo.base.keys()
        # without the model: PEFT's own names, with which the folder is written again
        plain = import_checkpoints(tmp_path / "runs", tmp_path / "plain")
        save_adapter(tmp_path / "again", plain.state_dict(1, 0), plain.attributes["extra"]["adapter_config"])
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "again")
        torch.testing.assert_close(outputs(loaded, images()), expected[1], rtol=0, atol=1e-5)
        if kind in LINEAR:
            assert (
                low_rank.canonical(plain.layout, torch.from_numpy(plain.params[:, 0])).shape == plain.params[:, 0].shape
            )
        else:
            with pytest.raises(ValueError, match="any invertible matrix may mix"):
                low_rank.canonical(plain.layout, torch.from_numpy(plain.params[:, 0]))

    def test_adalora_pruned_to_different_ranks_goes_into_zoos_and_back(self, tmp_path):
        """Which components PEFT kept is not part of what an adapter means, how many are is; it may keep none."""
        peft = pytest.importorskip("peft")
        base, layers = MLP(64, (16, 8), 10), ["layers.0", "layers.1", "layers.2"]

        def prune(folder, *kept):
            """What PEFT leaves of an adapter of which only some components do anything, two a layer on average."""
            config = peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=3, target_modules=layers, total_step=9)
            model = peft.get_peft_model(copy.deepcopy(base), config)
            with torch.no_grad():
                for layer, one in zip(layers, kept, strict=True):
                    adapter = model.base_model.model.get_submodule(layer)
                    for values in (adapter.lora_E.default, adapter.lora_A.default, adapter.lora_B.default.T):
                        values.zero_()[one] = torch.randn_like(values[one])
            outputs_now = model(images())
            outputs_now.square().sum().backward()
            for inner_step in (8, 9):
                model.base_model.update_and_allocate(inner_step)
            model.save_pretrained(folder)
            return outputs_now.detach()

        expected = [prune(tmp_path / f"runs/{i}", [0, 1, 2, 3], one, []) for i, one in enumerate(([1, 2], [0, 3]))]
        prune(tmp_path / "other", [0], [0, 1, 2], [2, 3])
        model = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "runs/0", is_trainable=True)
        plain = import_checkpoints(tmp_path / "runs", tmp_path / "plain")
        named = import_checkpoints(tmp_path / "runs", tmp_path / "named", model=model)
        for name, zoo, network in (
            ("again", plain, plain.attributes["extra"]["adapter_config"]),
            ("model", named, model),
        ):
            assert [group.size for group in zoo.layout.groups] == [4, 2, 0]
            assert {group.kind for group in zoo.layout.groups} == {"permutation"}
            params = torch.from_numpy(zoo.params[:, 0])
            orders = symmetry.sample(zoo.layout, 2, torch.Generator().manual_seed(1))
            permuted = symmetry.apply(zoo.layout, params, orders)
            assert not torch.equal(permuted, params)
            for run, vector in enumerate(permuted):
                folder = tmp_path / f"{name}/{run}"
                save_adapter(folder, zoo.layout.views(vector), network)
                loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
                torch.testing.assert_close(outputs(loaded, images()), expected[run], rtol=1e-5, atol=1e-5)
        for runs in ([tmp_path / "runs/0", tmp_path / "other"], [tmp_path / "other"]):
            with pytest.raises(CheckpointError, match=r"rank_pattern .*'layers.1.lora_E': [23],.* and"):
                import_checkpoints(runs, tmp_path / "wrong", model=model)

    def test_adapters_of_peft_become_ours(self, tmp_path):
        peft = pytest.importorskip("peft")
        base = MLP(64, (16, 8), 10)
        config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["layers.0", "layers.2"])
        theirs = peft.get_peft_model(copy.deepcopy(base), config)
        nn.init.normal_(theirs.base_model.model.layers[2].lora_B.default.weight)
        theirs.save_pretrained(tmp_path / "a")
        options = {"rank": 4, "alpha": 6, "scaling": "rslora", "targets": ("layers.0", "layers.2")}
        zoo = import_checkpoints([tmp_path / "a"], tmp_path / "zoo", model=adapt(base, **options))
        ours = adapt(base, **options)
        ours.load_state_dict(zoo.state_dict(0, 0), strict=False)
        torch.testing.assert_close(outputs(ours, images()), outputs(theirs, images()), rtol=0, atol=1e-5)
        model = peft.get_peft_model(copy.deepcopy(base), copy.copy(config))
        model.peft_config["default"].lora_alpha = 8
        with pytest.raises(CheckpointError, match="lora_alpha 6 and 8"):
            import_checkpoints([tmp_path / "a"], tmp_path / "zoo2", model=model)

    def test_bases_may_be_named_differently(self, tmp_path):
        peft = pytest.importorskip("peft")
        base, config = MLP(64, (16,), 10), peft.LoraConfig(r=2, target_modules=["layers.0"])
        peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / "a")
        tensors = load_file(tmp_path / "a/adapter_model.safetensors")
        renamed = {
            name.replace("base_model.model.", "base_model.model.trunk."): value for name, value in tensors.items()
        }
        save_file(renamed, tmp_path / "a/adapter_model.safetensors")
        model = peft.get_peft_model(copy.deepcopy(base), config)
        zoo = import_checkpoints([tmp_path / "a"], tmp_path / "zoo", model=model)
        first = tensors["base_model.model.layers.0.lora_A.weight"].flatten()
        torch.testing.assert_close(torch.from_numpy(zoo.params[0, 0, : len(first)]), first, rtol=0, atol=0)
        ours = import_checkpoints(
            [tmp_path / "a"], tmp_path / "zoo2", model=adapt(base, rank=2, alpha=8, targets="layers.0")
        )
        torch.testing.assert_close(torch.from_numpy(ours.params[0, 0]), torch.from_numpy(zoo.params[0, 0]))

    @pytest.mark.slow
    def test_prompts_of_a_transformer_are_a_task(self, tmp_path):
        peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
        text = get_task("python_source")
        vocabulary, length = text.layout["head.bias"].numel, text.dataset.train.inputs.shape[1]
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": vocabulary, "n_positions": 2 * length}
        base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)

        class Prompted(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = peft.get_peft_model(sharing_copy(base), copy.deepcopy(config))

            def forward(self, tokens):
                return self.model(tokens).logits[:, 4:]

        task = Task("prompts", text.dataset, Prompted, text.objective)
        assert task.layout.num_params == 4 * 16
        zoo = build_zoo(tmp_path / "zoo", task, num_runs=2, num_steps=4, num_snapshots=2)
        state = {name.removeprefix("model."): value for name, value in zoo.state_dict(1, -1).items()}
        save_adapter(tmp_path / "a", state, task.make_model().model)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
        tokens = text.dataset.test.inputs[:4]
        expected = task.predict(torch.from_numpy(zoo.params[1, -1])[None], tokens)[0]
        torch.testing.assert_close(outputs(loaded, tokens)[:, 4:], expected, rtol=0, atol=1e-5)
        assert json.loads((tmp_path / "a/adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
