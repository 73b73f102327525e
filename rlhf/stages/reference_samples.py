"""What the initial policy answers to the evaluation prompts, and what the answers are worth: a number per response.

From these follow the reward that every run starts from, and the most that any policy could gain for the same KL.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.chat import with_template
from rlhf.data.tokenize import encode_prompts, prompt_report
from rlhf.distributed import gathered, own_rows
from rlhf.files import write_whole
from rlhf.models.loading import moved
from rlhf.models.policy import policy_pair
from rlhf.random import sampling_uniforms
from rlhf.rewards import score_responses
from rlhf.rollout import generate
from rlhf.runs.state import REFERENCE_SAMPLES
from rlhf.sampling.fast import say_where_plain
from rlhf.scorers import load_scorer, parts_with_references
from rlhf.stages.context import RunContext
from rlhf.stages.setup import initial_policy, stops_of


def run_reference_samples(context: RunContext) -> dict[str, float]:
    """Round after round, one response to each prompt; final/ gets the scores of all.

    Returns:
        Means of the scores, as the last row of metrics.jsonl has them.
    """
    config = context.config
    data = context.read_data("eval_prompts", *parts_with_references(config.reward.normalize))
    policy, tokenizer = initial_policy(context, data)
    data = with_template(config.dataset, data, tokenizer)
    stops = stops_of(config.dataset, data, tokenizer)
    context.say(prompt_report(config.dataset, tokenizer, data.eval_prompts, data.dropped, stops))
    scorer = load_scorer(config, context.inputs.get("reward_model"), context.device, data)
    prompts = encode_prompts(tokenizer, data.eval_prompts, config.dataset.max_prompt_tokens)
    policy = moved(policy, context.device)
    models = policy_pair(policy, policy, temperature=config.rollout.temperature, autocast=context.autocast)
    say_where_plain(config, policy, context.say)
    count, rounds = len(prompts.texts), config.evaluation.reference_responses
    scores = {"reward": torch.zeros(count, rounds, dtype=torch.float64)}
    if data.gold is not None:
        scores["gold_reward"] = torch.zeros(count, rounds, dtype=torch.float64)
    done = 0
    if (checkpoint := context.take_checkpoint()) is not None:
        with checkpoint.reading() as state:
            done = int(state["round"])
        scores = {name: checkpoint.tensors[name] for name in scores}
    for number in range(done, rounds):
        uniforms = sampling_uniforms(
            config.evaluation.seed, "reference samples", number, count, config.dataset.max_new_tokens
        )
        rows = own_rows(count)
        rollouts = generate(
            models,
            tokenizer,
            prompts.rows(rows),
            uniforms[rows],
            sampling=config.rollout.sampling,
            batch_size=config.rollout.batch_size,
            stop_strings=stops,
        )
        found = score_responses(scorer, rollouts, config.reward.missing_eos_score).double().cpu()
        scores["reward"][:, number] = gathered(found, count)
        if data.gold is not None:
            gold = torch.tensor(data.gold(rollouts.prompts, rollouts.responses), dtype=torch.float64)
            scores["gold_reward"][:, number] = gathered(gold, count)
        step, last = number + 1, number + 1 == rounds
        row = {"step": step, "iteration": step, "samples": step * count, "seconds": context.seconds()}
        context.folder.log({**row, **(_summary(scores) if last else {})})
        if last or context.asked_to_stop() or step % config.checkpoint.checkpoint_every == 0:
            context.save(step, scores, {"round": step})
            if not last:
                context.stop_if_asked()
    file = context.folder.final / REFERENCE_SAMPLES
    context.folder.write(lambda: (file.parent.mkdir(exist_ok=True), write_whole(file, _packed(scores, prompts.digest))))
    return context.folder.last_evaluation()


def _summary(scores: dict[str, Tensor]) -> dict[str, float]:
    """eval/* of the initial policy over all its responses."""
    return {f"eval/{name}": float(values.mean()) for name, values in scores.items()}


def _packed(scores: dict[str, Tensor], prompts: str) -> bytes:
    """`reward` and, where there is a gold scorer, `gold_reward`, each (prompts, responses) float64, and which `prompts`
    they are of, as numpy's npz."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: values.numpy() for name, values in scores.items()}
    arrays["prompts"] = np.array(prompts)
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
