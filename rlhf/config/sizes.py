"""How the batch sizes of a config, which are those of all ranks together, come down to single forward passes."""

from __future__ import annotations

from rlhf.config import RL_STAGES, RunConfig, SupervisedConfig

Size = tuple[str, int, str]
"""Name, number, and the options that it comes from."""


def forward_rows(config: RunConfig) -> int:
    """Responses in a forward pass of the update: a micro-batch, or a rank's part of a minibatch where that is less."""
    settings = config.optimization
    return min(settings.micro_batch_size, settings.minibatch_size // config.hardware.ranks)


def derived_sizes(config: RunConfig) -> list[Size]:
    """What the stage's batch sizes come to, from the whole run down to one forward pass."""
    if config.stage.name in RL_STAGES:
        return _rl(config)
    if config.stage.name == "evaluate":
        return _evaluation(config)
    stage = config.stage.name
    return _supervised(config, stage, config.sft if stage == "sft" else config.reward_model)


def sizes_in_words(config: RunConfig) -> str:
    """The same in one line."""
    sizes = {name: number for name, number, _ in derived_sizes(config)}
    longest = max(number for name, number in sizes.items() if name.startswith("tokens per forward pass"))
    room = f"at most {longest:,} tokens per forward pass"
    if config.stage.name == "evaluate":
        return f"{sizes['prompts']:,} prompts, {room}"
    if config.stage.name in RL_STAGES:
        responses, steps = sizes["responses per iteration"], sizes["optimizer steps per iteration"]
        count = config.rollout.iterations
        rounds = f"{count:,} iteration{'s' if count != 1 else ''} of {responses:,} responses"
        return f"{rounds} and {steps:,} optimizer step{'s' if steps != 1 else ''}, {room}"
    stage = config.sft if config.stage.name == "sft" else config.reward_model
    what = "pairs" if config.stage.name == "reward_model" else "examples"
    return f"{stage.steps:,} optimizer steps of {stage.batch_size:,} {what}, {room}"


def _rl(config: RunConfig) -> list[Size]:
    rollout, settings, ranks = config.rollout, config.optimization, config.hardware.ranks
    responses, rows = rollout.num_responses, forward_rows(config)
    minibatches = responses // settings.minibatch_size
    steps = settings.epochs * minibatches
    part = settings.minibatch_size // ranks
    most = max(responses // ranks, -(-config.dataset.num_eval_prompts // ranks))
    sizes = [
        ("responses in all", rollout.iterations * responses, "rollout.iterations x rollout.num_responses"),
        ("responses per iteration", responses, "rollout.num_responses"),
        *_per_rank("responses per iteration and rank", responses, ranks),
    ]
    if config.stage.name == "online":
        sizes.append(("sampled at once", min(rollout.batch_size, responses // ranks), "rollout.batch_size"))
    return [
        *sizes,
        ("minibatches per epoch", minibatches, "rollout.num_responses / optimization.minibatch_size"),
        ("optimizer steps per iteration", steps, "x optimization.epochs"),
        ("optimizer steps in all", rollout.iterations * steps, "x rollout.iterations"),
        ("micro-batches per minibatch and rank", part // rows, _micro("optimization.minibatch_size", ranks)),
        *_longest(config, rows, "micro-batch", " of an update"),
        *_longest(
            config, min(rollout.batch_size, most), "rollout.batch_size", " of the frozen trunk and of evaluations"
        ),
    ]


def _supervised(config: RunConfig, stage: str, settings: SupervisedConfig) -> list[Size]:
    ranks = config.hardware.ranks
    part = settings.batch_size // ranks
    rows = min(settings.micro_batch_size, part)
    what, texts = ("pairs", 2) if stage == "reward_model" else ("examples", 1)
    return [
        (f"{what} in all", settings.steps * settings.batch_size, f"{stage}.steps x {stage}.batch_size"),
        (f"{what} per optimizer step", settings.batch_size, f"{stage}.batch_size"),
        *_per_rank(f"{what} per optimizer step and rank", settings.batch_size, ranks),
        ("micro-batches per optimizer step and rank", part // rows, _micro(f"{stage}.batch_size", ranks)),
        *_longest(config, rows * texts, "micro-batch of both texts" if texts == 2 else "micro-batch"),
    ]


def _evaluation(config: RunConfig) -> list[Size]:
    ranks, prompts = config.hardware.ranks, config.dataset.num_eval_prompts
    each = -(-prompts // ranks)
    return [
        ("prompts", prompts, "dataset.num_eval_prompts"),
        *([("prompts per rank", each, "/ hardware.ranks, rounded up")] if ranks > 1 else []),
        ("sampled at once", min(config.rollout.batch_size, each), "rollout.batch_size"),
        *_longest(config, min(config.rollout.batch_size, each), "sampled at once"),
    ]


def _per_rank(name: str, total: int, ranks: int) -> list[Size]:
    return [(name, total // ranks, "/ hardware.ranks")] if ranks > 1 else []


def _micro(whole: str, ranks: int) -> str:
    """The options that the number of forward passes comes from."""
    section = whole.partition(".")[0]
    return f"{whole} / {'hardware.ranks / ' if ranks > 1 else ''}{section}.micro_batch_size"


def _longest(config: RunConfig, rows: int, what: str, of: str = "") -> list[Size]:
    tokens = rows * config.dataset.max_total_length
    return [(f"tokens per forward pass{of}, at most", tokens, f"{what} x dataset.max_total_length")]
