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
    if config.stage.name in ("evaluate", "reference_samples"):
        return _evaluation(config)
    return _supervised(config, config.stage.name, getattr(config, config.stage.name))


def sizes_in_words(config: RunConfig) -> str:
    """The same in one line."""
    sizes = {name: number for name, number, _ in derived_sizes(config)}
    longest = max(number for name, number in sizes.items() if name.startswith("tokens per forward pass"))
    room = f"at most {longest:,} tokens per forward pass"
    if config.stage.name in ("evaluate", "reference_samples"):
        return f"{sizes['prompts']:,} prompts, {room}"
    if config.stage.name in RL_STAGES:
        responses, steps = sizes["responses per iteration"], sizes["optimizer steps per iteration"]
        rounds, plural = config.rollout.iterations, ("s", "")
        return (
            f"{rounds:,} iteration{plural[rounds == 1]} of {responses:,} responses and {steps:,} optimizer "
            f"step{plural[steps == 1]}, {room}"
        )
    stage = getattr(config, config.stage.name)
    what = "pairs" if config.stage.name == "reward_model" else "examples"
    return f"{stage.steps:,} optimizer steps of {stage.batch_size:,} {what}, {room}"


def _rl(config: RunConfig) -> list[Size]:
    rollout, settings, ranks = config.rollout, config.optimization, config.hardware.ranks
    responses, rows = rollout.num_responses, forward_rows(config)
    minibatches = responses // settings.minibatch_size
    steps = settings.epochs * minibatches
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
        _micro_batches("minibatch", settings.minibatch_size, rows, ranks, "optimization.minibatch_size"),
        _tokens(config, rows, "micro-batch", " of an update"),
        _tokens(config, min(rollout.batch_size, most), "rollout.batch_size", " of the frozen trunk and of evaluations"),
    ]


def _supervised(config: RunConfig, stage: str, settings: SupervisedConfig) -> list[Size]:
    ranks, size = config.hardware.ranks, settings.batch_size
    rows = min(settings.micro_batch_size, size // ranks)
    what, texts = ("pairs", 2) if stage == "reward_model" else ("examples", 1)
    return [
        (f"{what} in all", settings.steps * size, f"{stage}.steps x {stage}.batch_size"),
        (f"{what} per optimizer step", size, f"{stage}.batch_size"),
        *_per_rank(f"{what} per optimizer step and rank", size, ranks),
        _micro_batches("optimizer step", size, rows, ranks, f"{stage}.batch_size"),
        _tokens(config, rows * texts, "micro-batch of both texts" if texts == 2 else "micro-batch"),
    ]


def _evaluation(config: RunConfig) -> list[Size]:
    ranks, prompts = config.hardware.ranks, config.dataset.num_eval_prompts
    each = -(-prompts // ranks)
    at_once = min(config.rollout.batch_size, each)
    return [
        ("prompts", prompts, "dataset.num_eval_prompts"),
        *([("prompts per rank", each, "/ hardware.ranks, rounded up")] if ranks > 1 else []),
        ("sampled at once", at_once, "rollout.batch_size"),
        _tokens(config, at_once, "sampled at once"),
    ]


def _per_rank(name: str, total: int, ranks: int) -> list[Size]:
    return [(name, total // ranks, "/ hardware.ranks")] if ranks > 1 else []


def _micro_batches(step: str, size: int, rows: int, ranks: int, option: str) -> Size:
    divided = f"{option} / {'hardware.ranks / ' if ranks > 1 else ''}{option.partition('.')[0]}.micro_batch_size"
    return f"micro-batches per {step} and rank", size // ranks // rows, divided


def _tokens(config: RunConfig, rows: int, what: str, of: str = "") -> Size:
    tokens = rows * config.dataset.max_total_length
    return f"tokens per forward pass{of}, at most", tokens, f"{what} x dataset.max_total_length"
