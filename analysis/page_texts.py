"""The page's sentences: what the numbers mean, what was looked for, what has to be said beside the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from analysis.compared import Comparison, SettingSummary
from analysis.diagnoses import Diagnosis
from analysis.load import RL_STAGES, RunRecord, SamplePair, sample_pairs
from analysis.looks import drawn_settings
from analysis.measures import TARGET_SHARE, ClaimsTable
from analysis.replicates import drawn_text
from analysis.tables import number

TERMS = (
    "KL efficiency: reward gained over the initial policy, averaged over sqrt(KL) from 0 to the budget. "
    "KL: how far a policy moved from the initial one, in nats per response."
)
DEFINITION = (
    "E(K) is the mean height of the reward gain over the square root of KL, from 0 to the budget K. The gain at a KL "
    "is the best reward at or below it minus the initial one.",
    "The best is chosen on half of the evaluation prompts and scored on the other half, both ways round. A curve ends "
    "at the run's largest KL; a budget that was not reached has no value.",
    "Intervals cover the randomness of RL and evaluation, and that of SFT and the reward model where sft.seed and "
    "reward_model.seed have three values or more; otherwise the runs share both.",
)
SENSITIVITY_NOTE = (
    "What to expect of as many settings drawn at random from those tried of each algorithm. A setting without a result "
    "counts as 0. An algorithm whose worst setting is close to its best needs less search."
)
# More of a response than this is no illustration, and many such would burst the page.
_LONGEST_RESPONSE = 2000


@dataclass(frozen=True)
class SampleRow:
    """A prompt, with the other columns of its row in words, and two responses, each with its scores in words."""

    prompt: tuple[str, str]
    before: tuple[str, str]
    after: tuple[str, str]


@dataclass(frozen=True)
class SampleGroup:
    title: str
    rows: Sequence[SampleRow]


def title(comparison: Comparison, folder: str) -> str:
    """What was compared, on what, how many seeds, when, the best first: `apa and ppo on letters with tiny, 3 seeds, 1
    May 2026`; the folder where nothing was."""
    settings = sorted(comparison.settings, key=lambda setting: -setting.headline.kl_efficiency.mean)
    runs = [run.record for setting in settings for run in setting.runs]
    if not runs:
        return f"Report of {folder}"
    algos = list(dict.fromkeys(setting.algo for setting in settings))
    names = ", ".join(algos[:-1]) + f" and {algos[-1]}" if len(algos) > 1 else algos[0]
    tasks = {f"{run.setting('dataset.name', '?')} with {run.setting('model.name', '?')}" for run in runs}
    ends = [end for run in runs if isinstance(end := run.summary.get("finished_at"), int | float)]
    when = f", {datetime.fromtimestamp(max(ends)):%d %B %Y}".replace(", 0", ", ") if ends else ""
    return f"{names} on {tasks.pop() if len(tasks) == 1 else f'{len(tasks)} tasks'}, {drawn_text(settings)}{when}"


def counts(comparison: Comparison, folder: str) -> str:
    compared = sum(len(setting.runs) for setting in comparison.settings)
    others = sum(record.stage not in RL_STAGES for record in comparison.records)
    text = f"{folder}: {len(comparison.records)} runs, {compared} compared, {len(comparison.excluded)} left out"
    return f"{text}, {others} of other stages (see runs.csv)." if others else f"{text}."


def problems(comparison: Comparison, found: Sequence[Diagnosis]) -> str:
    """What the diagnoses come to, and of how many runs: nobody looked at those left out."""
    compared, left_out = sum(len(setting.runs) for setting in comparison.settings), len(comparison.excluded)
    if not compared:
        return "Nothing was compared, so nothing was looked for."
    if not left_out:
        return f"{_problems(found)}." if found else "No problem found."
    missing = f"{left_out} of {compared + left_out} runs left out, not looked at"
    return f"{missing}; in the other {compared}: {_problems(found) if found else 'no problem'}."


def _problems(found: Sequence[Diagnosis]) -> str:
    """`2 problems in 1 setting`, by kind."""
    kinds = list(dict.fromkeys(one.kind for one in found))
    by_kind = ", ".join(f"{kind} {sum(one.kind == kind for one in found)}" for kind in kinds)
    places = len({one.setting for one in found})
    problems = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return f"{problems} in {places} {'setting' if places == 1 else 'settings'} ({by_kind})"


def claims_notes(claims: ClaimsTable) -> list[str]:
    """What each column is."""
    target = (
        "there is none, since the median algorithm gained nothing."
        if claims.target is None
        else f"a gain of {number(claims.target)}, {TARGET_SHARE:.0%} of the largest gain of the median algorithm's "
        "best setting; responses are counted until a run first has it."
    )
    return [
        f"All measures are of the first {claims.horizon:,.0f} responses, as many as the shortest run has.",
        "Mean gain: reward gained over the initial policy, averaged over those responses.",
        f"Target: {target}",
        "Largest fall: the most that the reward lay below its best so far.",
        "Spread: standard deviation between seeds of the reward then reached.",
    ]


def sample_groups(settings: Sequence[SettingSummary]) -> list[SampleGroup]:
    """Of the lowest seed of each setting that the charts tell apart."""
    groups = []
    for setting in drawn_settings(settings)[0]:
        record = setting.runs[0].record
        if rows := _sample_rows(record):
            groups.append(SampleGroup(f"{setting.name}, seed {record.seed}", rows))
    return groups


def _sample_rows(record: RunRecord) -> list[SampleRow]:
    return [SampleRow(_prompt(pair), _response(pair.before), _response(pair.after)) for pair in sample_pairs(record)]


def _prompt(pair: SamplePair) -> tuple[str, str]:
    columns = pair.before.get("columns")
    named = columns.items() if isinstance(columns, dict) else ()
    return _cut(pair.prompt), _cut("; ".join(f"{name}: {value}" for name, value in named))


def _response(sample: dict[str, Any]) -> tuple[str, str]:
    scores = []
    for name, key in (("reward", "reward"), ("gold", "gold_reward")):
        value = sample.get(key)
        if isinstance(value, int | float):
            scores.append(f"{name} {number(float(value))}")
    if sample.get("ended") is False:
        scores.append("cut off at the longest length")
    return _cut(str(sample.get("response", ""))), ", ".join(scores)


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_RESPONSE:
        return text
    return f"{text[:_LONGEST_RESPONSE]}\N{HORIZONTAL ELLIPSIS} ({len(text):,} characters in all)"
