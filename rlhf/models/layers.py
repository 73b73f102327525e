"""Modules that share tensors with a model and compute with them in another way.

model.frozen_weights changes how a frozen matrix lies in memory alone: it is cast when it is used, so that activations,
residual stream and gradients are those of a float32 model with the same, rounded weights. Norms and biases, which are
small, stay float32. Sampling, one token a row, runs twins whose weights are cast once or multiplied from the left.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from rlhf.config.packages import ACCELERATE, BITSANDBYTES
from rlhf.models.hub import ModelError
from rlhf.precision import AUTOCAST

M = TypeVar("M", bound=nn.Module)
SHORT = (torch.bfloat16, torch.float16)
QUANTISED = ("int8", "int4")
FEW_ROWS = range(8, 49)
"""MKL reads a weight as nn.Linear keeps it at half of its speed or less for so many rows; as the left factor it does
not (tests/benchmarks/README.md)."""
LARGE = 2**16 + 1
"""Numbers of a weight from which on that matters; smaller ones stay in the cache."""


@dataclass(frozen=True)
class FrozenWeights:
    """How loaded weights lie in memory until something trains them; see `rlhf.models.layers`."""

    weights: str = "float32"
    """model.frozen_weights."""
    precision: str = "fp32"
    """hardware.precision, which int8 and int4 compute in."""
    device: str = "cpu"
    """Where int8 and int4 weights are made."""

    @property
    def dtype(self) -> torch.dtype:
        """What is read from disk becomes this at once: a large model is never in memory as float32."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.weights, torch.float32)

    def options(self) -> dict[str, Any]:
        """For `from_pretrained`.

        Raises:
            ModelError: bitsandbytes is missing.
        """
        if self.weights not in QUANTISED:
            return {"dtype": self.dtype}
        if problem := BITSANDBYTES.missing_for(self.weights) or ACCELERATE.missing_for(self.weights):
            raise ModelError(problem)
        compute = AUTOCAST[self.precision] or torch.float32
        from transformers import BitsAndBytesConfig

        quantised = BitsAndBytesConfig(
            load_in_8bit=self.weights == "int8",
            load_in_4bit=self.weights == "int4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=["lm_head", "embed_out", "score"],
        )
        return {"dtype": torch.float32, "quantization_config": quantised, "device_map": {"": self.device}}


FLOAT32 = FrozenWeights()


def with_modules(module: M, **replaced: nn.Module) -> M:
    """A module that shares everything with `module` but the named children."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **replaced}  # copy.copy shares the dict itself
    return twin


def replaced_layers(module: nn.Module, twin: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A module that shares everything with `module` but the layers in it for which `twin` gives others."""
    if (other := twin(module)) is not module:
        return other
    children = {name: (child, replaced_layers(child, twin)) for name, child in module.named_children()}
    changed = {name: new for name, (child, new) in children.items() if new is not child}
    return with_modules(module, **changed) if changed else module


def linear(weight: Tensor, bias: Tensor | None, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A layer of tensors that are there; frozen, where they are no parameters of something else."""
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            shared = isinstance(tensor, nn.Parameter)
            setattr(layer, name, tensor if shared else nn.Parameter(tensor, requires_grad=False))
    return layer


class _CastProduct(torch.autograd.Function):
    """x W^T + b, W being cast again in the backward pass: autograd would keep every cast matrix until then."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(inputs, dequantize_module_weight(layer).to(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ dequantize_module_weight(ctx.layer).to(gradient.dtype), None


class ShortLinear(nn.Linear):
    """A linear layer whose weight may have fewer bits than its input. Under autocast both are cast anyway."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype == input.dtype or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return _CastProduct.apply(input, self)  # type: ignore[no-any-return]


class ShortEmbedding(nn.Embedding):
    """Embeddings of few bits that begin a float32 residual stream."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


@functools.cache
def _weight_only(kind: Any) -> Any:
    """A class of bitsandbytes' layers, of which the weight alone has few bits. peft looks for the library's classes.

    Its int8 layer rounds activations too, by whatever else is in the batch, so that a text's logprobs would depend on
    its neighbours. On a CPU with AVX512-BF16 its int4 layer repacks its weight in place at the first pass without a
    gradient; later passes give other numbers, by a kernel that has no gradient of its own.
    """

    class WeightOnly(kind):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight.dtype == torch.uint8 and x.device.type != "cpu":  # int4 on a GPU: the library's own kernel
                return super().forward(x)
            return _CastProduct.apply(x, self)  # type: ignore[no-any-return]

    return WeightOnly


def compute_in_float32(model: nn.Module) -> None:
    """Replace the layers of a model that was loaded in fewer bits by those that compute as a float32 model's would."""
    short = set()
    for name, module in list(model.named_modules()):
        kind, weight = type(module), getattr(module, "weight", None)
        if kind.__name__ in ("Linear8bitLt", "Linear4bit"):
            twin = object.__new__(_weight_only(kind))
            vars(twin).update(vars(module))
            model.set_submodule(name, twin)
        elif kind in (nn.Linear, nn.Embedding, ShortLinear, ShortEmbedding) and weight is not None:
            if weight.dtype not in SHORT:
                continue
            short.add(weight)
            if isinstance(module, nn.Linear):
                model.set_submodule(name, linear(weight, module.bias, ShortLinear))
            elif isinstance(module, nn.Embedding):
                embedding = ShortEmbedding(*weight.shape, padding_idx=module.padding_idx, device="meta")
                embedding.weight = weight
                model.set_submodule(name, embedding)
    for parameter in model.parameters():
        if parameter.dtype in SHORT and parameter not in short:
            parameter.data = parameter.data.float()


def to_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters what an optimizer's small steps need, in place."""
    for parameter in parameters:
        parameter.data = parameter.data.float()


class FewRowsLinear(nn.Linear):
    """nn.Linear to rounding, whose rows are strided in memory where they are few."""

    def forward(self, input: Tensor) -> Tensor:
        # Flat, since a product of three dimensions would go row by row where another has left the rows strided.
        rows = input.reshape(-1, self.in_features)
        if len(rows) not in FEW_ROWS or self.weight.numel() < LARGE:
            product = F.linear(rows, self.weight, self.bias)
        else:
            product = torch.mm(self.weight, rows.t()).t()
            if self.bias is not None:
                product += self.bias
        return product.view(*input.shape[:-1], self.weight.shape[0])


def for_few_rows(module: nn.Module) -> nn.Module:
    """A twin on the CPU, for no gradients, that shares every tensor."""

    def twin(layer: nn.Module) -> nn.Module:
        if type(layer) is not nn.Linear or layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
            return layer
        return linear(layer.weight, layer.bias, FewRowsLinear)

    return replaced_layers(module, twin) if torch.backends.mkl.is_available() else module


def sampling_head(layer: nn.Module) -> nn.Module:
    """A language head as tokens are drawn by it, one a row; one of fewer bits as a float32 twin, cast once."""
    if isinstance(layer, ShortLinear):
        layer = linear(layer.weight.detach().float(), None if layer.bias is None else layer.bias.detach())
    return for_few_rows(layer)


class CastWeights:
    """A twin of a module whose float32 matrices are cast; norms and whatever has fewer bits already are shared.

    Autocast would cast a frozen matrix, and the bias of one that has fewer bits, anew for every token.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        """
        Args:
            dtype: None: nothing is cast.
        """
        self.dtype = dtype
        self._cast: list[tuple[Tensor, Tensor]] = []
        self.module = module if dtype is None else replaced_layers(module, self._twin)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast again, in place, what training may have moved."""
        for cast, original in self._cast:
            cast.copy_(original)

    def _twin(self, layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.Linear) or layer.weight.dtype not in (torch.float32, self.dtype):
            return layer
        return linear(self._copy(layer.weight), None if layer.bias is None else self._copy(layer.bias))

    def _copy(self, tensor: Tensor) -> Tensor:
        original = tensor.detach()
        cast = original.to(self.dtype)
        if cast.dtype != original.dtype:
            self._cast.append((cast, original))
        return cast
