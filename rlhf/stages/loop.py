"""The RL loop: responses -> scores -> advantages -> updates, for every algorithm alike, sampled or from a data set."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from rlhf.batches import Rollouts, TrainingBatch
from rlhf.config import RunConfig
from rlhf.finite import NotFinite, check_metrics, check_weights
from rlhf.kl import k1, k3, released_k3, sequence_kl
from rlhf.masked import masked_mean, masked_variance, response_sums
from rlhf.models.saving import save_policy
from rlhf.models.sharding import whole_weights
from rlhf.optimization import BadSteps
from rlhf.rewards import KLController, RunningMoments, controller_of, scale_scores
from rlhf.runs.checkpoint import load_training, training_tensors
from rlhf.stages.context import RunContext
from rlhf.stages.setup import Setup
from rlhf.training_batch import Measured, measure_rollouts, training_batch
from rlhf.update import update


class Responses(ABC):
    """Where an iteration's responses come from and what they are worth: all of them, on every rank."""

    config: RunConfig
    sampled: ClassVar[bool]
    """Whether the policy has just sampled them; a data set's say nothing of the policy's KL."""

    @abstractmethod
    def rollouts(self, iteration: int) -> Rollouts:
        """rollout.num_responses responses; those to one prompt are neighbours, algo.group_size of them."""

    @abstractmethod
    def scores(self, rollouts: Rollouts, iteration: int) -> Tensor:
        """(B,) raw scores of them."""

    def check_sampler(self, gap: float) -> None:  # noqa: B027  # our own sampler needs no check
        """Raise where the sampler's logprobs are too far, `gap` nats per token, from the policy's."""

    def references(self, iteration: int) -> Tensor | None:
        """(B, N) raw scores of the initial policy's responses to the same prompts, algo.reference_samples of them; None
        where that is 0."""
        return None

    def scaled(self, scores: Tensor, std: float) -> Tensor:
        """What the token rewards are made of; `std` is that of all raw scores of the run so far."""
        return scale_scores(scores, std, self.config.reward)

    def values(self, measured: Measured) -> Tensor | None:
        """(B, T) what advantages take for V of the state before each token; None without a critic."""
        return measured.values


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors. Prompts and draws follow from `iteration`."""

    controller: KLController
    bad_steps: BadSteps
    moments: RunningMoments = field(default_factory=RunningMoments)
    iteration: int = 0
    step: int = 0
    rollout_kl: float = 0.0
    """KL of the last sampled rollouts, nats."""
    evaluated_kl: float = 0.0
    """The same at the last evaluation."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "step": self.step,
            "controller": self.controller.state_dict(),
            "moments": self.moments.state_dict(),
            "bad_steps": self.bad_steps.count,
            "rollout_kl": self.rollout_kl,
            "evaluated_kl": self.evaluated_kl,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bad_steps.count = int(state["bad_steps"])
        self.iteration, self.step = int(state["iteration"]), int(state["step"])
        self.rollout_kl, self.evaluated_kl = float(state["rollout_kl"]), float(state["evaluated_kl"])
        self.controller.load_state_dict(state["controller"])
        self.moments.load_state_dict(state["moments"])

    def has_moved(self, kl_step: float | None) -> bool:
        """Whether sqrt(KL) of the rollouts has moved by `kl_step` since the last evaluation."""
        if kl_step is None:
            return False
        now, then = (math.sqrt(max(kl, 0.0)) for kl in (self.rollout_kl, self.evaluated_kl))
        return abs(now - then) >= kl_step


def run_loop(context: RunContext, setup: Setup, responses: Responses) -> dict[str, float]:
    """The run from its initial policy or its checkpoint to its end; returns the last evaluation."""
    config, parameters, scaler = context.config, setup.named_parameters(), setup.models.scaler
    bad_steps = BadSteps(context.folder, "optimization.max_bad_steps", config.optimization.max_bad_steps)
    progress = Progress(controller_of(config.algo.penalty), bad_steps)
    remedy = "a smaller optimization.learning_rate" + (" or value.learning_rate" if config.algo.critic else "")
    if (checkpoint := context.take_checkpoint()) is not None:
        with checkpoint.reading() as state:
            progress.load_state_dict(state)
            scaler.load_state_dict(state["scaler"])
        setup.earlier.make_room(progress.iteration)
        load_training({**parameters, **setup.earlier.tensors()}, setup.optimizer, checkpoint.tensors)
        metrics = context.folder.last_evaluation()
        del checkpoint  # its tensors
    else:
        metrics = evaluate(context, setup, progress)
        context.folder.log({**counters(context, progress), **metrics})
    for iteration in range(progress.iteration + 1, config.rollout.iterations + 1):
        row = one_iteration(config, setup, responses, progress, iteration)
        check_weights(parameters, f"after iteration {iteration}", remedy)
        if bad_steps.count:
            row["train/bad_steps"] = float(bad_steps.count)
        last = iteration == config.rollout.iterations
        moved = responses.sampled and progress.has_moved(config.evaluation.kl_step)
        if last or moved or iteration % config.evaluation.eval_every == 0:
            metrics = evaluate(context, setup, progress)
            row |= metrics
        context.folder.log({**counters(context, progress), **row})
        if last or context.asked_to_stop() or iteration % config.checkpoint.checkpoint_every == 0:
            state = {**progress.state_dict(), "scaler": scaler.state_dict()}
            kept = {**parameters, **setup.earlier.tensors()}
            context.save(progress.step, training_tensors(kept, setup.optimizer), state)
            if not last:
                context.stop_if_asked()
    final, how, heads = context.folder.final, config.checkpoint.save_final, setup.algorithm.heads
    weights = whole_weights(setup.models.sampler)
    context.folder.write(lambda: save_policy(setup.models, setup.tokenizer, final, how, weights))
    if heads is not None and how != "none":
        context.folder.write(lambda: heads.save(final))
    return metrics


def one_iteration(
    config: RunConfig, setup: Setup, responses: Responses, progress: Progress, iteration: int
) -> dict[str, float]:
    """Algorithm 1 of the paper: sample responses, score them, estimate advantages, minimise the loss.

    Returns:
        train/* and perf/* of the row that is logged.
    """
    times = [time.monotonic()]
    rollouts = responses.rollouts(iteration)
    times.append(time.monotonic())

    scores = responses.scores(rollouts, iteration)
    progress.moments.update(scores)
    scaled = responses.scaled(scores, progress.moments.std)
    times.append(time.monotonic())

    measured = measure_rollouts(config, setup.models, rollouts, iteration, setup.earlier)
    measured = dataclasses.replace(measured, values=responses.values(measured))
    gap = 0.0
    if responses.sampled:
        distance = (rollouts.sampler_logprobs - measured.old_logprobs).abs()
        gap = float(masked_mean(distance, rollouts.mask))
        responses.check_sampler(gap)
    kl = float(sequence_kl(k1(measured.old_logprobs, measured.reference_logprobs), rollouts.mask))
    kl_coef = progress.controller.coef
    references = responses.references(iteration)
    if references is not None:
        references = responses.scaled(references, progress.moments.std).to(rollouts.mask.device)
    batch = training_batch(setup.algorithm, rollouts, measured, scaled, kl_coef, references)
    metrics = {"reward": float(scores.mean()), "kl_coef": kl_coef, **rollout_metrics(rollouts, measured, batch)}
    if responses.sampled:
        progress.controller.update(kl, len(scores))
        progress.rollout_kl = kl
        metrics |= {"kl": kl, **sampled_kl_metrics(config, rollouts, measured)}
        if config.rollout.lag or config.rollout.precision is not None:
            metrics |= sampler_metrics(rollouts, measured)
    else:
        metrics["data_log_ratio"] = kl  # of a data set's responses: how far they have been learnt, no KL
    times.append(time.monotonic())

    numbers = {"score": scores, **batch.numbers()}

    def skip(error: NotFinite, step: int, rows: Tensor) -> None:
        named = setup.named_parameters()
        progress.bad_steps.skip(error, step, named, lambda: [described(rollouts, numbers, i) for i in rows.tolist()])

    setup.earlier.remember()
    parts, features = (setup.algorithm, setup.models, setup.optimizer), measured.features
    update_metrics, progress.step = update(
        config, *parts, batch, features, iteration=iteration, step=progress.step, skip=skip
    )
    progress.iteration = iteration
    times.append(time.monotonic())

    row = {f"train/{name}": value for name, value in {**metrics, **update_metrics}.items()}
    stages = ("rollout", "scoring", "measuring", "update")
    row |= {f"perf/{stage}_seconds": times[i + 1] - times[i] for i, stage in enumerate(stages)}
    row["perf/tokens_per_second"] = int(rollouts.lengths.sum()) / (times[-1] - times[0])
    if responses.sampled:
        row["perf/sampler_logprob_gap"] = gap
    return row


def described(rollouts: Rollouts, numbers: Mapping[str, Tensor], row: int) -> dict[str, Any]:
    """A response of a bad step with its numbers, (B,) or (B, T) by name; those outside the mask are left out."""
    valid = rollouts.mask[row]
    texts = {"row": row, "prompt": rollouts.prompts[row], "response": rollouts.responses[row]}
    of_row = {name: column[row] for name, column in numbers.items()}
    return texts | {name: x[valid.to(x.device)] if x.dim() else x for name, x in of_row.items()}


def rollout_metrics(rollouts: Rollouts, measured: Measured, batch: TrainingBatch) -> dict[str, float]:
    """train/* of any responses."""
    mask = rollouts.mask
    metrics = {
        "entropy": float(masked_mean(measured.entropy, mask)),
        "response_length": float(rollouts.lengths.double().mean()),
        "eos_rate": float(rollouts.ended.double().mean()),
    }
    if batch.returns is not None and batch.old_values is not None:
        residual = masked_variance(batch.returns - batch.old_values, mask)
        metrics["explained_variance"] = 1.0 - float(residual / (masked_variance(batch.returns, mask) + 1e-8))
    return metrics


def sampled_kl_metrics(config: RunConfig, rollouts: Rollouts, measured: Measured) -> dict[str, float]:
    """Other estimates of the KL than k1, which the penalty and the controller see."""
    estimators = {"kl_k3": k3} | ({"kl_released_k3": released_k3} if config.evaluation.released_k3 else {})
    pair = measured.old_logprobs, measured.reference_logprobs
    return {name: float(sequence_kl(of(*pair), rollouts.mask)) for name, of in estimators.items()}


def sampler_metrics(rollouts: Rollouts, measured: Measured) -> dict[str, float]:
    """How far the policy that learns is from the one that sampled, by the sampler's own logprobs: mean log-ratio of a
    response in nats (k1 of KL(sampler || policy)), and the effective share of the responses as samples of the policy,
    (sum w)^2 / (B sum w^2) with w = pi / sampler."""
    start = measured.old_logprobs if measured.start_logprobs is None else measured.start_logprobs
    log_weights = response_sums(start - rollouts.sampler_logprobs, rollouts.mask).double()
    share = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp() / len(log_weights)
    return {"sampler_kl": -float(log_weights.mean()), "sampler_ess": float(share)}


def evaluate(context: RunContext, setup: Setup, progress: Progress) -> dict[str, float]:
    """eval/* of the policy as it is, its samples appended to samples.jsonl."""
    found = setup.evaluator.run(setup.models)
    check_metrics(found.metrics, "a smaller optimization.learning_rate")
    where = {"step": progress.step, "iteration": progress.iteration}
    context.folder.log_samples([{**where, **sample} for sample in found.samples])
    samples = progress.iteration * context.config.rollout.num_responses
    of = {"samples": samples, "prompts": setup.evaluator.prompts.digest}
    context.folder.log_evaluation({**where, **of, **found.by_prompt})
    progress.evaluated_kl = progress.rollout_kl
    return found.metrics


def counters(context: RunContext, progress: Progress) -> dict[str, float]:
    samples = progress.iteration * context.config.rollout.num_responses
    where = {"step": progress.step, "iteration": progress.iteration, "samples": samples}
    return {**where, "seconds": context.seconds()}
