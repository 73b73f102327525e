"""Evaluation alone: reward, KL and samples of a finished policy on the held-out prompts. Nothing is trained."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rlhf.algorithms import algorithm_of
from rlhf.chat import template_of, with_template
from rlhf.data.examples import TextData
from rlhf.data.tokenize import encode_prompts, prompt_report
from rlhf.evaluation import Evaluator
from rlhf.finite import check_metrics
from rlhf.models.loading import check_same_tokens, load_pretrained, moved, own_code_of
from rlhf.models.policy import Policy, policy_pair
from rlhf.sampling.fast import say_where_plain
from rlhf.scorers import load_scorer, parts_with_references
from rlhf.stages.context import RunContext
from rlhf.stages.setup import initial_policy, report_fallback, stops_of


def run_evaluate(context: RunContext) -> dict[str, float]:
    """eval/* of evaluation.policy, as the last row of the run that trained it has them; of the initial policy where
    none is given."""
    config = context.config
    data = context.read_data("eval_prompts", *parts_with_references(config.reward.normalize))
    models, tokenizer = _policies(context, data)
    data = with_template(config.dataset, data, tokenizer)
    stops = stops_of(config.dataset, data, tokenizer)
    context.say(prompt_report(config.dataset, tokenizer, data.eval_prompts, data.dropped, stops))
    scorer = load_scorer(config, context.inputs.get("reward_model"), context.device, data)
    prompts = encode_prompts(tokenizer, data.eval_prompts, config.dataset.max_prompt_tokens)
    algorithm = algorithm_of(config)
    if config.algo.heads:
        assert config.evaluation.policy is not None, "checked in rlhf.config.check"
        shape = models.sampler.config
        algorithm.load_heads(config.evaluation.policy, shape.hidden_size, shape.vocab_size, context.device)
    evaluator = Evaluator(config, algorithm, tokenizer, prompts, scorer, data.gold, stop_strings=stops)
    say_where_plain(config, models.sampler, context.say)
    report_fallback(models.fallback_reason, context.say)
    found = evaluator.run(models)
    check_metrics(found.metrics, "another evaluation.policy")
    where = {"step": 0, "iteration": 0}
    context.folder.log_samples([{**where, **sample} for sample in found.samples])
    context.folder.log_evaluation({**where, "samples": 0, "prompts": prompts.digest, **found.by_prompt})
    context.folder.log({**where, "samples": 0, "seconds": context.seconds(), **found.metrics})
    return found.metrics


def _policies(context: RunContext, data: TextData) -> tuple[Policy, PreTrainedTokenizerBase]:
    """What is measured and the initial policy, which may be the same.

    The former is loaded in float32, since training may have moved it by less than fewer bits can tell; the latter as
    runs hold it.
    """
    config = context.config
    reference, tokenizer = initial_policy(context, data)
    template_of(tokenizer, config.dataset.template)  # which says how an answer ends
    policy, path = reference, config.evaluation.policy
    if path is not None:
        policy, its_tokenizer = load_pretrained(
            path,
            positions=config.dataset.max_total_length,
            own_code=own_code_of(config.model),
            option="evaluation.policy",
        )
        template_of(its_tokenizer, config.dataset.template)
        check_same_tokens(its_tokenizer, tokenizer, path)
        policy = moved(policy, context.device)
    pair = policy_pair(
        policy,
        moved(reference, context.device),
        temperature=config.rollout.temperature,
        autocast=context.autocast,
    )
    return pair, tokenizer
