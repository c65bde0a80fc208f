"""Corrections: the model looks at what its answer makes of the prompt's examples, and answers again.

The network that was predicted, in one pass or in a step of diffusion, is run on the examples of its prompt, and the
gradient of its loss on them is given back to the model, as features of the tokens beside the answer itself. The model's
blocks are run again and what comes out is added to the answer. So a correction is the step of a learned optimizer that
sees the examples, too. Where examples have no labels there is no gradient, and the second look is at the answer alone.

Source: Marino et al. 2018, iterative amortized inference (arXiv 1807.09356), section 3.2; gradients as inputs:
Andrychowicz et al. 2016 (arXiv 1606.04474).

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
from zoo.tasks.task import Task

_MIN_SIZE: Final = 1e-8


class Corrections(nn.Module):
    """What corrections read and write.

    Args:
        node_widths: features per node by block key.
        width: d.
        count: of corrections; each is told which it is.
    """

    def __init__(self, node_widths: Mapping[str, int], width: int, count: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({key: nn.Linear(2 * size, width) for key, size in node_widths.items()})
        self.decoders = nn.ModuleDict({key: zero_init(nn.Linear(width, size)) for key, size in node_widths.items()})
        self.place = nn.Parameter(torch.zeros(count, width))

    def read(self, tokenizer: ParamTokenizer, number: int, answer: Tensor, gradient: Tensor) -> list[Tensor]:
        """(B, n, d) for each group: what tokens are told of an answer (B, P) and of the gradient (B, P) there.

        Of the gradient the direction counts: it is brought to one size in each block of each network.
        """
        dtype = self.place.dtype
        values, slopes = tokenizer.encode(answer.to(dtype)), tokenizer.encode(gradient.float())
        told: list[Tensor] = [self.place[number]] * len(tokenizer.groups)
        for block in tokenizer.node_blocks:
            slope = slopes[block.name]
            size = slope.square().mean((1, 2), keepdim=True).sqrt()
            seen = torch.cat((values[block.name], (slope / (size + _MIN_SIZE)).to(dtype)), dim=-1)
            told[block.groups[0]] = told[block.groups[0]] + self.encoders[block.key](seen)
        return told

    def change(self, tokenizer: ParamTokenizer, x: Tensor) -> Tensor:
        """What is added to the answer, (B, P), from the tokens (B, n, d) of all groups."""
        output = {
            block.name: self.decoders[block.key](x[:, tokenizer.spans[block.groups[0]]]).float()
            for block in tokenizer.node_blocks
        }
        return tokenizer.decode(output)


def gradient_on_examples(task: Task, params: Tensor, examples: Examples) -> Tensor:
    """Gradients (B, P) of the loss of networks (B, P) on the labelled examples of their prompts; zeros without."""
    has_label = (examples.targets != NO_LABEL) & examples.is_given.view(-1, *[1] * (examples.targets.ndim - 1))
    with torch.enable_grad(), torch.autocast(params.device.type, enabled=False):
        params = params.detach().requires_grad_()
        outputs = task.predict(params, examples.inputs)  # (B, E, ..., K)
        _, by_outputs = task.objective.loss_and_grad(outputs.detach(), examples.targets.clamp(min=0))
        (gradient,) = torch.autograd.grad(outputs, params, by_outputs * has_label[..., None])
    return gradient
