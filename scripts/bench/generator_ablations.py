"""What a generator loses when a part of it is taken away: the training of `scripts.train_generator`, without the part.

    python -m scripts.bench.generator_ablations PART zoo=PATH out=PATH [overrides of scripts.train_generator]

Parts: `joint_tokens` (no attention: the tokens of a network do not see each other), `normalization` (one scale for all
parameters in place of a mean and a deviation for each feature). What options can switch off needs no script:
`generator.model.recurrence=0`, `generator.tokenizer=chunk`, `generator.max_runs=64`, `generator.objective.*`. With
independent tokens switch the recurrence off too, since it joins them. Outputs as those of `scripts.train_generator`,
except that the saved pipeline of independent tokens samples with attention.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
from torch import Tensor

from generator.model import denoiser
from generator.tokens.normalizer import ParamNormalizer
from zoo.networks.layout import ParamLayout

from ..cli import run
from ..train_generator import main as train


def without_attention() -> AbstractContextManager[object]:
    """Every token attends to itself alone."""
    return patch.object(denoiser, "attend", lambda query, key, value: value)


def with_a_single_scale() -> AbstractContextManager[object]:
    """Parameters divided by the root mean square of all of them."""
    fit = ParamNormalizer.fit

    def fit_single(
        tokenizer: str, layouts: Sequence[ParamLayout], params: Sequence[Tensor], **options: int | bool
    ) -> ParamNormalizer:
        normalizer = fit(tokenizer, layouts, params, **options)
        normalizer.mean.zero_()
        normalizer.std.fill_(float(torch.cat([networks.flatten() for networks in params]).square().mean().sqrt()))
        return normalizer

    return patch.object(ParamNormalizer, "fit", fit_single)


PARTS = {"joint_tokens": without_attention, "normalization": with_a_single_scale}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(f"{__doc__}\nerror: the first argument must be one of {sorted(PARTS)}")
    with PARTS[sys.argv.pop(1)]():
        run(train, "train_generator")
