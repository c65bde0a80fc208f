"""The networks of the panel that are not one line: small configurations of libraries' models, and common modules.

Legend: B examples, L tokens or blocks, C channels, D width or inputs, K outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TOKENS = 256


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network that is not to be changed."""
    return copy.deepcopy(model)


def vit() -> nn.Module:
    """timm's vision transformer."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=48, depth=3, num_heads=3)


def resnet() -> nn.Module:
    """timm's residual network of four basic blocks."""
    import_torchvision()
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], in_chans=1, num_classes=10, channels=(8, 16, 32, 64), stem_width=8)


def convnext() -> nn.Module:
    """timm's ConvNeXt of four blocks."""
    import_torchvision()
    from timm.models.convnext import ConvNeXt

    sizes = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "patch_size": 2, "output_stride": 8}
    return ConvNeXt(in_chans=1, num_classes=10, **sizes)


def mixer() -> nn.Module:
    """timm's MLP-Mixer."""
    import_torchvision()
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=48, num_blocks=3)


def import_torchvision() -> None:
    """Import torchvision, which timm needs and which asks for operators of its own that another torch's build lacks."""
    try:
        import torchvision  # noqa: F401
    except ImportError:  # timm says so itself
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def gpt2(num_blocks: int = 2) -> nn.Module:
    """transformers' GPT-2, whose output layer is its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=_TOKENS, n_positions=48, n_embd=48, n_layer=num_blocks, n_head=3, **off)
    )


def qwen2() -> nn.Module:
    """transformers' Qwen2: rotary positions, gated MLPs, grouped queries."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_SIZES, num_key_value_heads=2))


def mixtral() -> nn.Module:
    """transformers' Mixtral of four experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = _SIZES | {"hidden_size": 32, "intermediate_size": 48}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4))


def bert() -> nn.Module:
    """transformers' BERT."""
    from transformers import BertConfig, BertForMaskedLM

    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(**_SIZES, max_position_embeddings=64, **off))


def t5() -> nn.Module:
    """transformers' T5: an encoder, a decoder, relative positions."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=_TOKENS, dropout_rate=0.0, decoder_start_token_id=0, **sizes))


_SIZES: dict[str, Any] = {
    "vocab_size": _TOKENS,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def lora(model: nn.Module) -> nn.Module:
    """The model with peft's adapters of rank 4 in its attention and MLPs."""
    from peft import LoraConfig, get_peft_model

    modules = ["c_attn", "c_proj", "c_fc"]
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=modules, fan_in_fan_out=True))


class ResidualMLP(nn.Module):
    """Pre-norm residual blocks with a hidden layer each, (B, D) -> (B, K).

    Args:
        num_inputs: D.
        width: of the stream and of hidden layers.
        num_blocks: L.
        num_outputs: K.
        power: each branch is multiplied by L^-power: 0 in most transformers, 1 in CompleteP (arXiv 2505.01618).
    """

    def __init__(self, num_inputs: int, width: int, num_blocks: int, num_outputs: int, power: float = 0.0) -> None:
        super().__init__()
        self.input = nn.Linear(num_inputs, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, num_blocks**-power) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(self.blocks(self.input(x))))


class ResidualBlock(nn.Module):
    """x + scale * MLP(norm(x))."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(x))))


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM, output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_TOKENS, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.output = nn.Linear(64, _TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(tokens))[0])


class GRUClassifier(nn.Module):
    """A GRU over pieces of four points, the last state to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 48, batch_first=True)
        self.output = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.gru(x.unflatten(1, (-1, 4)))[0][:, -1])


class RowEncoder(nn.Module):
    """torch's transformer encoder over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 48)
        self.position = nn.Parameter(0.02 * torch.randn(28, 48))
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.encoder(self.embed(images.squeeze(1)) + self.position).mean(1))


class TimeMLP(nn.Module):
    """SiLU network on a point and sines of the time."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.input = nn.Linear(num_inputs, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.output = nn.Linear(width, num_inputs)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phases = t * 2.0 ** torch.arange(8)
        x = self.input(x) + self.embed(torch.cat([phases.sin(), phases.cos()], 1))
        for layer in self.hidden:
            x = x + layer(F.silu(x))
        return self.output(F.silu(x))


class UNet(nn.Module):
    """Two scales of convolutions with group norms and a path across, told of the noise by one more channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 2 * channels)
        self.middle = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.last = nn.Conv2d(2 * channels, 1, 3, padding=1)

    def forward(self, images: Tensor, level: Tensor) -> Tensor:
        x = F.silu(self.first(torch.cat([images, level.expand_as(images)], 1)))
        y = F.silu(self.norm(self.down(x)))
        y = F.silu(self.up(y + F.silu(self.middle(y))))
        return self.last(torch.cat([x, y], 1))


class Siren(nn.Module):
    """Network of sines (Sitzmann et al. 2020, arXiv 2006.09661), frequency 15 in the first layer."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(num_inputs, width), nn.Linear(width, width), nn.Linear(width, 1)])
        nn.init.uniform_(self.layers[0].weight, -1 / num_inputs, 1 / num_inputs)
        for layer in self.layers[1:]:
            nn.init.uniform_(layer.weight, -((6 / width) ** 0.5), (6 / width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (15 * self.layers[0](x)).sin()
        return self.layers[2](self.layers[1](x).sin())


class VAE(nn.Module):
    """Variational autoencoder of one hidden layer on each side."""

    def __init__(self, num_inputs: int, num_latents: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(num_inputs, 64), nn.ReLU(), nn.Linear(64, 2 * num_latents))
        self.decoder = nn.Sequential(nn.Linear(num_latents, 64), nn.ReLU(), nn.Linear(64, num_inputs))

    def forward(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        latent = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=rng)
        return self.decoder(latent), mean, log_var


class Factorisation(nn.Module):
    """Inner products of embeddings of rows and columns, with their biases."""

    def __init__(self, num_rows: int, num_columns: int, rank: int) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(num_rows, rank), nn.Embedding(num_columns, rank)
        self.row_bias, self.column_bias = nn.Embedding(num_rows, 1), nn.Embedding(num_columns, 1)

    def forward(self, row: Tensor, column: Tensor) -> Tensor:
        inner = (self.rows(row) * self.columns(column)).sum(1)
        return inner + self.row_bias(row).squeeze(1) + self.column_bias(column).squeeze(1)


def conv_autoencoder() -> nn.Module:
    """Two strided convolutions and their transposes."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
    )


def conv3d() -> nn.Module:
    """Plain 3-D convolutions without norms."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(8, 16, 3, padding=1, stride=(1, 2, 2)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 5 * 4 * 4, 4),
    )


def conv3d_pooled(num_classes: int) -> nn.Module:
    """Two plain 3-D convolutions, each with pooling."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Linear(16 * 8, num_classes),
    )


def conv3d_to_image() -> nn.Module:
    """Plain 3-D convolutions from four images of 8 x 8 to one."""
    return nn.Sequential(
        nn.Conv3d(1, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv3d(12, 12, 3, padding=1),
        nn.SiLU(),
        nn.Conv3d(12, 1, (4, 3, 3), padding=(0, 1, 1)),
        nn.Flatten(1, 2),
    )


def conv1d() -> nn.Module:
    """Two plain 1-D convolutions over forty points."""
    return nn.Sequential(
        nn.Conv1d(1, 12, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(12, 24, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 10, 10),
    )
