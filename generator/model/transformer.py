"""The recurrent diffusion transformer: from noise, a prompt and optionally a start to the parameters of a network.

A bidirectional gated linear recurrence runs over the layers of the network (whose units are a set) or over its chunks,
and gives every token its prototype from the start, the position and the prompt. A transformer then denoises all tokens
jointly. One model serves every layout that is made of the feature blocks it was built for, whatever its widths and
depth. Examples in a prompt are further tokens, to which the network's attend.

Source: recurrence and diffusion over parameter tokens: Wang et al. 2025 (arXiv 2501.11587); prompting with losses:
Peebles et al. 2022 (arXiv 2209.12892).

Legend: B networks, P numbers of one network, C channels, n units of a group, L chunks, d token width, e edge width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from generator.from_folder import FromFolder
from generator.model.corrections import Corrections, direction_of
from generator.model.denoiser import DenoiserBlock, EdgeDecoder, EdgePair, zero_init
from generator.model.examples import ExampleDescriber, ExampleEncoder, ObservedExamples
from generator.model.forward import denoise_chunks, denoise_graph
from generator.model.recurrence import GatedLinearRecurrence
from generator.prompts.descriptions import DescriptionReader
from generator.prompts.examples import ExampleKind
from generator.prompts.prompt import MetricRange, Prompt, PromptEncoder
from generator.tokens.tokenizer import ChunkTokenizer, ParamTokenizer
from generator.tokens.windows import sinusoids
from zoo.settings import check_options

_NUM_TIME_FREQUENCIES: Final = 5
_DRAWN_STD: Final = 0.5  # in normalised units


@dataclass(frozen=True)
class Reading:
    """What the model makes of a prompt and a start, before it sees any noise.

    Attributes:
        tokens: (B, n, d) of each group, or (B, L, d) chunks: what is known of each token, its prototype included.
        start: features of the start by block name; empty for a model without starts.
        asked: (B, c) features of the prompt, whether there is a start, and of the examples.
        examples: (B, Q, d) tokens of the prompt's examples; Q may be 0.
    """

    tokens: list[Tensor]
    start: Mapping[str, Tensor]
    asked: Tensor
    examples: Tensor

    def repeat(self, times: int) -> Reading:
        """The whole batch `times` times over."""

        def repeated(values: Tensor) -> Tensor:
            return values.repeat(times, *[1] * (values.ndim - 1))

        start = {name: repeated(values) for name, values in self.start.items()}
        return Reading([*map(repeated, self.tokens)], start, repeated(self.asked), repeated(self.examples))


class RecurrentDiffusionTransformer(FromFolder, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the normalised parameters (B, P) of a network, whole or in windows.

    Args:
        node_widths: features per node by block key, from the tokenizers of the layouts to serve.
        edge_widths: features per edge by block key; empty for chunk tokens.
        metrics: (low, high) of each metric that can be prompted, as seen in training.
        num_task_bits: length of a task's bit mask; 0 for none.
        examples: fields of the ExampleKind that a prompt can hold, `num_features` of each, and `num_described` numbers
            that are told of their task; None for no examples.
        description_width: numbers of the vector of a description in words; 0 for none.
        num_fingerprints: functional features per unit of the start; 0 for none.
        fingerprint_scale: factor on fingerprints, which at 1 are faint beside what tokens hold else.
        noisy_as_start: whether, where there is no start, the noisy network takes its place, fingerprints included.
        diffusion: whether there is a noisy input and a timestep; without, the model is a one-pass regressor.
        use_start: whether a start network can be given.
        use_latent: whether a Gaussian input makes each prediction a sample (energy score).
        recurrence: recurrent layers that make the prototypes; 0 for none.
        width: d.
        num_blocks: denoiser blocks.
        num_heads: attention heads.
        edge_width: e.
        mlp_ratio: hidden width of the blocks' MLP over d.
        start_skip: weight, at first, with which edges of the start enter the prediction.
        drawn_blocks: keys of node blocks of which the untrained model predicts something, not the mean: one factor of
            each product, since where both are zero neither has a gradient.
        window: chunk tokens attend within windows of this many; 0 for attention over the whole network.
        num_centred: numbers of the mean network, the buffer `centre`, to which answers are added; 0 for none.
        num_corrections: times that the model looks at what its answer makes of the prompt's examples, and answers again
            (`generator.model.corrections`); for networks without edges between units, such as adapters and MLPs of one
            hidden layer.
        correction_rate: at first, of the steps along the gradient that follow each correction; 0 for none.
        correction_steps: how many in training.
        correction_passes: over the prompt's examples, by the steps that follow each correction in a trained model, so
            that few examples are not fitted as long as many; 0 for `correction_steps` steps.
        step_examples: about how many examples of the prompt each step sees, in turn; 0 for all.
    """

    __module__ = "generator"  # what saved pipelines name: the public surface, not this file

    @register_to_config
    def __init__(
        self,
        node_widths: dict[str, int],
        edge_widths: dict[str, int],
        metrics: dict[str, tuple[float, float]],
        *,
        num_task_bits: int = 0,
        examples: dict[str, Any] | None = None,
        description_width: int = 0,
        num_fingerprints: int = 0,
        fingerprint_scale: float = 1.0,
        noisy_as_start: bool = False,
        diffusion: bool = True,
        use_start: bool = True,
        use_latent: bool = True,
        recurrence: int = 1,
        width: int = 96,
        num_blocks: int = 3,
        num_heads: int = 8,
        edge_width: int = 16,
        mlp_ratio: int = 2,
        start_skip: float = 0.0,
        drawn_blocks: Sequence[str] = (),
        num_centred: int = 0,
        window: int = 0,
        num_corrections: int = 0,
        correction_rate: float = 0.0,
        correction_steps: int = 1,
        correction_passes: float = 0.0,
        step_examples: int = 0,
    ) -> None:
        super().__init__()
        sizes = ("width", "num_heads", "edge_width", "mlp_ratio", "correction_steps")
        check_options(self.config, type(self).__init__, positive=sizes, signed=("start_skip",))
        self.ranges = {name: MetricRange(*bounds) for name, bounds in sorted(metrics.items())}
        self.window = window
        self.num_drawn = int(diffusion) + int(use_latent)  # channels that are drawn: noisy values, latent
        channels = self.num_drawn + int(use_start)
        if channels == 0 and (edge_widths or not (examples or description_width)):
            raise ValueError("a model needs a noisy input, a latent or a start, examples or descriptions; all are off")
        if num_corrections and (noisy_as_start or edge_widths or window or not examples):
            raise ValueError(
                "num_corrections needs examples in prompts, noisy_as_start=False, and networks without edges between "
                "units; set it to 0"
            )

        asked_width = self._add_prompt_encoders(num_task_bits, examples, description_width, width)
        self.register_buffer("centre", torch.zeros(num_centred) if num_centred else None)
        condition_width = asked_width + 2 * _NUM_TIME_FREQUENCIES * diffusion
        self.condition = nn.Sequential(nn.Linear(condition_width, width), nn.GELU(), nn.Linear(width, width))

        self.role = nn.Linear(3, width)
        self.drawn_encoders = nn.ModuleDict(
            {key: nn.Linear(self.num_drawn * size, width) for key, size in node_widths.items() if self.num_drawn}
        )
        self.start_encoders = nn.ModuleDict(
            {key: nn.Linear(size, width) for key, size in node_widths.items() if use_start}
        )
        self.fingerprint_encoder = nn.Linear(num_fingerprints, width) if num_fingerprints else None

        self.recurrent = nn.ModuleList(GatedLinearRecurrence(width) for _ in range(recurrence))
        if recurrence:
            self.recurrence_condition = nn.Linear(asked_width, width)
            self.summary = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
            self.prototype = nn.Linear(width, width)

        self.blocks = nn.ModuleList(
            DenoiserBlock(width, num_heads, edge_width if edge_widths else 0, mlp_ratio) for _ in range(num_blocks)
        )
        self.final_norm = nn.LayerNorm(width)
        self.decoders = nn.ModuleDict({key: zero_init(nn.Linear(width, size)) for key, size in node_widths.items()})
        for key in drawn_blocks:
            nn.init.normal_(cast("nn.Linear", self.decoders[key]).weight, std=_DRAWN_STD / math.sqrt(width))
        self.corrections = None
        if num_corrections:
            self.corrections = Corrections(node_widths, width, num_corrections, correction_rate)
        if edge_widths:
            self._add_edges(edge_widths, channels, edge_width, width)
            skips = torch.zeros(channels)
            skips[self.num_drawn :] = start_skip
            self.edge_skips = nn.ParameterDict({key: skips.clone() for key in edge_widths})

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Arguments in a saved config, without those of networks that vote on examples, which there once were.

        Raises:
            ValueError: if the model had any.
        """
        options = dict(config_dict)
        if options.pop("references", None):
            raise ValueError("the generator was trained with num_references, which is no longer there: train it again")
        if options.get("examples"):
            options["examples"] = {name: one for name, one in options["examples"].items() if name != "num_votes"}
        extracted: tuple[dict, dict, dict] = super().extract_init_dict(options, **kwargs)
        return extracted

    def _add_prompt_encoders(
        self, num_task_bits: int, examples: dict[str, Any] | None, description_width: int, width: int
    ) -> int:
        """What reads prompts and their examples; the number of features that it makes, with that of a start."""
        self.prompt_encoder = PromptEncoder(self.ranges, num_task_bits)
        self.example_kind, self.example_encoder, self.example_describer = None, None, None
        asked_width = self.prompt_encoder.width + 1
        if examples is not None:
            kind: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in examples.items()
            }
            num_features, num_described = kind.pop("num_features"), kind.pop("num_described", 0)
            self.example_kind = ExampleKind(**kind)
            sizes = num_features, self.example_kind.num_classes, width
            self.example_encoder = ExampleEncoder(*sizes)
            if num_described:
                self.example_describer = ExampleDescriber(*sizes, num_described)
            asked_width += 1 + width + 2 * num_described
        self.description_reader = None
        if description_width:
            self.description_reader = DescriptionReader(description_width, width)
            asked_width += 1 + width
        return asked_width

    def _add_edges(self, sizes: dict[str, int], channels: int, edge_width: int, width: int) -> None:
        """What reads edges of `sizes` features in some channels, and writes them."""
        self.edge_condition = nn.Linear(width, edge_width)
        self.edge_encoders = nn.ModuleDict(
            {
                key: nn.Sequential(
                    nn.Linear(channels * size, 2 * edge_width), nn.GELU(), nn.Linear(2 * edge_width, edge_width)
                )
                for key, size in sizes.items()
            }
        )
        self.edge_decoder = EdgeDecoder(width, edge_width)
        self.edge_outputs = nn.ModuleDict(
            {key: zero_init(nn.Linear(2 * edge_width, size)) for key, size in sizes.items()}
        )

    def forward(
        self,
        tokenizer: ParamTokenizer,
        prompt: Prompt,
        *,
        noisy: Tensor | None = None,
        timestep: Tensor | None = None,
        latent: Tensor | None = None,
        start: Tensor | None = None,
        has_start: Tensor | None = None,
        fingerprints: Mapping[str, Tensor] | None = None,
        examples: ObservedExamples | None = None,
        reading: Reading | None = None,
        windows: Tensor | None = None,
    ) -> Tensor:
        """Prediction of the clean normalised parameters, or of what the objective asks for.

        Args:
            tokenizer: of the layout that the batch has.
            prompt: B prompts.
            noisy: (B, P) noisy normalised parameters, for a diffusion model.
            timestep: (B,) noise time in [0, 1].
            latent: (B, P) standard normal numbers, for a model with a latent.
            start: (B, P) normalised start; None for none.
            has_start: (B,) 0 or 1; default all 1 if a start is given.
            fingerprints: (B, n, F) functional features of the start (or the noisy network) by group name.
            examples: of the prompts, as `NetworkContext.observed` has them; None for none.
            reading: from `self.read`, which need not be repeated for every sampling step.
            windows: (K,) numbers of the windows to denoise (chunk tokens only).

        Returns:
            (B, P); with `windows`, (B * K, window, W) chunks of these.
        """
        drawn = [values for values in (noisy, latent) if values is not None]
        if len(drawn) != self.num_drawn:
            raise ValueError(f"this model takes {self.num_drawn} of noisy values and latent, got {len(drawn)}")
        if reading is None:
            reading = self.read(
                tokenizer,
                prompt,
                noisy=noisy,
                start=start,
                has_start=has_start,
                fingerprints=fingerprints,
                examples=examples,
            )
        condition = self._condition(reading, timestep)
        features = [tokenizer.encode(values.to(reading.asked.dtype)) for values in drawn]
        if isinstance(tokenizer, ChunkTokenizer):
            return denoise_chunks(self, tokenizer, reading, features, condition, windows=windows)
        return denoise_graph(self, tokenizer, reading, features, condition)

    def read(
        self,
        tokenizer: ParamTokenizer,
        prompt: Prompt,
        *,
        noisy: Tensor | None = None,
        start: Tensor | None = None,
        has_start: Tensor | None = None,
        fingerprints: Mapping[str, Tensor] | None = None,
        examples: ObservedExamples | None = None,
    ) -> Reading:
        """What the model makes of the prompt and the start. It depends on noisy values if these stand for a start.

        Args: as for `forward`.
        """
        batch, device, dtype = len(prompt), prompt.target.device, self.dtype
        if start is not None and not self.start_encoders:
            raise ValueError("this model was built without a start; pass start=None")
        if start is None or has_start is None:
            has_start = torch.full((batch,), float(start is not None), device=device)
        is_known = has_start[:, None].to(dtype)  # (B, 1)
        asked, seen = self._asked(prompt, is_known, examples)
        if self.config["noisy_as_start"] and noisy is not None:
            start = noisy if start is None else torch.where(has_start[:, None] > 0, start, noisy)
            is_known = torch.ones_like(is_known)

        tokens = self._places(tokenizer, batch)
        features: dict[str, Tensor] = {}
        if self.start_encoders:
            if start is None:
                start = torch.zeros(batch, tokenizer.layout.num_params, device=device)
            features = tokenizer.encode(start.to(dtype) * is_known)
            for block in tokenizer.node_blocks:
                index = block.groups[0]
                tokens[index] = tokens[index] + self.start_encoders[block.key](features[block.name])
        if self.start_encoders and self.fingerprint_encoder is not None and fingerprints is not None:
            for index, group in enumerate(tokenizer.groups):
                if group.name in fingerprints:
                    faint = self.config["fingerprint_scale"] * fingerprints[group.name]
                    tokens[index] = tokens[index] + self.fingerprint_encoder(faint.to(dtype)) * is_known[..., None]

        if self.recurrent:
            parts = [self.summary(part) for part in tokens]
            is_ordered = isinstance(tokenizer, ChunkTokenizer)
            sequence = parts[0] if is_ordered else torch.stack([part.mean(1) for part in parts], dim=1)
            sequence = sequence + self.recurrence_condition(asked)[:, None]  # (B, L, d) or (B, G, d)
            for layer in self.recurrent:
                sequence = layer(sequence)
            prototypes = self.prototype(sequence)
            of_group = [prototypes] if is_ordered else prototypes[:, :, None].unbind(1)
            tokens = [part + one for part, one in zip(tokens, of_group, strict=True)]
        return Reading(tokens, features, asked, seen)

    def correct(
        self,
        tokenizer: ParamTokenizer,
        reading: Reading,
        number: int,
        answer: Tensor,
        gradient: Tensor,
        *,
        timestep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The next answer (B, P) to what was read, and the rates (B, P) of the steps that follow it.

        Args:
            tokenizer: of the layout.
            reading: of the prompts.
            number: of this correction, from 0.
            answer: (B, P) the last one.
            gradient: (B, P) of the loss on the examples of the prompts, by the answer.
            timestep: (B,) of the noisy networks to which a diffusion model answered.
        """
        assert self.corrections is not None
        direction = direction_of(tokenizer, gradient)
        told = self.corrections.read(tokenizer, number, answer, direction)
        tokens = [part + more for part, more in zip(reading.tokens, told, strict=True)]
        x = self.through_blocks(tokens, reading, self._condition(reading, timestep))
        change, rates = self.corrections.change(tokenizer, x)
        return answer + change, rates

    def _condition(self, reading: Reading, timestep: Tensor | None) -> Tensor:
        """Features (B, d) of what is asked and, in a diffusion model, of the noise time (B,)."""
        asked = [reading.asked]
        if self.config["diffusion"]:
            if timestep is None:
                raise ValueError("a diffusion model needs a timestep, got None")
            waves = timestep[:, None] * 2.0 ** torch.arange(_NUM_TIME_FREQUENCIES, device=timestep.device) * math.pi / 2
            asked += [waves.sin().to(reading.asked.dtype), waves.cos().to(reading.asked.dtype)]
        return self.condition(torch.cat(asked, dim=1))

    def _asked(self, prompt: Prompt, is_known: Tensor, examples: ObservedExamples | None) -> tuple[Tensor, Tensor]:
        """Features (B, c) of what is asked, and tokens (B, Q, d) of the examples; zeros for those not given."""
        asked = torch.cat((self.prompt_encoder(prompt).to(is_known.dtype), is_known), dim=1)
        batch, width = len(prompt), self.config["width"]
        if self.description_reader is not None:
            said = prompt.description
            said = asked.new_full((batch, self.config["description_width"]), math.nan) if said is None else said
            asked = torch.cat((asked, self.description_reader(said).to(asked.dtype)), dim=1)
        if self.example_encoder is None:
            if examples is not None:
                raise ValueError("this model was built without examples; pass examples=None")
            return asked, asked.new_zeros(batch, 0, width)
        if examples is None:
            num_told = 1 + 2 * self.config["examples"].get("num_described", 0)
            num_tokens = len(self.example_encoder.place)  # as many as of examples that are left out, as in training
            tokens, told = asked.new_zeros(batch, num_tokens, width), asked.new_zeros(batch, num_told)
        else:
            tokens = self.example_encoder(examples)
            parts = [examples.is_given[:, None]]
            if self.example_describer is not None:
                parts += [part.detach() for part in self.example_describer(examples)]
            told = torch.cat([part.to(asked.dtype) for part in parts], dim=1)
        return torch.cat((asked, told, tokens.mean(1)), dim=1), tokens

    def _places(self, tokenizer: ParamTokenizer, batch: int) -> list[Tensor]:
        """(B, n, d) of each group: where its tokens are in the network."""
        if tokenizer.positions is not None:
            are_few = not isinstance(tokenizer, ChunkTokenizer)  # components of modules
            places = tokenizer.positions.to(self.device, non_blocking=True)
            positions = sinusoids(places, self.config["width"], are_few=are_few)
            parts = positions.to(self.dtype).expand(batch, -1, -1)
            return [parts[:, span] for span in tokenizer.spans]
        count = len(tokenizer.groups)
        index = torch.arange(count, device=self.device)  # the first group is the global node
        of_groups = torch.stack((index == 1, index == count - 1, index / count), dim=1)  # first, last, relative depth
        of_groups = of_groups * (count > 1)
        roles = self.role(of_groups.to(self.dtype))  # (G, d)
        return [role.expand(batch, group.size, -1) for role, group in zip(roles, tokenizer.groups, strict=True)]

    def through_blocks(
        self,
        tokens: Sequence[Tensor],
        reading: Reading,
        condition: Tensor,
        edges: Sequence[Tensor] = (),
        pairs: Sequence[EdgePair] = (),
    ) -> Tensor:
        """What the blocks make of the tokens (B, n, d) of each group: (B, n, d) of all of them."""
        x = torch.cat((*tokens, reading.examples), dim=1) + condition[:, None]  # (B, n + Q, d)
        for layer in self.blocks:
            x = layer(x, condition, edges, pairs)
        return self.final_norm(x[:, : x.shape[1] - reading.examples.shape[1]])


def model_widths(tokenizers: Sequence[ParamTokenizer]) -> tuple[dict[str, int], dict[str, int]]:
    """Features per node and per edge by block key, over all layouts that a model should serve."""
    nodes = {block.key: block.width for tokenizer in tokenizers for block in tokenizer.node_blocks}
    edges = {block.key: block.width for tokenizer in tokenizers for block in tokenizer.edge_blocks}
    return nodes, edges
