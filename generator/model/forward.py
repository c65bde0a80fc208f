"""From what was read of a prompt and from noise to parameters: over the units of a network, or over its chunks.

Legend: B networks, P numbers of one network, n units of all groups, L chunks, K windows, W numbers of a chunk, e edge
width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generator.model.denoiser import EdgePair
from generator.tokens.tokenizer import CHUNKS, ChunkTokenizer, ParamTokenizer
from generator.tokens.windows import from_windows, to_windows

if TYPE_CHECKING:
    from generator.model.transformer import Reading, RecurrentDiffusionTransformer


def denoise_graph(
    model: RecurrentDiffusionTransformer,
    tokenizer: ParamTokenizer,
    reading: Reading,
    drawn: Sequence[Mapping[str, Tensor]],
    condition: Tensor,
) -> Tensor:
    """Predictions (B, P) of networks whose units are tokens, and weights between units edges.

    Args:
        model: with its encoders, blocks and decoders.
        tokenizer: of the layout.
        reading: of prompts and starts.
        drawn: features by block of what is noise: noisy values, latents.
        condition: (B, d) features of what is asked and of the noise time.
    """
    tokens, spans = list(reading.tokens), tokenizer.spans
    for block in tokenizer.node_blocks if drawn else []:
        stacked = torch.cat([features[block.name] for features in drawn], dim=-1)
        tokens[block.groups[0]] = tokens[block.groups[0]] + model.drawn_encoders[block.key](stacked)
    channels = [*drawn, reading.start] if reading.start else list(drawn)
    pairs = [EdgePair(spans[block.groups[0]], spans[block.groups[1]]) for block in tokenizer.edge_blocks]
    edges = []
    for block in tokenizer.edge_blocks:
        stacked = torch.cat([features[block.name] for features in channels], dim=-1)
        encoded = model.edge_encoders[block.key](stacked)
        edges.append(encoded + model.edge_condition(condition)[:, None, None])  # (B, n_target, n_source, e)

    x = model.through_blocks(tokens, reading, condition, edges, pairs)
    output = {block.name: model.decoders[block.key](x[:, spans[block.groups[0]]]) for block in tokenizer.node_blocks}
    for block, edge, pair in zip(tokenizer.edge_blocks, edges, pairs, strict=True):
        hidden = model.edge_decoder(edge, x[:, pair.target], x[:, pair.source])
        skips = zip(model.edge_skips[block.key].unbind(), channels, strict=True)
        skipped = torch.stack([weight * features[block.name] for weight, features in skips]).sum(0)
        output[block.name] = model.edge_outputs[block.key](hidden) + skipped
    answer = tokenizer.decode({name: values.float() for name, values in output.items()})  # (B, P)
    return answer if model.centre is None else answer + model.centre


def denoise_chunks(
    model: RecurrentDiffusionTransformer,
    tokenizer: ChunkTokenizer,
    reading: Reading,
    drawn: Sequence[Mapping[str, Tensor]],
    condition: Tensor,
    *,
    windows: Tensor | None,
) -> Tensor:
    """Predictions (B, P) of networks in chunks, or (B * K, window, W) of windows (K,) of them; see `denoise_graph`."""
    (known,) = reading.tokens
    batch, length, _ = known.shape
    window = model.window or length
    everything = torch.arange(math.ceil(length / window), device=known.device)
    chosen = everything if windows is None else windows
    x = to_windows(known, window, chosen)  # (B * K, window, d)
    (block,) = tokenizer.blocks
    if drawn:
        stacked = torch.cat([features[CHUNKS] for features in drawn], dim=-1)
        x = x + model.drawn_encoders[block.key](to_windows(stacked, window, chosen))
    per_window = condition.repeat_interleave(len(chosen), dim=0)  # (B * K, d)
    of_window = reading.examples.repeat_interleave(len(chosen), dim=0)
    x = torch.cat((x, of_window), dim=1) + per_window[:, None]
    for layer in model.blocks:
        x = layer(x, per_window, (), ())
    chunks = model.decoders[block.key](model.final_norm(x[:, :window])).float()  # (B * K, window, W)
    if windows is not None:
        return chunks
    return tokenizer.decode({CHUNKS: from_windows(chunks, batch, length)})  # (B, P)
