"""The page's sentences: what the numbers mean, what was looked for, what has to be said beside the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from analysis import diagnoses as limits
from analysis.diagnoses import Diagnosis
from analysis.load import RL_STAGES, RunRecord, SamplePair, sample_pairs
from analysis.looks import drawn_settings
from analysis.measures import TARGET_SHARE, ClaimsTable
from analysis.summary import Comparison, SettingSummary
from analysis.tables import number

DEFINITION = (
    "KL efficiency E(K) is the mean height of the reward gain over the square root of KL, from 0 to the budget K: how "
    "much reward a run reached for the KL it spent. The gain at a KL is the best reward reached at or below it minus "
    "the initial one, chosen on half of the evaluation prompts and scored on the other half, both ways round. "
    "It ends at the run's largest KL: a budget that was not spent has no value. Intervals are over prompts and seeds, "
    "or over seeds alone where runs kept no numbers of prompts, and cover the randomness of RL and evaluation; that of "
    "SFT and the reward model where sft.seed and reward_model.seed have three values or more."
)
CHECKED = (
    f"entropy (below {limits.ENTROPY_COLLAPSE:.0%} of the initial policy's)",
    f"response length (below {limits.LENGTH_COLLAPSE:.0%} or above {limits.LENGTH_EXPLOSION:.0%} of the initial)",
    f"responses cut off at the longest length (fewer than {limits.ENDED:.0%} ending by themselves)",
    f"reward that falls while KL rises (more than {limits.FALL:.0%} of the best gain lost and "
    f"{limits.NOISE:g} standard errors of its evaluations, by their scatter about the curve, or that far below the "
    "initial one)",
    f"KL that runs away (above {limits.KL_RUNAWAY:g} times the largest budget)",
    f"over-optimisation (more than {limits.FALL:.0%} of the gold gain lost and {limits.NOISE:g} "
    "standard errors while the reward rises)",
    f"seeds that diverge (a standard deviation of the last rewards above {limits.SEED_SPREAD:g} times the mean gain "
    f"and {limits.NOISE:g} times the evaluation noise)",
    "a last evaluation that is not a number",
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


def counts(comparison: Comparison) -> str:
    compared = sum(len(setting.runs) for setting in comparison.settings)
    others = sum(record.stage not in RL_STAGES for record in comparison.records)
    text = f"{len(comparison.records)} run folders: {compared} compared, {len(comparison.excluded)} left out"
    ends = [run.record.summary.get("finished_at") for setting in comparison.settings for run in setting.runs]
    known = [end for end in ends if isinstance(end, int | float)]
    if known:
        text += f"; the last run ended on {datetime.fromtimestamp(max(known)):%d %B %Y}"
    return f"{text}, {others} of other stages (see runs.csv)." if others else f"{text}."


def title(comparison: Comparison, folder: str) -> str:
    """What was compared, on what: `apa, awr and ppo on letters with tiny`; the folder where nothing was."""
    runs = [run.record for setting in comparison.settings for run in setting.runs]
    if not runs:
        return f"Report of {folder}"
    algos = list(dict.fromkeys(setting.algo for setting in comparison.settings))
    names = ", ".join(algos[:-1]) + f" and {algos[-1]}" if len(algos) > 1 else algos[0]
    tasks = {f"{run.setting('dataset.name', '?')} with {run.setting('model.name', '?')}" for run in runs}
    return f"{names} on {tasks.pop() if len(tasks) == 1 else f'{len(tasks)} tasks'} ({folder})"


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


def claims_note(claims: ClaimsTable) -> str:
    target = (
        "There is no target, since the median algorithm gained nothing."
        if claims.target is None
        else f"The target is a gain of {number(claims.target)}: {TARGET_SHARE:.0%} of the largest gain that a run "
        "reached (chosen on one half of the prompts, scored on the other), mean over the seeds of an algorithm's best "
        "setting, and of the algorithms the median; responses to it are counted until a run first has it."
    )
    return (
        f"Mean gain: the reward gained over the initial policy, averaged over the first {claims.horizon:,.0f} "
        f"responses, which is as many as the shortest run generated. {target} Largest fall: the most that the reward "
        "lay below its best so far. KL overshoot: how far the largest KL of a run exceeds the first of "
        "dataset.kl_budgets, 0 where it never does. "
        "Spread: standard deviation between seeds of the reward then reached. All are of the same "
        "first responses. Intervals end where a measure can go no further (0, the responses generated); there is none "
        "where all seeds have one value."
    )


SENSITIVITY_NOTE = (
    "Best, median and worst are what to expect of as many settings drawn at random from those of each algorithm; a "
    "setting without a result (failed or pruned) counts as 0, the initial policy. [ ]: 95 % interval over the seeds "
    "that every setting has, the settings' ranking taken as given. An algorithm whose worst setting is close to its "
    "best needs less search."
)


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
