"""Convolutions of many networks as batched matrix products of patches.

`vmap` makes one convolution in N groups of N convolutions, and cuDNN computes a group at a time: a training step of 256
small CNNs took 5,700 kernels on an H200. As products of patches it is a few dozen, whatever N.

Legend: B examples, C input channels, O output channels, k x l kernel, h x w pixels of the output.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def with_products(module: nn.Module) -> nn.Module:
    """The same module, whose plain two-dimensional convolutions compute by products of patches."""
    for part in module.modules():
        if type(part) is nn.Conv2d and part.groups == 1 and part.padding_mode == "zeros":
            part._conv_forward = partial(_convolved, part)  # type: ignore[method-assign]
    return module


def _convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.ndim != 4 or isinstance(conv.padding, str):
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)
    rows, columns = conv.padding
    patches = _patches(F.pad(x, (columns, columns, rows, rows)), conv)  # (C, k, l, B, h, w)
    out = (weight.flatten(1) @ patches.flatten(3).flatten(0, 2)).unflatten(1, patches.shape[3:])  # (O, B, h, w)
    return (out if bias is None else out + bias[:, None, None, None]).transpose(0, 1)


def _patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """(B, C, H, W) -> (C, k, l, B, h, w), in the form whose backward pass is a sum in a fixed order."""
    spans = [dilation * (size - 1) + 1 for size, dilation in zip(conv.kernel_size, conv.dilation, strict=True)]
    if not torch.compiler.is_compiling():
        for dim, (span, stride) in enumerate(zip(spans, conv.stride, strict=True), 2):
            x = x.unfold(dim, span, stride)  # (B, C, h, w, spans)
        x = x[..., :: conv.dilation[0], :: conv.dilation[1]]
        return x.permute(1, 4, 5, 0, 2, 3)
    shifted = []  # compiled, the backward pass of `unfold` would add atomically
    for i in range(0, spans[0], conv.dilation[0]):
        for j in range(0, spans[1], conv.dilation[1]):
            bottom, right = x.shape[2] - spans[0] + i + 1, x.shape[3] - spans[1] + j + 1
            shifted.append(x[:, :, i : bottom : conv.stride[0], j : right : conv.stride[1]])
    return torch.stack(shifted).unflatten(0, conv.kernel_size).permute(3, 0, 1, 2, 4, 5)
