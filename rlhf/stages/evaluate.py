"""Evaluation alone: reward, KL and samples of a finished policy on the held-out prompts. Nothing is trained."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config import ILQLConfig
from rlhf.data import load_text_data
from rlhf.data.examples import TextData
from rlhf.data.tokenize import encode_prompts
from rlhf.evaluation import Evaluator, ILQLEvaluator, sample_rows
from rlhf.finite import NotFinite, check_metrics
from rlhf.models.ilql import load_heads
from rlhf.models.loading import ModelError, held_for, load_base, load_pretrained, moved
from rlhf.models.pair import PolicyPair, check_same_tokens
from rlhf.random import seed_torch
from rlhf.sampling.choose import say_where_plain
from rlhf.scorers import load_scorer
from rlhf.stages.context import RunContext
from rlhf.stages.setup import say_own_pass


def run_evaluate(context: RunContext) -> dict[str, float]:
    """eval/* of evaluation.policy, as the last row of the run that trained it has them; of the initial policy where
    none is given."""
    config, data = context.config, load_text_data(context.config.dataset)
    models, tokenizer = _policies(context, data)
    scorer = load_scorer(config, context.inputs.get("reward_model"), context.device, data)
    prompts = encode_prompts(tokenizer, data.eval_prompts, config.dataset.max_prompt_tokens)
    if isinstance(config.algo, ILQLConfig):
        assert config.evaluation.policy is not None, "checked in rlhf.config.check"
        shape = models.policy.config
        heads = load_heads(config.evaluation.policy, shape.hidden_size, shape.vocab_size, context.device)
        evaluator = ILQLEvaluator(config, tokenizer, prompts, scorer, data.gold, heads)
    else:
        evaluator = Evaluator(config, tokenizer, prompts, scorer, data.gold)
    say_where_plain(config, models.policy, context.say)
    say_own_pass(models.own_pass, context.say)
    metrics, samples = evaluator.run(models)
    check_metrics(metrics, "another evaluation.policy")
    where = {"step": 0, "iteration": 0}
    context.tracker.log_samples(sample_rows(samples, where))
    context.tracker.log({**where, "samples": 0, "seconds": context.seconds(), **metrics})
    return metrics


def _policies(context: RunContext, data: TextData) -> tuple[PolicyPair, PreTrainedTokenizerBase]:
    """What is measured and the initial policy, which may be the same.

    The former is loaded in float32, since training may have moved it by less than fewer bits can tell; the latter as
    runs hold it.
    """
    config = context.config
    reference, tokenizer = _initial_policy(context, data)
    policy, path = reference, config.evaluation.policy
    if path is not None:
        try:
            policy, own_tokenizer = load_pretrained(path, positions=config.dataset.max_total_length)
        except (ModelError, NotFinite) as error:
            raise type(error)(str(error).replace("model.path", "evaluation.policy", 1)) from error
        check_same_tokens(policy, own_tokenizer, reference, tokenizer, path)
        policy = moved(policy, context.device)
    pair = PolicyPair(
        policy,
        moved(reference, context.device),
        temperature=config.rollout.temperature,
        autocast=context.autocast,
    )
    return pair, tokenizer


def _initial_policy(context: RunContext, data: TextData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `rlhf.stages.setup.build` begins."""
    config = context.config
    held, positions = held_for(config, config.model.train, context.device), config.dataset.max_total_length
    if "sft" in context.inputs:
        return load_pretrained(context.inputs["sft"], held, positions)
    seed_torch(config.sft.seed, "sft model")
    return load_base(config.model, data.words, positions, context.cache_dir, held)
