"""ggml's q4_0 and q8_0 in torch: what values of a weight become, as codes and scales. Equal, bit for bit, to the grid.

Formats: block_q4_0 and block_q8_0 of https://github.com/ggml-org/ggml, blocks of 32 along the input axis. Tests compare
these codes with the compiler's own and with the gguf package's.
"""

import torch
from torch import Tensor

BLOCK = 32


def q4_0(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round to nearest: the value farthest from zero becomes -8; codes come from the scale before it is rounded.

    Args:
        values: (N, K) float32, K a multiple of 32.

    Returns:
        codes (N, K / 32, 32) int8 in [-8, 7] and scales (N, K / 32) float16.
    """
    blocks = values.unflatten(-1, (-1, BLOCK))
    scale = q4_0_scale(blocks)
    raw = torch.trunc(blocks * _inverse(scale) + 8.5)
    return (raw.clamp_(0, 15) - 8).to(torch.int8), scale[..., 0].half()


def q4_0_scale(blocks: Tensor) -> Tensor:
    """The scale of each block before it is rounded to float16: (..., 32) -> (..., 1)."""
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -8


def q8_0(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round to nearest, halves away from zero, scale the largest magnitude / 127; shapes as `q4_0`, codes to 127."""
    blocks = values.unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    return (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8), scale[..., 0].half()


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """(N, K / 32, 32) codes and (N, K / 32) scales -> (N, K) float32: what every artifact holds."""
    return (codes.float() * scales.float()[..., None]).flatten(-2)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where that is no number: such a block's float16 scale is 0, so its codes mean nothing."""
    inverse = 1 / scale
    return torch.where(inverse.isfinite(), inverse, 0)
