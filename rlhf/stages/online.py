"""Online RL: an iteration's responses are sampled from the policy and scored by the reward."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from rlhf.batches import PromptBatch, Rollouts
from rlhf.config import RunConfig
from rlhf.config.reward import MODELS
from rlhf.data.examples import NO_COLUMNS, Columns
from rlhf.data.tokenize import Prompts
from rlhf.distributed import gathered, own_rows
from rlhf.random import endless_order, sampling_uniforms
from rlhf.rewards import checked_scores
from rlhf.rollout import generate
from rlhf.sampling.vllm import PROBE_TOKENS, Sample, VllmSampler, served_by
from rlhf.scorers import Scorer
from rlhf.stages.context import RunContext
from rlhf.stages.initial_scores import InitialScores, initial_scores
from rlhf.stages.loop import Responses, run_loop
from rlhf.stages.setup import Setup, build


def run_online(context: RunContext) -> dict[str, float]:
    """As `run_loop`."""
    config = context.config
    with vllm_sampler(context) as vllm:
        setup = build(context)
        if vllm is not None and (line := served_by(setup.models.sampler.config.model_type)):
            context.say(line)
        early = EarlyScores(setup.scorer, context.device) if scores_early(config) else None
        prompts = initial_scores(context, setup, setup.prompts, partial(prompt_rows, config, len(setup.prompts)))
        return run_loop(context, setup, Sampled(config, setup, early, prompts, vllm))


@contextlib.contextmanager
def vllm_sampler(context: RunContext) -> Iterator[VllmSampler | None]:
    """What samples rollouts where rollout=vllm; None elsewhere. Its server has ended when the context has."""
    if context.config.rollout.sampling != "vllm":
        yield None
        return
    context.say("rollout=vllm: the server's draws are its own; a run that is resumed or made again differs in them")
    vllm = VllmSampler(context.config, context.folder.path, context.folder.write, context.say)
    try:
        yield vllm
    finally:
        vllm.close()


def scores_early(config: RunConfig) -> bool:
    """Whether to score while more is sampled: only where the two do not share the same cores."""
    batches = config.rollout.num_responses // config.hardware.ranks > config.rollout.batch_size
    elsewhere = config.reward.name == "http" or (config.hardware.device == "cuda" and config.reward.name in MODELS)
    return config.reward.overlap and batches and elsewhere


def prompt_rows(config: RunConfig, total: int, iteration: int) -> Tensor:
    """(B,) int64, which of `total` prompts an iteration has, next in an endless reshuffled order, each as often as a
    group has responses."""
    group_size = config.algo.group_size
    count = config.rollout.num_responses // group_size
    order = endless_order(config.seed, "prompts", (iteration - 1) * count, count, total)
    return order.repeat_interleave(group_size)


def prompts_of(config: RunConfig, prompts: Prompts, iteration: int) -> PromptBatch:
    """The prompts of an iteration."""
    return prompts.rows(prompt_rows(config, len(prompts), iteration))


class EarlyScores:
    """Scores of an iteration's responses, asked for batch by batch as they are sampled, in a thread of its own.

    The thread dies with the process, whatever it waits for.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        self.scorer = scorer
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.parts: list[tuple[Tensor, Future[Tensor]]] = []
        self._asked: SimpleQueue[tuple[Future[Tensor], Sequence[str], Sequence[str], Columns]] = SimpleQueue()
        threading.Thread(target=self._work, name="scores", daemon=True).start()

    def ask(self, rows: Tensor, prompts: Sequence[str], texts: Sequence[str], columns: Columns = NO_COLUMNS) -> None:
        """Want scores of these rows.

        Raises:
            Exception: what the scorer raised for an earlier batch; no more is sampled in vain.
        """
        if any(part.done() and part.exception() is not None for _, part in self.parts):
            self.take()
        self.parts.append((rows, Future()))
        self._asked.put((self.parts[-1][1], prompts, texts, columns))

    def take(self) -> Tensor:
        """(B,) scores of all rows since the last call.

        Raises:
            Exception: what the scorer raised; batches that it has not begun are forgotten.
        """
        parts, self.parts = self.parts, []
        scores = torch.zeros(sum(len(rows) for rows, _ in parts))
        try:
            for rows, part in parts:
                scores[rows] = part.result()
        finally:
            for _, part in parts:
                part.cancel()  # of those that are done nothing is taken back
        return scores

    def _work(self) -> None:
        while True:
            future, prompts, texts, columns = self._asked.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
                    future.set_result(self.scorer.score(prompts, texts, columns))
            except BaseException as error:  # whatever it is, `take` raises it where the run can say so
                future.set_exception(error)


@dataclass(frozen=True)
class Sampled(Responses):
    """`Responses` of the policy, as it is or as it was rollout.lag iterations ago."""

    config: RunConfig
    setup: Setup
    early: EarlyScores | None
    """Where responses are scored while more are sampled."""
    initial: InitialScores | None = None
    vllm: VllmSampler | None = None
    """What samples in place of our own."""
    sampled = True

    def check_sampler(self, gap: float) -> None:
        if self.vllm is not None:
            self.vllm.check_rollouts(gap)

    def references(self, iteration: int) -> Tensor | None:
        return None if self.initial is None else self.initial.of(iteration)

    def rollouts(self, iteration: int) -> Rollouts:
        config, setup = self.config, self.setup
        count = config.rollout.num_responses
        uniforms = sampling_uniforms(config.seed, "rollout", iteration, count, config.dataset.max_new_tokens)
        rows = own_rows(count)
        prompts = prompts_of(config, setup.prompts, iteration).rows(rows)  # padded as all of them are

        def as_sampled(batch: Tensor, texts: list[str]) -> None:
            if self.early is not None:
                asked = prompts.rows(batch)
                self.early.ask(batch, asked.texts, texts, asked.columns)

        with setup.earlier.as_sampler(), self._elsewhere(iteration) as elsewhere:
            responses = generate(
                setup.models,
                setup.tokenizer,
                prompts,
                uniforms[rows],
                sampling=config.rollout.sampling,
                batch_size=config.rollout.batch_size,
                stop_strings=setup.stop_strings,
                group_size=config.algo.group_size,
                precision=config.rollout.precision,
                as_sampled=as_sampled,
                elsewhere=elsewhere,
            )
            return gathered(responses, count)

    @contextlib.contextmanager
    def _elsewhere(self, iteration: int) -> Iterator[Sample | None]:
        """The server with the policy as it is, where there is one."""
        if self.vllm is None:
            yield None
            return
        setup = self.setup
        first = setup.prompts.rows(torch.arange(min(len(setup.prompts), PROBE_TOKENS)))
        probe = first.input_ids[first.mask][:PROBE_TOKENS][: self.config.dataset.max_total_length - 1].tolist()
        with self.vllm.loaded(setup.models, setup.tokenizer, probe, iteration, setup.stop_strings) as sample:
            yield sample

    def scores(self, rollouts: Rollouts, iteration: int) -> Tensor:
        """Less those of the reference answers where reward.baseline asks for it; reward.missing_eos_score stays what it
        is, whatever the reference."""
        config, scorer, count = self.config, self.setup.scorer, len(rollouts.mask)
        part = rollouts.rows(own_rows(count))
        raw = self.early.take() if self.early else scorer.score(part.prompts, part.responses, part.columns)
        missing_eos_score = config.reward.missing_eos_score
        scores = checked_scores(raw, part, missing_eos_score)
        if config.reward.baseline == "reference":
            group = config.algo.group_size  # one reference answer to its prompt
            columns = {name: entries[::group] for name, entries in part.columns.items()}
            references = scorer.score(part.prompts[::group], part.references[::group], columns)
            references = references.repeat_interleave(group)
            scores = scores - checked_scores(references, part, None if missing_eos_score is None else 0.0)
        return gathered(scores, count)
