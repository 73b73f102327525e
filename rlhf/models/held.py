"""Weights held in fewer bits than they are computed in.

Only how a frozen matrix lies in memory changes: it is cast when it is used, so that activations, the residual stream
and gradients are what a float32 model with the same, rounded weights would have. Norms and biases, which are small,
stay float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = (torch.bfloat16, torch.float16)


class _Expanded(torch.autograd.Function):
    """x W^T + b, W being cast again in the backward pass: autograd would keep every cast matrix until then."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(inputs, _expanded(layer).to(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ _expanded(ctx.layer).to(gradient.dtype), None


def _expanded(layer: nn.Linear) -> Tensor:
    if layer.weight.is_floating_point():
        return layer.weight
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).detach()


class HeldLinear(nn.Linear):
    """A linear layer whose weight may have fewer bits than its input. Under autocast both are cast anyway."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype == input.dtype or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return _Expanded.apply(input, self)  # type: ignore[no-any-return]


class HeldEmbedding(nn.Embedding):
    """Embeddings of few bits that begin a float32 residual stream."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


_HELD: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: HeldLinear, nn.Embedding: HeldEmbedding}


@functools.cache
def _weight_only(kind: type[nn.Module]) -> type[nn.Module]:
    """A layer of bitsandbytes whose weight alone has few bits, in every pass.

    Its int8 layer rounds activations too, by whatever else is in the batch, so that a text's logprobs would depend on
    its neighbours. On a CPU with AVX512-BF16 its int4 layer repacks its weight in place at the first pass without a
    gradient; later passes round activations to bfloat16, and their gradients stop there without a word.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.weight.dtype == torch.uint8 and x.device.type != "cpu":  # int4 on a GPU: the library's own kernel
            return kind.forward(self, x)  # type: ignore[no-any-return]
        return _Expanded.apply(x, self)  # type: ignore[no-any-return]

    return type(f"Held{kind.__name__}", (kind,), {"forward": forward})


def hold(model: nn.Module) -> None:
    """Make a model that was loaded in fewer bits compute as if it were float32, in place; others are left alone."""
    kept = set()
    for module in model.modules():
        if type(module) in _HELD and getattr(module, "weight").dtype in SHORT:  # noqa: B009  # pyright: a Module has any
            module.__class__ = _HELD[type(module)]
        if isinstance(module, (HeldLinear, HeldEmbedding)):
            kept.add(id(module.weight))
        elif type(module).__name__ in ("Linear8bitLt", "Linear4bit"):
            module.__class__ = _weight_only(type(module))
    for parameter in model.parameters():
        if parameter.dtype in SHORT and id(parameter) not in kept:
            parameter.data = parameter.data.float()


def widened(layer: nn.Module) -> nn.Module:
    """A layer held in fewer bits as a float32 copy, for where it would be cast for every token; others as they are."""
    if not isinstance(layer, HeldLinear) or layer.weight.dtype not in SHORT:
        return layer
    twin = nn.Linear(layer.in_features, layer.out_features, device="meta")
    twin._parameters = {
        name: None if value is None else nn.Parameter(value.detach().float(), requires_grad=False)
        for name, value in layer._parameters.items()
    }
    return twin


def to_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters what an optimizer's small steps need, in place."""
    for parameter in parameters:
        parameter.data = parameter.data.float()
