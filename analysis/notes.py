"""What a reader of the numbers must know, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.compared import ComparedRun, ExcludedRun, NotReached, SettingSummary
from analysis.crossed import Run, sampled_axes
from analysis.labels import REPLICATES, differing_settings
from analysis.load import RunRecord

# Settings that make a reward another quantity, or a KL one from another policy.
_SAME_SCALE = ("dataset.", "model.", "reward.", "reward_model.", "sft.")
_KEYS_NAMED = 4


def scale_notes(records: Sequence[RunRecord]) -> list[str]:
    """Where rewards or KLs of these runs may not be the same quantity."""
    notes = []
    found = differing_settings([one.config for one in records])
    differing = [key for key in found if key.startswith(_SAME_SCALE) and key != "dataset.kl_budgets"]
    if differing:
        said = "Rewards may not be on one scale, or KL not from one initial policy."
        notes.append(f"Not the same in all runs: {these(differing)}. {said}")
    unit = {one.setting("reward_model.normalize") for one in records} - {"mean_std", None}
    if unit and len({one.replicate[:-1] for one in records}) > 1:
        notes.append(
            "The reward models of several seeds have units of their own (reward_model.normalize is not mean_std): go "
            "by the share of the optimum, which has none."
        )
    return notes


def draw_notes(settings: Sequence[SettingSummary]) -> list[str]:
    """Where settings are compared that do not start from the same SFT policies and reward models."""
    drawn = {frozenset(run[:-1] for run in setting.replicates) for setting in settings}
    if len(drawn) < 2:
        return []
    return ["Not all settings have runs of the same sft.seed and reward_model.seed: they differ by these, too."]


def optimum_notes(settings: Sequence[SettingSummary]) -> list[str]:
    """Where a share is of an optimum that too few responses carry, or is more than there can be."""
    found = [
        (setting.headline.kl_budget, run.reference.trusted_kl)
        for setting in settings
        for run in setting.runs
        if setting.headline.share is not None and run.reference is not None
    ]
    budget, trusted = min(found, key=lambda one: one[1] - one[0], default=(0.0, 0.0))
    if trusted >= budget:
        above = [one.name for one in settings if one.headline.share and (one.headline.share.low or 0.0) > 1.0]
        said = "above the optimum by more than noise: KL, reward and reference samples cannot be of one task."
        return [f"{these(above)} {'is' if len(above) == 1 else 'are'} {said}"] if above else []
    return [
        f"The reference samples carry the optimum to {trusted:.2g} nats, not to {budget:g}: the true optimum may be "
        "higher and shares of it lower. More samples see further: evaluation.reference_responses."
    ]


def prompt_notes(runs: Sequence[ComparedRun], crossed: bool) -> list[str]:
    """Why intervals are over seeds alone, where some runs kept numbers of prompts."""
    kept = [run for run in runs if run.evaluations.by_prompt]
    if crossed or not kept:
        return []
    lacking = [run.record.id for run in runs if not run.evaluations.by_prompt]
    why = f"these runs kept no numbers of prompts: {these(lacking)}" if lacking else "the prompts are not the same"
    return [f"Intervals are over seeds alone, and shares of the optimum are missing, since {why}."]


def _named_replicates(runs: Sequence[Run]) -> dict[Run, str]:
    """In order: by what they differ in, `3`, or `3 (sft.seed=1, reward_model.seed=0)`; runs without a seed left out."""
    outer = [axis for axis in sampled_axes(runs, least=2) if axis + 1 < len(REPLICATES)] if runs else []
    return {
        run: str(run[-1]) + (f" ({', '.join(f'{REPLICATES[axis]}={run[axis]}' for axis in outer)})" if outer else "")
        for run in sorted((run for run in runs if run[-1] is not None), key=lambda run: [one or 0 for one in run])
    }


def these(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _KEYS_NAMED
    return ", ".join(names[:_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")


def short_run_notes(settings: Sequence[SettingSummary]) -> list[str]:
    """One sentence for all budgets, the smallest first; none where every run reached them."""
    counts: dict[float, tuple[int, int]] = {}
    for setting in settings:
        for budget in (setting.headline, *setting.budgets):
            short, runs = counts.get(budget.kl_budget, (0, 0))
            short += len(setting.runs) - budget.runs if isinstance(budget, NotReached) else 0
            counts[budget.kl_budget] = short, runs + len(setting.runs)
    said = [f"{short} of {runs} never reached {kl:g} nats" for kl, (short, runs) in sorted(counts.items()) if short]
    if not said:
        return []
    return [f"Of the compared runs {', '.join(said)}; where a run of a setting did not, it has no value there."]


def comparison_notes(
    compared: list[ComparedRun], settings: list[SettingSummary], excluded: list[ExcludedRun]
) -> list[str]:
    """What a reader of the table must know, one sentence each."""
    notes = []
    drawn = {run.record.replicate for run in compared} | {run.record.replicate for run in excluded}
    named = _named_replicates(list(drawn))
    lacking: dict[str, list[str]] = {}
    for setting in settings:
        missing = [named[one] for one in named if one not in setting.replicates]
        if missing:
            lacking.setdefault(these(missing), []).append(setting.name)
    for listed, names in lacking.items():
        has = "has" if len(names) == 1 else "have"
        notes.append(f"{', '.join(names)} {has} no usable run of seed {listed}; the row rests on the others.")
    notes += short_run_notes(settings)
    for run in compared:
        notes.extend(f"{run.record.id}: {note}." for note in (*skipped_notes(run), *run.record.notes))
    notes += [*scale_notes([run.record for run in compared]), *draw_notes(settings)]
    commits = sorted({commit for run in compared if isinstance(commit := run.record.summary.get("git_commit"), str)})
    if len(commits) > 1:
        unclean = "; + stands for changes that were not committed" * any(one.endswith("+") for one in commits)
        notes.append(f"The runs come from {len(commits)} different states of the code ({these(commits)}{unclean}).")
    return notes


def skipped_notes(run: ComparedRun) -> list[str]:
    """Evaluations that were made and do not count; at most one sentence without its full stop."""
    count = run.evaluations.skipped
    if not count:
        return []
    some = "1 evaluation has" if count == 1 else f"{count} evaluations have"
    return [f"{some} no finite KL, reward or reward of one half of the prompts, and no point"]
