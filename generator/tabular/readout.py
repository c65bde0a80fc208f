"""The readout of a network on given hidden units: penalised logistic regression, solved as a sum over rows.

Legend: B tables, n rows, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def solve_readout(gram: Tensor, targets: Tensor, offset: Tensor, penalty: Tensor, rates: Tensor) -> Tensor:
    """Coefficients (B, n, K) of the rows; the weights of hidden units (B, n, H) are `hidden.mT @ coefficients`.

    They are steps towards the minimum of sum_i cross_entropy_i + penalty / 2 * |weights|^2. The curvature of the
    cross-entropy in the logits is at most 1/2, so that every step solves with one and the same matrix, and at rates of
    1 none overshoots.

    Args:
        gram: (B, n, n) inner products of the rows' hidden units.
        targets: (B, n, K) one-hot.
        offset: (B, 1, K) added to all logits; very negative for classes that there are not.
        penalty: (B, 1, 1), positive.
        rates: (steps,) by which the steps are multiplied.

    Source: Böhning 1992, Multinomial logistic regression algorithm, equation 2.3 and the bound of theorem 1.
    """
    factor = torch.linalg.cholesky(gram / 2 + penalty * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
    coefficients = torch.zeros_like(targets)
    for rate in rates:
        residual = targets - (gram @ coefficients + offset).softmax(-1)
        coefficients = coefficients + rate * torch.cholesky_solve(residual - penalty * coefficients, factor)
    return coefficients
