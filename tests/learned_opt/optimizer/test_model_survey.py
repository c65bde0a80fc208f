"""Other people's models: every one is accepted, and the roles of some were checked by hand.

Needs timm, transformers and peft, which are no dependencies of the package.
"""

import importlib
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from learned_opt.optimizer.param_groups import groups_of_model
from zoo.networks.roles import infer_roles

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")


def extra(name: str):
    """A library, or a skip that says why it cannot be used."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        pytest.skip(f"{name} cannot be imported: {error}")


def refused(models: dict[str, Callable[[], nn.Module]]) -> tuple[int, dict[str, str]]:
    """How many could be built without their weights, and which of them were refused."""
    num_built, errors = 0, {}
    for name, make in models.items():
        try:
            with torch.device("meta"):
                model = make()
        except Exception:
            continue
        num_built += 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                groups_of_model(model, None, None, None)
            except Exception as error:
                errors[name] = repr(error)
        assert sum("roles were guessed" in str(warning.message) for warning in caught) <= 1
    return num_built, errors


def test_every_timm_family():
    timm = extra("timm")
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    smallest = [min(names, key=len) for names in families.values()]
    num_built, errors = refused({name: lambda name=name: timm.create_model(name) for name in smallest})
    assert num_built > 50
    assert not errors


def test_every_transformers_architecture():
    transformers = extra("transformers")

    def make(config_class) -> nn.Module:
        config = config_class()
        for part in (config, *(getattr(config, f"{kind}_config", None) for kind in ("text", "vision", "audio"))):
            for count in LAYER_COUNTS:
                if isinstance(getattr(part, count, None), int):
                    setattr(part, count, 2)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:2]
        return transformers.AutoModel.from_config(config)

    known = [c for c in transformers.CONFIG_MAPPING.values() if c in transformers.MODEL_MAPPING]
    num_built, errors = refused({c.__name__: lambda c=c: make(c) for c in known})
    assert num_built > 100
    assert not errors


def llama() -> nn.Module:
    transformers = extra("transformers")
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=64)
    return transformers.AutoModelForCausalLM.from_config(config)


PEFT_OPTIONS = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]},
    "FOURIERFT": {"n_frequency": 10},
    "MISS": {"r": 8},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "OFT": {"oft_block_size": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 16, "vector_length": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 10},
}


def adapted(peft, method: str, **options) -> nn.Module:
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[method]]
    fields = config.__dataclass_fields__
    chosen = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    if "num_virtual_tokens" in fields and method != "CPT":
        chosen["num_virtual_tokens"] = 4
    if "feedforward_modules" in fields:
        chosen |= {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    chosen = {key: value for key, value in chosen.items() if key in fields}
    return peft.get_peft_model(llama(), config(**chosen, **PEFT_OPTIONS.get(method, {}), **options))


def test_every_peft_method():
    peft = extra("peft")
    errors, num_built = {}, 0
    for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        try:
            model = adapted(peft, kind.name)
        except Exception:
            continue
        num_built += 1
        try:
            groups_of_model(model, None, None, None)
        except Exception as error:
            errors[kind.name] = repr(error)
    assert num_built > 20
    assert not errors


def timm_model(name: str) -> Callable[[], nn.Module]:
    return lambda: extra("timm").create_model(name)


def transformers_model(kind: str, config: str, **options) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = extra("transformers")
        return getattr(transformers, kind).from_config(getattr(transformers, config)(**options))

    return make


BY_HAND: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, int, str]]]] = {
    "deit": (
        timm_model("deit_tiny_distilled_patch16_224"),
        {
            "cls_token": ("embedding", 1, "oi"),
            "dist_token": ("embedding", 1, "oi"),
            "pos_embed": ("embedding", 1, "oi"),
            "patch_embed.proj.weight": ("input", 3 * 16 * 16, "oi"),
            "blocks.*.attn.qkv.weight": ("hidden", 192, "oi"),
            "blocks.*.mlp.fc2.weight": ("hidden", 768, "oi"),
            "blocks.*.norm?.weight": ("norm", 1, "oi"),
            "head.weight": ("output", 192, "oi"),
            "head_dist.weight": ("output", 192, "oi"),
        },
    ),
    "swin": (
        timm_model("swin_tiny_patch4_window7_224"),
        {
            "patch_embed.proj.weight": ("input", 3 * 4 * 4, "oi"),
            "layers.*.relative_position_bias_table": ("embedding", 1, "oi"),
            "layers.1.downsample.reduction.weight": ("hidden", 4 * 96, "oi"),
            "head.fc.weight": ("output", 768, "oi"),
        },
    ),
    "cait": (
        timm_model("cait_xxs24_224"),
        {
            "blocks.*.gamma_?": ("norm", 1, "oi"),
            "blocks.*.attn.proj_l.weight": ("hidden", 4, "oi"),
            "blocks_token_only.*.attn.q.weight": ("hidden", 192, "oi"),
            "head.weight": ("output", 192, "oi"),
        },
    ),
    "resnet18": (
        timm_model("resnet18"),
        {
            "conv1.weight": ("input", 3 * 49, "oi"),
            "layer?.*.conv?.weight": ("hidden", -1, "oi"),
            "*.bn?.weight": ("norm", 1, "oi"),
            "fc.weight": ("output", 512, "oi"),
        },
    ),
    "GPT-2": (
        transformers_model("AutoModelForCausalLM", "GPT2Config", n_layer=2, n_embd=32, n_head=2),
        {
            "transformer.w?e.weight": ("embedding", 1, "oi"),
            "transformer.h.*.attn.c_attn.weight": ("hidden", 32, "io"),
            "transformer.h.*.mlp.c_fc.weight": ("hidden", 32, "io"),
            "transformer.h.*.mlp.c_proj.weight": ("hidden", 128, "io"),
            "lm_head.weight": ("embedding", 1, "oi"),  # tied
        },
    ),
    "BERT": (
        transformers_model("AutoModelForSequenceClassification", "BertConfig", **SMALL),
        {
            "bert.embeddings.*_embeddings.weight": ("embedding", 1, "oi"),
            "bert.encoder.layer.*.intermediate.dense.weight": ("hidden", 32, "oi"),
            "bert.pooler.dense.weight": ("hidden", 32, "oi"),
            "classifier.weight": ("output", 32, "oi"),
        },
    ),
    "Mixtral": (
        transformers_model(
            "AutoModelForCausalLM", "MixtralConfig", **SMALL, num_key_value_heads=2, vocab_size=64, num_local_experts=4
        ),
        {
            "model.embed_tokens.weight": ("embedding", 1, "oi"),
            "model.layers.*.mlp.gate.weight": ("hidden", 32, "oi"),
            "model.layers.*.mlp.experts.gate_up_proj": ("hidden", 32, "eoi"),
            "model.layers.*.mlp.experts.down_proj": ("hidden", 64, "eoi"),
            "lm_head.weight": ("output", 32, "oi"),
        },
    ),
    "gpt-oss": (
        transformers_model(
            "AutoModelForCausalLM",
            "GptOssConfig",
            **SMALL,
            num_key_value_heads=2,
            vocab_size=64,
            num_local_experts=4,
            head_dim=16,
        ),
        {
            "model.layers.*.mlp.experts.gate_up_proj": ("hidden", 32, "eio"),
            "model.layers.*.mlp.experts.down_proj": ("hidden", 64, "eio"),
            "model.layers.*.mlp.experts.*_bias": ("bias", 1, "oi"),
            "model.layers.*.self_attn.sinks": ("bias", 1, "oi"),
        },
    ),
    "T5": (
        transformers_model(
            "AutoModelForSeq2SeqLM", "T5Config", d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16, vocab_size=64
        ),
        {
            "shared.weight": ("embedding", 1, "oi"),
            "*.relative_attention_bias.weight": ("embedding", 1, "oi"),
            "*.DenseReluDense.wo.weight": ("hidden", 64, "oi"),
            "*layer_norm.weight": ("norm", 1, "oi"),
        },
    ),
    "wav2vec2": (
        transformers_model("AutoModel", "Wav2Vec2Config", **SMALL, num_conv_pos_embedding_groups=2),
        {
            "masked_spec_embed": ("embedding", 1, "oi"),
            "feature_extractor.conv_layers.0.conv.weight": ("input", 10, "oi"),
            "feature_projection.projection.weight": ("hidden", 512, "oi"),
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0": ("norm", 1, "oi"),
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1": ("hidden", 16 * 128, "oi"),
        },
    ),
    "LoRA": (
        lambda: adapted(extra("peft"), "LORA"),
        {
            "*.lora_A.default.weight": ("hidden", 32, "oi"),
            "*.lora_B.default.weight": ("hidden", 8, "oi"),
            "*.base_layer.weight": ("hidden", 32, "oi"),
            "*.lm_head.weight": ("output", 32, "oi"),
        },
    ),
    "DoRA": (
        lambda: adapted(extra("peft"), "LORA", use_dora=True),
        {"*.lora_magnitude_vector.default.weight": ("norm", 1, "oi"), "*.lora_B.default.weight": ("hidden", 8, "oi")},
    ),
    "IA3": (lambda: adapted(extra("peft"), "IA3"), {"*.ia3_l.default": ("norm", 1, "oi")}),
    "VeRA": (lambda: adapted(extra("peft"), "VERA"), {"*.vera_lambda_?.default": ("norm", 1, "oi")}),
    "prompt tuning": (
        lambda: adapted(extra("peft"), "PROMPT_TUNING"),
        {"prompt_encoder.default.embedding.weight": ("embedding", 1, "oi")},
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_roles_checked_by_hand(name):
    make, expected = BY_HAND[name]
    known = infer_roles(make())
    for pattern, (role, width, axes) in expected.items():
        matched = {tensor: found for tensor, found in known.items() if fnmatchcase(tensor, pattern)}
        assert matched, pattern
        for tensor, found in matched.items():
            assert (found.role, found.axes) == (role, axes), tensor
            assert width in (-1, found.fan_in), tensor
            assert not found.guessed, tensor
