"""GPTQ on ggml's q4_0 grid: round weights so that a layer's outputs on given rows change least (arXiv 2210.17323).

Each column is rounded in turn and what that costs the outputs is made good by the columns that are still to come, those
that carry most first. Before that the scale of each block is searched, by the same inputs. The inputs that count are
those that the layer gets behind layers which are rounded already. No training.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from edgestill.distill.student.grid_rule import BLOCK, dequantize

DAMPING = 0.01  # of the mean diagonal of the Hessian, added to it; the published default
# The value farthest from zero becomes code -8 (as ggml has it) or 7, or is cut off at one of these shares of it.
SHARES = (1.0, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75)
LARGEST_CODES = (-8, 7)
Codes = tuple[Tensor, Tensor]


@torch.no_grad()
def round_layers(layers: Mapping[str, torch.nn.Linear], forward: Callable[[], object]) -> dict[str, Codes]:
    """Put every layer's weight on the q4_0 grid, in the order in which one forward pass reaches them.

    Args:
        layers: by name; their weights, (N, K) float32, become the rounded ones, in place.
        forward: one pass over all calibration rows; it must reach every layer once.

    Returns:
        name -> (codes (N, K / 32, 32) int8, scales (N, K / 32) float16).
    """
    rounded: dict[str, Codes] = {}
    seen: list[tuple[Tensor, Inputs]] = []  # the last one: query, key and value share theirs

    def reach(name: str, layer: torch.nn.Linear, args: tuple[Tensor, ...]) -> None:
        if not seen or seen[0][0] is not args[0]:
            seen[:] = [(args[0], Inputs.of(args[0].flatten(0, -2).float()))]
        rounded[name] = round_weight(layer.weight, seen[0][1])
        layer.weight.copy_(dequantize(*rounded[name]))

    with _before(layers, torch.autocast("cpu", enabled=False)(reach)):  # the Hessian wants float32
        forward()
    return {name: rounded[name] for name in layers}


@contextmanager
def _before(
    layers: Mapping[str, torch.nn.Linear], reach: Callable[[str, torch.nn.Linear, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    hooks = [
        layer.register_forward_pre_hook(functools.partial(lambda name, layer, args: reach(name, layer, args), name))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Inputs:
    """What GPTQ knows of a layer's K inputs.

    energy (K,): of each input, the diagonal of the Hessian; order (K,): inputs from the strongest to the weakest;
    factor (K, K): upper Cholesky factor of the inverse of the damped Hessian, in that order.
    """

    energy: Tensor
    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Inputs":
        """From the layer's inputs (T, K), float32."""
        hessian = x.t() @ x
        energy = hessian.diagonal().clone()
        order = energy.argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
        hessian.diagonal()[hessian.diagonal() == 0] = 1  # an input that is never there
        hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return cls(energy, order, torch.linalg.cholesky(inverse, upper=True))


def round_weight(weight: Tensor, inputs: Inputs) -> Codes:
    """One weight on the q4_0 grid, (N, K) float32; see `round_layers` for what comes back."""
    scales = search_scales(weight, inputs.energy).t().contiguous()  # (K / 32, N): a column of the weight is a row here
    inverse = torch.where(scales == 0, 0, 1 / scales)
    rest = weight.t()[inputs.order].contiguous()
    codes = torch.empty(rest.shape, dtype=torch.int8)
    places: list[int] = inputs.order.tolist()
    for start in range(0, len(rest), BLOCK):
        here = slice(start, start + BLOCK)
        some, own = rest[here], inputs.factor[here, here]
        errors = torch.empty_like(some)
        for k, place in enumerate(places[here]):
            block = place // BLOCK
            code = (some[k] * inverse[block]).round_().clamp_(-8, 7)
            codes[place] = code.to(torch.int8)
            errors[k] = (some[k] - code * scales[block]) / own[k, k]
            some[k + 1 :].addr_(own[k, k + 1 :], errors[k], alpha=-1)
        rest[here.stop :].addmm_(inputs.factor[here, here.stop :].t(), errors, alpha=-1)
    return codes.t().contiguous().unflatten(-1, (-1, BLOCK)), scales.t().contiguous().half()


def search_scales(weight: Tensor, energy: Tensor) -> Tensor:
    """The scale of each block, one that float16 holds, under which rounding to nearest costs the outputs least.

    Args:
        weight: (N, K) float32.
        energy: (K,) of the inputs.

    Returns:
        (N, K / 32) float32.
    """
    blocks, energy = weight.unflatten(-1, (-1, BLOCK)), energy.unflatten(-1, (-1, BLOCK))
    farthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    best, least = torch.zeros_like(farthest), torch.full_like(farthest, torch.inf)
    for largest in LARGEST_CODES:
        for share in SHARES:
            scale = (farthest * (share / largest)).half().float()
            codes = (blocks * torch.where(scale == 0, 0, 1 / scale)).round_().clamp_(-8, 7)
            cost = (blocks - codes * scale).square_().mul_(energy).sum(-1, keepdim=True)
            best, least = torch.where(cost < least, scale, best), torch.minimum(cost, least)
    return best[..., 0]
