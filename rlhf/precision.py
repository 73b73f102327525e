"""Arithmetic in fewer bits: the autocast that hardware.precision asks for, and the loss scale that float16 needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""hardware.precision -> what matrix products are computed in; None: as the weights are."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of every forward pass; does nothing for fp32."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def without_cudnn_attention() -> None:
    """Never attention by cuDNN, torch's first choice on Hopper and Blackwell.

    It plans anew for every shape, of which texts of many lengths have many, has another kernel with a gradient than
    without, so that the first ratio would not be 1, and gives NaN at some lengths (pytorch issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


class LossScaler:
    """Keeps float16 gradients from underflowing to 0: losses times a factor, gradients divided by it.

    A gradient that overflows costs its optimizer step and halves the factor; `GROWTH_INTERVAL` steps in a row without
    one double it. Switched off, the factor is 1 and an overflow is an error.
    """

    START, LOWEST, GROWTH_INTERVAL = 2.0**16, 1.0, 2000

    def __init__(self, precision: str) -> None:
        self.enabled = precision == "fp16"
        self.factor = self.START if self.enabled else 1.0
        self.good_steps = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call backward on."""
        return loss * self.factor if self.enabled else loss

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the factor; an overflow stays one."""
        if self.enabled:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.factor)

    def forgives(self, norm: float) -> bool:
        """Whether a gradient of this norm is an overflow that a smaller factor may cure."""
        return self.enabled and not math.isfinite(norm) and self.factor > self.LOWEST

    def stepped(self, *, overflow: bool) -> None:
        """Adjust the factor after an optimizer step that was done or, on overflow, left out."""
        if not self.enabled:
            return
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.factor = max(self.LOWEST, self.factor / 2)
        elif self.good_steps == self.GROWTH_INTERVAL:
            self.factor, self.good_steps = 2 * self.factor, 0

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.good_steps = float(state["factor"]), int(state["good_steps"])
