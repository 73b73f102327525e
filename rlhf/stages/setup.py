"""What stays for a whole run: data, networks, optimizer, scorer, evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.algorithms import Algorithm, algorithm_of
from rlhf.chat import with_template
from rlhf.config import RunConfig
from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import DataError, TextData
from rlhf.data.tokenize import Prompts, encode_prompts, prompt_report
from rlhf.earlier import EarlierPolicies
from rlhf.evaluation import Evaluator
from rlhf.models import PolicyModels, build_models
from rlhf.models.loading import frozen_weights, load_base, load_pretrained, moved, own_code_of
from rlhf.models.policy import Parameters
from rlhf.models.sharding import shard
from rlhf.optimization import adamw
from rlhf.random import seed_torch
from rlhf.sampling.fast import say_where_plain
from rlhf.scorers import Scorer, load_scorer, parts_with_references
from rlhf.stages.context import RunContext
from rlhf.text import unreachable_stop


@dataclass(frozen=True)
class Setup:
    data: TextData
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    models: PolicyModels
    scorer: Scorer
    optimizer: torch.optim.Optimizer
    evaluator: Evaluator
    algorithm: Algorithm
    earlier: EarlierPolicies
    stop_strings: Sequence[str] = ()
    """What ends a response besides its EOS."""

    def named_parameters(self) -> Parameters:
        """Everything that a checkpoint keeps and the optimizer does not."""
        heads = self.algorithm.heads
        return {**self.models.named_parameters(), **({} if heads is None else heads.named())}


def build(context: RunContext) -> Setup:
    """Data, networks and optimizer of a run. Random heads and adapters are drawn from the run's seed."""
    config = context.config
    learned_from = "pairs" if config.stage.name == "offline" else "prompts"
    data = context.read_data(learned_from, "eval_prompts", *parts_with_references(config.reward.normalize))
    model, tokenizer = initial_policy(context, data)
    data = with_template(config.dataset, data, tokenizer)
    stops = stops_of(config.dataset, data, tokenizer)
    context.say(prompt_report(config.dataset, tokenizer, getattr(data, learned_from), data.dropped, stops))
    models = networks(config, moved(model, context.device))
    algorithm = algorithm_of(config)
    if config.algo.heads:
        seed_torch(config.seed, f"{config.algo.name} heads")
        shape, init_std = models.model.config, config.value.head_init_std
        algorithm.build_heads(shape.hidden_size, shape.vocab_size, init_std=init_std, device=context.device)
    if config.hardware.sharding == "fsdp":
        shard(models)
    scorer = load_scorer(config, context.inputs.get("reward_model"), context.device, data)
    say_where_plain(config, models.sampler, context.say)
    report_fallback(models.fallback_reason, context.say)
    longest = config.dataset.max_prompt_tokens
    eval_prompts = encode_prompts(tokenizer, data.eval_prompts, longest)
    return Setup(
        data=data,
        tokenizer=tokenizer,
        prompts=Prompts(tokenizer, data.prompts, longest),
        models=models,
        scorer=scorer,
        optimizer=optimizer_of(config, models, algorithm),
        algorithm=algorithm,
        earlier=EarlierPolicies(models.policy_parameters, config.rollout.lag if config.stage.name == "online" else 0),
        evaluator=Evaluator(config, algorithm, tokenizer, eval_prompts, scorer, data.gold, stop_strings=stops),
        stop_strings=stops,
    )


def initial_policy(context: RunContext, data: TextData) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What RL starts from, on the CPU: the SFT stage's policy, or `model` where no such stage was asked for."""
    config, positions = context.config, context.config.dataset.max_total_length
    frozen = frozen_weights(config, config.model.train, context.device)
    if "sft" in context.inputs:
        return load_pretrained(context.inputs["sft"], frozen, positions, own_code=own_code_of(config.model))
    seed_torch(config.sft.seed, "sft model")
    return load_base(config.model, data.words, positions, context.cache_dir, frozen)


def stops_of(config: DatasetConfig, data: TextData, tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """What ends a response besides its EOS: dataset.stop_strings, or what the form of the data asks for.

    Raises:
        DataError: one of them can never be read in a response.
    """
    stops = data.stop_strings if config.stop_strings is None else config.stop_strings
    if (stop := unreachable_stop(tokenizer, stops)) is not None:
        raise DataError(
            f"dataset.stop_strings: {stop!r} holds a special token beside other text and can never match; give the "
            "token alone"
        )
    return stops


def report_fallback(reason: str, say: Callable[[str], None]) -> None:
    """One line where a model's layers are not known."""
    if reason:
        say(f"measuring and training by the model's own forward pass: {reason}")


def networks(config: RunConfig, model: PreTrainedModel) -> PolicyModels:
    """Policy, reference and value network from the initial policy, which they take."""
    seed_torch(config.seed, "value head and adapters")
    return build_models(
        model,
        config.model.train,
        config.value if config.algo.critic else None,
        temperature=config.rollout.temperature,
        precision=config.hardware.precision,
        recompute=config.hardware.gradient_checkpointing,
    )


def optimizer_of(config: RunConfig, models: PolicyModels, algorithm: Algorithm) -> torch.optim.Optimizer:
    """AdamW over the policy with the algorithm's heads and over the value network, each at its own learning rate."""
    settings = config.optimization
    heads = [] if algorithm.heads is None else algorithm.heads.trained_parameters()
    return adamw(
        [
            ([*models.policy_parameters.values(), *heads], settings.learning_rate),
            (models.value_parameters.values(), config.value.learning_rate),
        ],
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
