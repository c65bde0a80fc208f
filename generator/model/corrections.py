"""Corrections: the model looks at what its answer makes of the prompt's examples, and answers again.

The network that was predicted, in one pass or in a step of diffusion, is run on the examples of its prompt, and the
gradient of its loss on them is given back to the model, as features of the tokens beside the answer itself. The model's
blocks are run again and what comes out is added to the answer. So a correction is the step of a learned optimizer that
sees the examples, too. Examples without labels give the gradient of what the network's outputs leave undecided; not
to models that step along it, since where nothing else holds them, steps lead to a network that is sure of anything.

What comes out is free or, with a rate, also steps along the gradient, whose rate the model gives for every number:
where examples hold more than a token can, as those of a text do, the steps do not have to pass through one. Each may
see a part of the examples, in turn. The model learns from where the last step leads, as if gradients did not change
with the answer (first-order).

Source: Marino et al. 2018, iterative amortized inference (arXiv 1807.09356), section 3.2; gradients as inputs:
Andrychowicz et al. 2016 (arXiv 1606.04474); learned rates of every number: Li et al. 2017 (arXiv 1707.09835);
first-order learning through steps: Finn et al. 2017 (arXiv 1703.03400), section 5.2.

Legend: B networks, P numbers of one network, E examples of a prompt, n units of a group, d token width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from generator.model.denoiser import zero_init
from generator.prompts.examples import NO_LABEL, Examples
from generator.tokens.tokenizer import ParamTokenizer
from zoo.tasks.objectives import Probabilistic
from zoo.tasks.task import Task

_MIN_SIZE: Final = 1e-8


class Corrections(nn.Module):
    """What corrections read and write.

    Args:
        node_widths: features per node by block key.
        width: d.
        count: of corrections; each is told which it is.
        rate: at first, of the steps along the gradient, in normalised units; 0 for no such steps.
    """

    def __init__(self, node_widths: Mapping[str, int], width: int, count: int, rate: float = 0.0) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({key: nn.Linear(2 * size, width) for key, size in node_widths.items()})
        self.decoders = nn.ModuleDict({key: zero_init(nn.Linear(width, size)) for key, size in node_widths.items()})
        self.place = nn.Parameter(torch.zeros(count, width))
        self.rate, sizes = rate, node_widths if rate else {}
        self.log_rates = nn.ModuleDict({key: zero_init(nn.Linear(width, size)) for key, size in sizes.items()})

    def read(
        self, tokenizer: ParamTokenizer, number: int, answer: Tensor, direction: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """(B, n, d) for each group: what tokens are told of an answer (B, P) and of the direction of the gradient."""
        dtype = self.place.dtype
        values = tokenizer.encode(answer.to(dtype))
        told: list[Tensor] = [self.place[number]] * len(tokenizer.groups)
        for block in tokenizer.node_blocks:
            seen = torch.cat((values[block.name], direction[block.name].to(dtype)), dim=-1)
            told[block.groups[0]] = told[block.groups[0]] + self.encoders[block.key](seen)
        return told

    def change(self, tokenizer: ParamTokenizer, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What tokens (B, n, d) of all groups add to the answer, (B, P), and rates (B, P) of steps; None for none."""

        def decoded(layers: nn.ModuleDict) -> Tensor:
            spans = {block.name: tokenizer.spans[block.groups[0]] for block in tokenizer.node_blocks}
            parts = {block.name: layers[block.key](x[:, spans[block.name]]).float() for block in tokenizer.node_blocks}
            return tokenizer.decode(parts)

        return decoded(self.decoders), self.rate * decoded(self.log_rates).exp() if self.rate else None


def direction_of(tokenizer: ParamTokenizer, gradient: Tensor) -> dict[str, Tensor]:
    """The gradient (B, P) by block, (B, n, size) brought to a mean square of one in each block of each network."""
    slopes = tokenizer.encode(gradient.float())
    scales = {name: slope.square().mean((1, 2), keepdim=True).sqrt() + _MIN_SIZE for name, slope in slopes.items()}
    return {name: slope / scales[name] for name, slope in slopes.items()}


def gradient_on_examples(task: Task, params: Tensor, examples: Examples, *, unlabelled: bool = True) -> Tensor:
    """Gradients (B, P) of the loss of networks (B, P) on the examples of their prompts; zeros without.

    Of those without a label, it is what the outputs of a network that reads them as probabilities leave undecided, or,
    if `unlabelled` is False, nothing.
    """
    is_given = examples.is_given.view(-1, *[1] * (examples.targets.ndim - 1))
    has_label = (examples.targets != NO_LABEL) & is_given
    with torch.enable_grad(), torch.autocast(params.device.type, enabled=False):
        params = params.detach().requires_grad_()
        outputs = task.predict(params, examples.inputs)  # (B, E, ..., K)
        _, by_outputs = task.objective.loss_and_grad(outputs.detach(), examples.targets.clamp(min=0))
        by_outputs = by_outputs * has_label[..., None]
        if unlabelled and isinstance(task.objective, Probabilistic):
            seen = outputs.detach().requires_grad_()
            loss = undecided(task.objective.log_probs(seen).flatten(1, -2), (is_given & ~has_label).flatten(1))
            by_outputs = by_outputs + torch.autograd.grad(loss.sum(), seen)[0]
        (gradient,) = torch.autograd.grad(outputs, params, by_outputs)
    return gradient


def undecided(log_probs: Tensor, counts: Tensor) -> Tensor:
    """(B,) how unsure log-probabilities (B, E, K) are of each example, less how unsure their mean is of all: -I(X; Y).

    Without the second, the same answer to every example would be best.

    Args:
        log_probs: of B networks.
        counts: (B, E) bool, the examples that count.

    Source: Bridle et al. 1991, unsupervised classifiers, mutual information; Liang et al. 2020 (arXiv 2002.08546),
    equations 3 to 5.
    """
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)  # (B, E)
    mean = torch.logsumexp(log_probs + share.clamp(min=_MIN_SIZE).log()[..., None], dim=1, keepdim=True)
    return -((log_probs.exp() * (log_probs - mean)).sum(2) * share).sum(1)
