"""The loop that SFT and reward-model training share: shuffled minibatches of a fixed data set, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config import SupervisedConfig, TrainableConfig
from rlhf.distributed import own_rows, sum_gradients, sum_numbers
from rlhf.finite import NotFinite, check_metrics, check_weights
from rlhf.models.layers import to_float32
from rlhf.models.modes import adapting, lora_config, split, top_parameters
from rlhf.optimization import BadSteps, adamw, clip_and_step, schedule_factor, set_learning_rate
from rlhf.precision import LossScaler
from rlhf.random import endless_order
from rlhf.runs.checkpoint import load_training, training_tensors
from rlhf.stages.context import RunContext

BETAS, EPS = (0.9, 0.95), 1e-8
"""AdamW as in the released SFT and reward-model scripts."""


@dataclass(frozen=True)
class SupervisedTask:
    """What differs between SFT and the reward model."""

    settings: SupervisedConfig
    parameters: dict[str, nn.Parameter]
    size: int
    """Training examples."""
    step: Callable[[Tensor], tuple[float, Callable[[Tensor], Tensor]]]
    """Rows of an optimizer step -> what its summed loss is divided by (tokens, pairs), and what gives the summed loss,
    with gradient, of some of them: of `rows[places]` for `places`."""
    evaluate: Callable[[], dict[str, float]]
    """-> eval/* on held-out data."""
    option: str
    """The config's section of `settings`."""
    describe: Callable[[Tensor], Sequence[Mapping[str, Any]]]
    """Rows -> the examples, as a bad step's batch is written down."""

    @property
    def remedy(self) -> str:
        """What may keep losses and weights finite."""
        return f"a smaller {self.option}.learning_rate"


def select_parameters(model: PreTrainedModel, train: TrainableConfig, option: str) -> dict[str, nn.Parameter]:
    """Freeze all but what `train`, the section `option` of the config, names; a head called `score` always trains."""
    if train.mode != "all":
        model.requires_grad_(False)
    if train.mode == "last_k":
        for parameter in top_parameters(split(model.base_model, train.last_k, option)[1]):
            parameter.requires_grad_(True)
    if train.mode == "lora":
        from peft import inject_adapter_in_model

        adapters = lora_config(train, model, option)
        if hasattr(model, "score"):
            adapters.exclude_modules = ["score"]  # a reward model's head trains as it is
        with adapting(option):
            inject_adapter_in_model(adapters, model)
    for name, parameter in model.named_parameters():
        if name.startswith("score."):
            parameter.requires_grad_(True)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    to_float32(parameters.values())
    return parameters


def train(context: RunContext, task: SupervisedTask) -> dict[str, float]:
    """Run `task` to its last step; returns the last evaluation."""
    settings = task.settings
    optimizer = adamw(
        [(task.parameters.values(), settings.learning_rate)],
        betas=list(BETAS),
        eps=EPS,
        weight_decay=settings.weight_decay,
    )
    done, scaler = 0, LossScaler(context.config.hardware.precision)
    bad_steps = BadSteps(context.folder, f"{task.option}.max_bad_steps", settings.max_bad_steps)

    def log(step: int, metrics: Mapping[str, float], evaluates: bool) -> None:
        evaluation = task.evaluate() if evaluates else {}
        check_metrics(evaluation, task.remedy)
        counters = {"step": step, "iteration": step, "samples": step * settings.batch_size}
        context.folder.log({**counters, "seconds": context.seconds(), **metrics, **evaluation})

    if (checkpoint := context.take_checkpoint()) is not None:
        load_training(task.parameters, optimizer, checkpoint.tensors)
        with checkpoint.reading() as state:
            done, bad_steps.count = int(state["step"]), int(state["bad_steps"])
            scaler.load_state_dict(state["scaler"])
        del checkpoint  # its tensors are in use by now
    else:
        log(0, {}, evaluates=True)
    for step in range(done + 1, settings.steps + 1):
        first_row = (step - 1) * settings.batch_size
        rows = endless_order(settings.seed, "examples", first_row, settings.batch_size, task.size)
        try:
            metrics = _optimizer_step(task, optimizer, scaler, step, rows)
        except NotFinite as error:
            optimizer.zero_grad(set_to_none=True)
            bad_steps.skip(error, step, task.parameters, lambda rows=rows: task.describe(rows))
            metrics = {}
        check_weights(task.parameters, f"after optimizer step {step}", task.remedy)
        if bad_steps.count:
            metrics["train/bad_steps"] = float(bad_steps.count)
        last = step == settings.steps
        log(step, metrics, evaluates=last or step % settings.eval_every == 0)
        if last or context.asked_to_stop() or step % context.config.checkpoint.checkpoint_every == 0:
            state = {"step": step, "scaler": scaler.state_dict(), "bad_steps": bad_steps.count}
            context.save(step, training_tensors(task.parameters, optimizer), state)
            if not last:
                context.stop_if_asked()
    return context.folder.last_evaluation()


def _optimizer_step(
    task: SupervisedTask, optimizer: torch.optim.Optimizer, scaler: LossScaler, step: int, rows: Tensor
) -> dict[str, float]:
    """One step on the examples `rows`; returns its metrics. NotFinite leaves parameters and moments as they were."""
    settings = task.settings
    weight, summed_loss = task.step(rows)
    total = 0.0
    for places in own_rows(len(rows)).split(settings.micro_batch_size):
        loss = summed_loss(places) / weight
        scaler.scaled(loss).backward()
        total += float(loss.detach())
    total = sum_numbers({"loss": total})["loss"]
    if not math.isfinite(total):
        raise NotFinite(f"the loss is {total} at optimizer step {step}; try {task.remedy}")
    sum_gradients(task.parameters.values())
    set_learning_rate(optimizer, schedule_factor(step - 1, settings.steps, settings.warmup_steps, settings.schedule))
    networks = {"network": list(task.parameters.values())}
    norms = clip_and_step(optimizer, networks, settings.max_grad_norm, step, scaler, {"network": task.remedy})
    metrics = {"train/loss": total} | ({"train/grad_norm": norms["network"]} if norms else {})
    if scaler.enabled:
        metrics["train/skipped_steps"] = float(not norms)
    return metrics
