"""algo=custom: a class outside this project, whose results are checked where this project's own need no check."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf.algorithms.algorithm import Algorithm
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config.custom import OPTION, algorithm_class
from rlhf.config.user_code import UserCodeError


def checked_class(spec: str) -> type[Algorithm]:
    """The class of `file.py:Class`, which ends a run in one line where it returns what no algorithm does."""
    kind: Any = algorithm_class(spec)

    class Checked(kind):
        def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, **more: Tensor) -> Signal:
            signal = super().signal(rewards, values, mask, **more)
            _expect(spec, "signal", signal, Signal)
            for name, column in vars(signal).items():
                fitting = [mask.shape, mask.shape[:1]] if name == "advantages" else [mask.shape]
                if column is not None and column.shape not in fitting:
                    shapes = f"{tuple(column.shape)}, and responses are {tuple(mask.shape)}"
                    raise UserCodeError(f"{OPTION}: {spec}.signal returned {name} of shape {shapes}")
            return signal

        def before_loss(self, minibatch: TrainingBatch) -> TrainingBatch:
            batch = super().before_loss(minibatch)
            _expect(spec, "before_loss", batch, TrainingBatch)
            return batch

        def loss(self, batch: TrainingBatch, logprobs: Any, totals: Totals, /) -> LossOutput:
            output = super().loss(batch, logprobs, totals)
            _expect(spec, "loss", output, LossOutput)
            if output.loss.dim() or not output.loss.requires_grad:
                kind = f"of shape {tuple(output.loss.shape)}" if output.loss.dim() else "without a gradient"
                raise UserCodeError(f"{OPTION}: {spec}.loss returned a loss {kind}; it is one number of the logprobs")
            return output

    return Checked


def _expect(spec: str, method: str, result: object, kind: type) -> None:
    if not isinstance(result, kind):
        got, wanted = type(result).__name__, kind.__name__
        raise UserCodeError(f"{OPTION}: {spec}.{method} returned {got}; it must return a rlhf.batches.{wanted}")
