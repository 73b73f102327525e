"""The RL loop: responses -> scores -> advantages -> updates, for every algorithm alike, sampled or from a data set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rlhf.bad_steps import BadSteps
from rlhf.batches import Rollouts, TrainingBatch
from rlhf.config import PPOConfig, RunConfig
from rlhf.distributed import count, sum_rows
from rlhf.evaluation import sample_rows
from rlhf.finite import NotFinite, check_metrics, check_weights
from rlhf.kl import CONTROLLERS, KLController, k1, k3, released_k3, sequence_kl
from rlhf.masked import masked_mean, masked_variance
from rlhf.models import PolicyModels
from rlhf.models.features import features_of
from rlhf.models.saving import save_policy
from rlhf.models.sharding import whole_weights
from rlhf.rewards import RunningMoments
from rlhf.runs.checkpoint import load_optimizer_tensors, load_parameter_tensors, optimizer_tensors, parameter_tensors
from rlhf.stages.context import RunContext
from rlhf.stages.setup import Setup
from rlhf.training_batch import COLUMNS, Measured, measure, training_batch
from rlhf.update import Skip, first_micro_batches, update


class Responses(Protocol):
    """Where an iteration's responses come from and what they are worth: all of them, on every rank."""

    @property
    def sampled(self) -> bool:
        """Whether the policy has just sampled them; a data set's own say nothing of the policy's KL."""
        ...

    def rollouts(self, iteration: int) -> Rollouts:
        """rollout.num_responses responses."""
        ...

    def scores(self, rollouts: Rollouts, iteration: int) -> Tensor:
        """(B,) raw scores of them."""
        ...

    def scaled(self, scores: Tensor, moments: RunningMoments) -> Tensor:
        """(B,) what the token rewards are made of."""
        ...

    def values(self, measured: Measured) -> Tensor:
        """(B, T) what advantages take for V of the state before each token."""
        ...


Iteration = Callable[[RunConfig, Setup, Responses, "Progress", int], dict[str, float]]
"""(config, setup, responses, progress, iteration) -> the row that it logs; `one_iteration` for all but ILQL."""


@dataclass
class Progress:
    """What a checkpoint keeps beside tensors. Prompts and draws follow from `iteration`."""

    controller: KLController
    bad_steps: BadSteps
    moments: RunningMoments = field(default_factory=RunningMoments)
    iteration: int = 0
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "step": self.step,
            "controller": self.controller.state_dict(),
            "moments": self.moments.state_dict(),
            "bad_steps": self.bad_steps.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bad_steps.count = int(state["bad_steps"])
        self.iteration, self.step = int(state["iteration"]), int(state["step"])
        self.controller.load_state_dict(state["controller"])
        self.moments.load_state_dict(state["moments"])


def run_loop(
    context: RunContext, setup: Setup, responses: Responses, iterate: Iteration | None = None
) -> dict[str, float]:
    """The whole run from its initial policy or its checkpoint; returns the last evaluation.

    Args:
        iterate: what an iteration does; None: `one_iteration`.
    """
    config = context.config
    progress = Progress(
        new_controller(config), context.bad_steps("optimization.max_bad_steps", config.optimization.max_bad_steps)
    )
    remedy = "a smaller optimization.learning_rate or value.learning_rate"
    metrics: dict[str, float] = {}
    if (checkpoint := context.take_checkpoint()) is not None:
        load_parameter_tensors(setup.named_parameters(), checkpoint.tensors)
        load_optimizer_tensors(setup.optimizer, checkpoint.tensors)
        with checkpoint.reading() as state:
            progress.load_state_dict(state)
            setup.models.scaler.load_state_dict(state["scaler"])
        metrics = context.folder.last_evaluation()
    else:
        metrics = evaluate(context, setup, progress)
        context.folder.log({**counters(context, progress), **metrics})
    for iteration in range(progress.iteration + 1, config.rollout.iterations + 1):
        row = (iterate or one_iteration)(config, setup, responses, progress, iteration)
        check_weights(setup.named_parameters(), f"after iteration {iteration}", remedy)
        if progress.bad_steps.count:
            row["train/bad_steps"] = float(progress.bad_steps.count)
        last = iteration == config.rollout.iterations
        if last or iteration % config.evaluation.eval_every == 0:
            metrics = evaluate(context, setup, progress)
            row |= metrics
        context.folder.log({**counters(context, progress), **row})
        if last or context.asked_to_stop() or iteration % config.checkpoint.checkpoint_every == 0:
            tensors = {
                **parameter_tensors(setup.named_parameters()),
                **optimizer_tensors(setup.optimizer),
            }
            state = {**progress.state_dict(), "scaler": setup.models.scaler.state_dict()}
            context.save(progress.step, tensors, state)
            if not last:
                context.stop_if_asked()
    final, how = context.folder.final, config.checkpoint.save_final
    weights = whole_weights(setup.models.sampler)
    context.folder.write(lambda: save_policy(setup.models, setup.tokenizer, final, how, weights))
    return metrics


def one_iteration(
    config: RunConfig, setup: Setup, responses: Responses, progress: Progress, iteration: int
) -> dict[str, float]:
    """The algorithm box: responses, scores, advantages, updates."""
    began = time.monotonic()
    rollouts = responses.rollouts(iteration)
    sampled = time.monotonic()
    scores = responses.scores(rollouts, iteration)
    if not bool(scores.isfinite().all()):
        raise NotFinite("the reward gave a score that is not finite; look at reward.path or reward_model.*")
    scaled = responses.scaled(scores, progress.moments)
    measured = measured_by_all(config, setup.models, rollouts, iteration)
    measured = dataclasses.replace(measured, values=responses.values(measured))
    kl_coef = progress.controller.coef
    batch = training_batch(rollouts, measured, scaled, kl_coef, config.advantages)
    metrics = rollout_metrics(config, rollouts, measured, batch, scores, responses.sampled) | {"kl_coef": kl_coef}
    if responses.sampled:
        progress.controller.update(metrics["kl"], len(scores))
    prepared = time.monotonic()
    update_metrics, progress.step = update(
        config,
        setup.models,
        setup.optimizer,
        batch,
        measured.features,
        iteration=iteration,
        step=progress.step,
        skip=skipping(setup, progress, rollouts, {"score": scores, **batch.numbers()}),
    )
    progress.iteration = iteration
    ended = time.monotonic()
    tokens = int(rollouts.lengths.sum())
    row = {f"train/{name}": value for name, value in {**metrics, **update_metrics}.items()}
    row |= {
        "perf/rollout_seconds": sampled - began,
        "perf/scoring_seconds": prepared - sampled,
        "perf/update_seconds": ended - prepared,
        "perf/tokens_per_second": tokens / (ended - began),
    }
    if responses.sampled:
        row["perf/sampler_logprob_gap"] = float(
            masked_mean((rollouts.sampler_logprobs - measured.old_logprobs).abs(), rollouts.mask)
        )
    return row


def skipping(setup: Setup, progress: Progress, rollouts: Rollouts, numbers: Mapping[str, Tensor]) -> Skip:
    """What an update tells of a bad step: its responses are written down, with these numbers of each.

    Args:
        numbers: (B,) or (B, T) by name; those outside the mask are left out.
    """

    def described(row: int) -> dict[str, Any]:
        valid = rollouts.mask[row]
        kept = {name: of[row] for name, of in numbers.items()}
        texts = {"row": row, "prompt": rollouts.prompts[row], "response": rollouts.responses[row]}
        return texts | {name: one[valid.to(one.device)] if one.dim() else one for name, one in kept.items()}

    def skip(error: NotFinite, step: int, rows: Tensor) -> None:
        progress.bad_steps.skip(
            error, step, setup.named_parameters(), lambda: [described(row) for row in rows.tolist()]
        )

    return skip


def measured_by_all(config: RunConfig, models: PolicyModels, rollouts: Rollouts, iteration: int) -> Measured:
    """What the networks say of all rollouts, each rank having asked them for the rows that it trains on first."""
    parts = first_micro_batches(config, features_of(rollouts), iteration)
    measured = measure(
        models,
        rollouts,
        parts,
        rows_at_once=config.rollout.batch_size,
        by_length=config.optimization.pack_by_length,
    )
    if count() == 1:
        return measured
    hidden = measured.features.hidden
    return Measured(
        features=dataclasses.replace(measured.features, hidden=None if hidden is None else sum_rows(hidden)),
        **{name: sum_rows(getattr(measured, name)) for name in COLUMNS},
    )


def new_controller(config: RunConfig) -> KLController:
    """PPO's controller; for the other algorithms a coefficient of 0, since their reward has no KL term."""
    if isinstance(config.algo, PPOConfig):
        return CONTROLLERS[config.algo.kl.controller](config.algo.kl)
    return KLController(0.0)


def rollout_metrics(
    config: RunConfig, rollouts: Rollouts, measured: Measured, batch: TrainingBatch, scores: Tensor, sampled: bool
) -> dict[str, float]:
    """train/* of the responses; the KL is k1, what the penalty and the controller see.

    On a data set's responses the same sum is no KL but says how far they have been learnt: `data_log_ratio`.
    """
    mask = rollouts.mask
    pair = measured.old_logprobs, measured.reference_logprobs
    residual = masked_variance(batch.returns - batch.old_values, mask)
    log_ratio = float(sequence_kl(k1(*pair), mask))
    kl = {"kl": log_ratio, "kl_k3": float(sequence_kl(k3(*pair), mask))} if sampled else {"data_log_ratio": log_ratio}
    metrics = {
        "reward": float(scores.mean()),
        **kl,
        "entropy": float(masked_mean(measured.entropy, mask)),
        "response_length": float(rollouts.lengths.double().mean()),
        "eos_rate": float(rollouts.ended.double().mean()),
        "explained_variance": 1.0 - float(residual / (masked_variance(batch.returns, mask) + 1e-8)),
    }
    if sampled and config.evaluation.released_k3:
        metrics["kl_released_k3"] = float(sequence_kl(released_k3(*pair), mask))
    return metrics


def evaluate(context: RunContext, setup: Setup, progress: Progress) -> dict[str, float]:
    """eval/* of the policy as it is, its samples appended to samples.jsonl."""
    metrics, samples = setup.evaluator.run(setup.models)
    check_metrics(metrics, "a smaller optimization.learning_rate")
    where = {"step": progress.step, "iteration": progress.iteration}
    context.folder.log_samples(sample_rows(samples, where))
    return metrics


def counters(context: RunContext, progress: Progress) -> dict[str, float]:
    samples = progress.iteration * context.config.rollout.num_responses
    return {
        "step": progress.step,
        "iteration": progress.iteration,
        "samples": samples,
        "seconds": context.seconds(),
    }
