"""One setting of each algorithm, so chosen that they spent about the same KL: by KL alone, never by reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.summary import SettingSummary

# Beyond this largest over smallest KL the settings are not matched, and it is said so.
MATCHED_WITHIN = 1.25
_SMALLEST_KL = 1e-6  # nats: what did not move has no logarithm


@dataclass(frozen=True)
class MatchedSettings:
    settings: tuple[SettingSummary, ...]
    """One per algorithm, in the order given."""
    target_kl: float
    """Nats at the last evaluation, mean over seeds, that the choice came closest to."""
    ratio: float
    """Largest over smallest KL among the chosen."""
    text: str
    """How they were chosen, and whether they match, in a sentence."""


def matched_settings(settings: Sequence[SettingSummary], target_kl: float | None = None) -> MatchedSettings:
    """Of each algorithm the setting whose last KL is nearest to the target, by their ratio.

    Args:
        settings: at least one.
        target_kl: nats; None: the one of the settings' own KLs for which the chosen lie closest together, the largest
            of those where several do.
    """
    assert settings
    by_algo: dict[str, list[SettingSummary]] = {}
    for setting in settings:
        by_algo.setdefault(setting.algo, []).append(setting)
    targets = sorted({_kl(setting) for setting in settings}, reverse=True) if target_kl is None else [target_kl]
    choices = [(target, [_nearest(own, target) for own in by_algo.values()]) for target in targets]
    target, chosen = min(choices, key=lambda choice: round(_ratio(choice[1]), 9))  # the first of equals
    ratio = _ratio(chosen)
    return MatchedSettings(tuple(chosen), target, ratio, _text(chosen, target, ratio, target_kl is None, len(settings)))


def _kl(setting: SettingSummary) -> float:
    return max(setting.kl.mean, _SMALLEST_KL)


def _nearest(settings: Sequence[SettingSummary], target: float) -> SettingSummary:
    return min(settings, key=lambda setting: abs(math.log(_kl(setting) / max(target, _SMALLEST_KL))))


def _ratio(chosen: Sequence[SettingSummary]) -> float:
    kls = [_kl(setting) for setting in chosen]
    return max(kls) / min(kls)


def _text(chosen: Sequence[SettingSummary], target: float, ratio: float, own: bool, tried: int) -> str:
    spent = ", ".join(f"{setting.name} {setting.kl.mean:.2f}" for setting in chosen)
    how = f"of {tried} settings by KL alone, nearest to {target:.2f} nats" if tried > len(chosen) else "all there is"
    why = ", where they lie closest together" if own and tried > len(chosen) else ""
    match = "" if ratio <= MATCHED_WITHIN else f"; not matched: the largest is {ratio:.1f} times the smallest"
    return f"Settings ({how}{why}), KL at the last evaluation: {spent} nats{match}."
