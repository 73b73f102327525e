"""What is refused of data set and reward before anything is launched; a part of `rlhf.config.check`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs
from rlhf.config.reward import WITH_VERIFIER, WITHOUT_ANSWERS, RewardConfig
from rlhf.config.user_code import FORM, UserCodeError, load, place_of

# A header of HTTP and an environment variable.
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+=[A-Za-z_][A-Za-z0-9_]*")


def data_problems(config: RunConfig) -> Iterator[str]:
    """Of the data set, one line each."""
    dataset = config.dataset
    if dataset.num_eval_prompts % 2:
        yield f"dataset.num_eval_prompts: {dataset.num_eval_prompts} is odd, and evaluations need two halves"
    if not dataset.kl_budgets:
        yield "dataset.kl_budgets: empty; give at least one, in nats"
    if dataset.max_total_length <= dataset.max_new_tokens:
        yield (
            f"dataset.max_total_length: {dataset.max_total_length} leaves no room for a prompt beside "
            f"dataset.max_new_tokens = {dataset.max_new_tokens}"
        )
    if dataset.name == "reviews" and dataset.path is not None and not dataset.path.lower().endswith(".csv"):
        yield "dataset.path: dataset=reviews reads film reviews from a .csv; pairs are read by dataset=preferences"
    if dataset.name == "reasoning_gym" and dataset.task is None:
        yield "dataset.task: missing; dataset=reasoning_gym needs the name of a task, as dataset.task=leg_counting"
    if "" in (dataset.stop_strings or ()):
        yield "dataset.stop_strings: an empty text would end every response before its first token"
    if dataset.name in ("preferences", "prompts"):
        yield from _own_data(config)


def _own_data(config: RunConfig) -> Iterator[str]:
    dataset, columns = config.dataset, config.dataset.columns
    if dataset.path is None and dataset.hub is None:
        yield f"dataset.path: missing; dataset={dataset.name} needs a file or folder, or dataset.hub=owner/name"
    if dataset.name == "prompts":
        stages = {run.stage.name for run in (config, *input_runs(config))}
        if "offline" in stages or config.stage.name == "reward_model":
            yield f"dataset.name: stage={config.stage.name} learns from pairs, and prompts has none; use preferences"
        elif "reward_model" in stages:
            yield (
                "reward.name: learned trains a reward model on pairs, and dataset=prompts has none; give reward.path, "
                "another reward, or dataset=preferences"
            )
    for name, needed in (("rejected", "chosen"), ("preferred", "rejected")):
        if getattr(columns, name) is not None and getattr(columns, needed) is None:
            yield f"dataset.columns.{needed}: missing beside dataset.columns.{name}"


def reward_problems(config: RunConfig) -> Iterator[str]:
    """Of the reward, one line each."""
    reward = config.reward
    if reward.name == "http":
        yield from _server(reward)
    if reward.name in ("hh_gptj", "tldr_gptj"):
        if reward.path is None or reward.checkpoint_file is None:
            yield f"reward.path: reward={reward.name} needs path and checkpoint_file of a state dict"
        if reward.base is None:
            yield f"reward.base: missing; reward={reward.name} needs the architecture of its state dict"
    if reward.baseline == "reference" and config.algo.reference_samples:
        yield (
            f"reward.baseline: algo={config.algo.name} compares with what the initial policy's responses are worth, to "
            "which a reference answer makes no difference; use none"
        )
    if reward.name == "python":
        yield from _function(reward.path, reward.weights)
    if reward.name == "verifiable" and config.dataset.name in WITHOUT_ANSWERS:
        tasks = " or ".join(f"dataset={name}" for name in WITH_VERIFIER)
        yield f"reward.name: dataset={config.dataset.name} has no right answers to compare with; use {tasks}"


def _server(reward: RewardConfig) -> Iterator[str]:
    if reward.url is None:
        yield "reward.url: missing; reward=http needs the address of a server that scores texts"
    elif not reward.url.startswith(("http://", "https://")):
        yield f"reward.url: {reward.url!r} begins with neither http:// nor https://"
    elif reward.server is None and "?" in reward.url:
        yield (
            "reward.url: its query may choose what scores, and the run's id leaves addresses out; add "
            "reward.server=NAME, which tells runs and their cached scores apart"
        )
    if reward.token_env is not None and reward.token_file is not None:
        yield "reward.token_file: the token comes from reward.token_env; give one of the two"
    if not all(map(HEADER.fullmatch, reward.headers_env or ())):
        yield (
            "reward.headers_env: an entry is HEADER=VARIABLE, the name of a header and of the environment variable "
            "that holds its value, as X-Api-Key=MY_KEY"
        )


def _function(path: str | None, weights: list[float] | None) -> Iterator[str]:
    """A reward of the user's own that is not there. It is run here, so that a fault in it is told before all else."""
    if path is None:
        yield f"reward.path: missing; reward=python needs a function, as {FORM}"
        return
    try:
        functions = load(path, "reward.path")
    except UserCodeError as error:
        yield str(error)
        return
    names = place_of(path)[1]
    yield from (
        f"reward.path: {name} of {path} is no function"
        for name, f in zip(names, functions, strict=True)
        if not callable(f)
    )
    if weights is not None and len(weights) != len(names):
        yield f"reward.weights: {len(weights)} numbers, but reward.path names {len(names)} functions"
