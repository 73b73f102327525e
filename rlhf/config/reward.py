"""Settings of the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.setting import ON_GPU, RL, Condition, Failure, given, option_is, setting, stages

BARE_REWARD = option_is("reward.name", "hh_gptj", "tldr_gptj")
GIVEN_REWARD = BARE_REWARD | (option_is("reward.name", "learned") & given("reward.path"))
MODELS = ("learned", "hh_gptj", "tldr_gptj")
MODEL_REWARD = option_is("reward.name", *MODELS)
REWARD_SERVER = option_is("reward.name", "http")
PYTHON_REWARD = option_is("reward.name", "python")
BY_MATH_VERIFY = "math_verify"
"""Value of reward.compare, and the module it needs."""
WITH_VERIFIER = ("sums", "countdown", "reasoning_gym")
"""The data sets that say themselves whether a response is right."""
WITHOUT_ANSWERS = ("letters", "reviews", "hh", "tldr", "stackexchange")
"""Those that have no column beside the texts."""
NORMALISATION = "reward_normalisation.json"
"""File of a reward model that was trained here."""
MOST_LABELS = 10
"""Outputs that a message lists."""
RIGHT_OR_WRONG = ("python", "verifiable")
"""Rewards whose evaluations tell an accuracy where all scores are 0 or 1."""
_SCORED_ELSEWHERE = stages("online") & (REWARD_SERVER | (MODEL_REWARD & ON_GPU))


def _without_verifier(config: Any, _: str) -> Failure | None:
    name = config.dataset.name
    if name not in WITH_VERIFIER:
        return None
    return Failure(f"dataset={name}", "a data set with a column of answers", frozenset({"dataset.name"}))


_COMPARES = option_is("reward.name", "verifiable") & Condition(_without_verifier)


@dataclass(kw_only=True)
class RewardConfig:
    name: str = setting(
        "what scores a response: a reward model trained here or any sequence classifier; GPT-J with a "
        "linear head in a bare state dict; a server; a lexicon's sentiment; a Python function; right or wrong",
        choices=("learned", "hh_gptj", "tldr_gptj", "http", "sentiment", "python", "verifiable"),
    )
    path: str | None = setting(
        "folder or hub name of a trained reward model; null with name=learned: train one on the data set's pairs; with "
        "name=python the function, as my_rewards.py:score or module:score, several as my_rewards.py:score+brevity",
        read_by=MODEL_REWARD | PYTHON_REWARD,
        also_called="reward_model_path rm_path reward_pretrain reward_model_name_or_path",
        content=True,
    )
    weights: list[float] | None = setting(
        "with several functions at `path`: what each is multiplied by before they are added up; null: 1",
        read_by=PYTHON_REWARD,
    )
    answer: str = setting(
        "the data's column with the right answer: a number, an expression or a letter", read_by=_COMPARES
    )
    compare: str = setting(
        "how numbers are compared: by the package math-verify, plainly, or (auto) by the package where it is "
        "installed, which config.yaml then says",
        read_by=_COMPARES,
        choices=("auto", "math_verify", "plain"),
    )
    checkpoint_file: str | None = setting(
        "the bare state dict's file at `path`; null: path is in transformers' format", read_by=BARE_REWARD
    )
    base: str | None = setting(
        "folder or hub name whose architecture a bare state dict fills; of an adapter: its base, null where it says",
        read_by=GIVEN_REWARD,
        content=True,
    )
    tokenizer: str | None = setting(
        "folder or hub name of its tokenizer; null: the one at `path`", read_by=GIVEN_REWARD, content=True
    )
    label: str | None = setting(
        "which output of a classifier with several is the score, before any softmax: its name, or its number from 0; "
        "null: it has one",
        read_by=option_is("reward.name", "learned") & given("reward.path"),
        identity=given("reward.label"),
    )
    trust_remote_code: bool = setting(
        "run Python code that the reward model at `path` brings, with your rights; false: refuse it",
        read_by=option_is("reward.name", "learned") & given("reward.path"),
    )
    prefix: str = setting("put before a text that is scored", read_by=GIVEN_REWARD)
    suffix: str = setting(
        "put behind a text that is scored, as an EOS written out; empty: its tokenizer's EOS", read_by=GIVEN_REWARD
    )
    max_tokens: int | None = setting(
        "longer texts are cut on the left; null: what max_total_length leaves",
        read_by=MODEL_REWARD,
        also_called="reward_max_length",
        low=1,
    )
    precision: str = setting(
        "how the reward model's weights are held", read_by=MODEL_REWARD, choices=("fp32", "bf16", "fp16")
    )
    batch_size: int = setting(
        "texts scored at once; how far they are padded can change a score's last bits",
        read_by=MODEL_REWARD | REWARD_SERVER,
        low=1,
    )
    overlap: bool = setting(
        "score what has been sampled while more is sampled: with reward.name=http or on a GPU, where "
        "rollout.batch_size is less than a rank's responses; false: afterwards, in less memory",
        read_by=_SCORED_ELSEWHERE,
    )
    url: str | None = setting(
        "where name=http posts its texts, without a password or key; the same reward may be served elsewhere, so that "
        "a run goes on at another address",
        read_by=REWARD_SERVER,
        also_called="reward_url rm_url remote_rm_url",
        identity=False,
    )
    server: str | None = setting(
        "a name for what the server at `url` scores by, where runs compare several of them", read_by=REWARD_SERVER
    )
    token_env: str | None = setting(
        "environment variable with the token that the server at `url` asks for, sent as Authorization: Bearer",
        read_by=REWARD_SERVER,
        identity=False,
    )
    token_file: str | None = setting("file with that token", read_by=REWARD_SERVER, identity=False, path=True)
    headers_env: list[str] | None = setting(
        "further headers for `url`, each with the environment variable that holds its value: [X-Api-Key=MY_KEY]",
        read_by=REWARD_SERVER,
        identity=False,
    )
    timeout_seconds: float = setting(
        "longest wait for an answer of `url`, or for the scores of one call of a function",
        read_by=REWARD_SERVER | PYTHON_REWARD,
        above=0,
        identity=False,
    )
    retries: int = setting("further tries of a request that failed", read_by=REWARD_SERVER, low=0, identity=False)
    normalize: str = setting(
        "what scores are shifted and scaled by before RL: mean and standard deviation over reference answers, their "
        "mean alone, or nothing (a model trained here has been through it)",
        choices=("none", "mean", "mean_std"),
    )
    missing_eos_score: float | None = setting(
        "score of a response that never ended, in place of the reward model's; null: score the cut text"
    )
    scale: str = setting(
        "divide by the running standard deviation (no mean subtraction), or not",
        read_by=stages("online"),
        choices=("running", "none"),
    )
    clip: float | None = setting("scores are clipped to +- this after scaling; null: not", read_by=RL, above=0)
    baseline: str = setting(
        "subtract nothing, or the score of the prompt's reference answer; not from missing_eos_score",
        read_by=stages("online"),
        choices=("none", "reference"),
    )


def label_problem(names: Sequence[str], label: str | None, path: str | Path) -> str:
    """The line that refuses reward.label for a classifier with outputs of these names; "" where it says which is the
    score: by its name, by its number from 0, or not at all where there is one."""
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:MOST_LABELS]))
    listed += f" and {len(names) - MOST_LABELS} more" if len(names) > MOST_LABELS else ""
    if label is None and len(names) != 1:
        return f"reward.label: missing; {path} has {len(names)} outputs ({listed}); name the one that is the score"
    if label is None or label in names or (label.isdecimal() and int(label) < len(names)):
        return ""
    return f"reward.label: {label} is no output of {path}; there are {listed}"
