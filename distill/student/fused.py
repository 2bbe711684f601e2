"""A transformers model with LoRA, rewired to train fast: the same sums in fewer, larger products. No loop, no loss.

What peft computes for one linear layer, y = x W' + s (x A') B', takes three products forward and five backward, most
of them slivers. Here W and s B stand side by side in one matrix, and layers that read the same input (query, key and
value; gate and up) share it: y = [x, x A'] [W, s B]', two products forward and four backward for a whole group.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import gelu, silu

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# what transformers calls them -> what `_GatedProduct` does
GATES = {"SiLUActivation": "silu", "SiLU": "silu", "GELUTanh": "gelu_tanh"}
# transformers' class -> what a frozen one multiplies by, and its epsilon; Gemma adds 1 to the weight, in float32
RMS_NORMS: dict[str, Callable[[Any], tuple[Tensor, float]]] = {
    **dict.fromkeys(
        ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), lambda norm: (norm.weight, norm.variance_epsilon)
    ),
    "Gemma3RMSNorm": lambda norm: (1 + norm.weight.detach().float(), norm.eps),
}


def fuse(model: Any, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Rewire a peft model in place; what it computes and what its adapter is called stay.

    Args:
        model: with one LoRA adapter, without dropout, on frozen linear layers.
        dtype: of inputs and products; the adapter stays float32.

    Returns:
        What is to be trained: for each group A (n R, I) and B (O, R) of its n layers, one under the other. The
        adapter's own parameters become views of these.
    """
    trained: list[torch.nn.Parameter] = []
    for module in list(model.modules()):
        children = {name: child for name, child in module.named_children() if hasattr(child, "lora_A")}
        groups = [[children.pop(name) for name in names] for names in SAME_INPUT if children.keys() >= set(names)]
        for group in [*groups, *([child] for child in children.values())]:
            fused = FusedLora(group, dtype)
            trained += [fused.a, fused.b]
            for place, child in enumerate(group):
                child.forward = lambda x, fused=fused, place=place: fused.part(x, place)
            gate = GATES.get(type(getattr(module, "act_fn", None)).__name__)
            if gate is not None and group[0] is getattr(module, "gate_proj", None):
                module.forward = lambda x, fused=fused, down=module.down_proj, gate=gate: down(
                    _GatedProduct.apply(fused.whole(x), gate)
                )
        if type(module).__name__ in RMS_NORMS and not module.weight.requires_grad:
            weight, epsilon = RMS_NORMS[type(module).__name__](module)
            module.forward = lambda x, weight=weight, epsilon=epsilon: _RmsNorm.apply(x, weight, epsilon)
    return trained


class FusedLora:
    """n linear layers with LoRA of rank R and scale s that read the same input, as one product.

    wide (O, I + n R): the weights one under the other, then each s B in columns of its own; down (n R, I).
    """

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        """Moves the frozen weights into `wide` and the adapter into `a` and `b`; the layers keep views of them."""
        weights = [layer.base_layer.weight for layer in layers]
        self.outs, self.inputs = [len(weight) for weight in weights], weights[0].shape[1]
        self.a = _stack([layer.lora_A["default"].weight for layer in layers])
        self.b = _stack([layer.lora_B["default"].weight for layer in layers])
        self.rank, self.scale = self.b.shape[1], layers[0].scaling["default"]
        self.wide = torch.zeros(sum(self.outs), self.inputs + len(self.a), dtype=dtype)
        self.down = torch.empty(self.a.shape, dtype=dtype)
        rows = self.wide.split(self.outs)
        self.up = [row[:, self.inputs + i * self.rank :][:, : self.rank] for i, row in enumerate(rows)]
        for weight, row in zip(weights, rows, strict=True):
            row[:, : self.inputs] = weight.detach()
            weight.data = row[:, : self.inputs]
        biases = [layer.base_layer.bias for layer in layers]
        assert len({bias is None for bias in biases}) == 1, "a group has all its biases or none"
        self.bias = None if biases[0] is None else torch.cat([bias.detach().to(dtype) for bias in biases])
        self.x: Tensor | None = None
        self.parts: Sequence[Tensor] = ()

    def part(self, x: Tensor, place: int) -> Tensor:
        """Output of the layer at `place`: the first that is asked for `x` computes all, the last lets go of them."""
        if self.x is not x:
            self.x, self.parts = x, self.whole(x).split(self.outs, -1)
        part = self.parts[place]
        if place == len(self.outs) - 1:
            self.x, self.parts = None, ()
        return part

    def whole(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), the layers' outputs side by side."""
        y: Tensor = _FusedLora.apply(x.reshape(-1, self.inputs), self.a, self.b, self)
        return y.view(*x.shape[:-1], -1)

    def refresh(self) -> None:
        """Take over the adapter, which changes with every step of the optimizer."""
        self.down.copy_(self.a)
        for b, up in zip(self.b.detach().split(self.outs), self.up, strict=True):
            torch.mul(b, self.scale, out=up)


class _FusedLora(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, group: FusedLora) -> Tensor:  # noqa: ARG004 - for autograd
        group.refresh()
        low = x @ group.down.t()
        ctx.save_for_backward(x, low)
        ctx.group = group
        both = torch.cat([x, low], 1)
        return both @ group.wide.t() if group.bias is None else torch.addmm(group.bias, both, group.wide.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (dy,), (x, low) = grads, ctx.saved_tensors
        group: FusedLora = ctx.group
        both = dy @ group.wide
        dlow = both[:, group.inputs :].contiguous()
        dx = torch.addmm(both[:, : group.inputs], dlow, group.down) if ctx.needs_input_grad[0] else None
        crossed = (dy.t() @ low).split(group.outs)
        own = [part[:, i * group.rank : (i + 1) * group.rank] for i, part in enumerate(crossed)]
        return dx, (dlow.t() @ x).float(), torch.cat(own).float().mul_(group.scale), None


class _RmsNorm(Function):
    """x / rms(x) * w over the last dimension, w frozen; in float32 and rounded where transformers rounds.

    Before the product with w to the wider of both their types, after it to x's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        unit = (x * inverse).to(torch.promote_types(x.dtype, weight.dtype))
        ctx.save_for_backward(unit, inverse, weight)
        ctx.dtype = x.dtype
        return (unit * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        unit, inverse, weight = ctx.saved_tensors
        dunit, wide = (grads[0] * weight).float(), unit.float()
        along = torch.linalg.vecdot(dunit, wide).div_(unit.shape[-1])[..., None]
        return dunit.addcmul_(wide, along, value=-1).mul_(inverse).to(ctx.dtype), None, None


class _GatedProduct(Function):
    """act(gate) * up, from and to halves that lie side by side: no copies to part and join them."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(both)
        ctx.activation = activation
        gate, up = both.chunk(2, -1)
        return _activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (d,), (both,) = grads, ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        out = torch.empty_like(both)
        dgate, dup = out.chunk(2, -1)
        torch.mul(d, _activate(gate, ctx.activation), out=dup)
        if ctx.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(d * up, gate, grad_input=dgate)
        else:
            torch.ops.aten.gelu_backward.grad_input(d * up, gate, approximate="tanh", grad_input=dgate)
        return out, None


def _activate(gate: Tensor, activation: str) -> Tensor:
    return silu(gate) if activation == "silu" else gelu(gate, approximate="tanh")


def _stack(parameters: Sequence[torch.nn.Parameter]) -> torch.nn.Parameter:
    """The matrices one under the other as one parameter; they become views of it."""
    whole = torch.nn.Parameter(torch.cat([p.detach().float() for p in parameters]))
    for parameter, view in zip(parameters, whole.detach().split([len(p) for p in parameters]), strict=True):
        parameter.requires_grad_(False).data = view
    return whole
