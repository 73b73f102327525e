"""One setting of each algorithm, so chosen that they spent about the same KL: by KL alone, never by reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from analysis.compared import SettingSummary
from analysis.errors import AnalysisError

# Beyond this largest over smallest KL the settings are not matched, and it is said so.
MATCHED_WITHIN = 1.25
# Of the KL that is meant to be spent: what spent less hardly left the initial policy.
MOVED = 0.01
_SMALLEST_KL = 1e-6  # nats: what did not move has no logarithm


@dataclass(frozen=True)
class MatchedSettings:
    settings: tuple[SettingSummary, ...]
    """One per algorithm (or other group), in the order given."""
    target_kl: float
    """Nats at the last evaluation, mean over seeds, that the choice came closest to."""
    ratio: float
    """Largest over smallest KL among the chosen."""
    text: str
    """How they were chosen, and whether they match, in a sentence."""

    @property
    def mismatch(self) -> str:
        """Empty where they match."""
        return _mismatch(self.ratio)


def check_nats(option: str, value: float | None) -> None:
    """For every command that takes a KL.

    Raises:
        AnalysisError: `value` is there and no number of nats above 0.
    """
    if value is not None and not 0.0 < value < math.inf:
        raise AnalysisError(f"{option}: {value:g} is not a number of nats above 0")


def matched_settings(
    settings: Sequence[SettingSummary],
    target_kl: float | None = None,
    group: Callable[[SettingSummary], Hashable] = lambda setting: setting.algo,
    name: Callable[[SettingSummary], str] = lambda setting: setting.name,
) -> MatchedSettings:
    """Of each algorithm the setting whose last KL is nearest to the target, by their ratio.

    Settings that hardly left the initial policy are no candidates where an algorithm has others.

    Args:
        settings: at least one.
        target_kl: nats; None: of the settings' own KLs the largest for which the chosen match, or else the one for
            which they lie closest together.
        group: of which one setting each is chosen.
        name: what a setting is called in the text.
    """
    assert settings
    groups: dict[Hashable, list[SettingSummary]] = {}
    for setting in settings:
        groups.setdefault(group(setting), []).append(setting)
    candidates = [[one for one in own if _moved(one)] or own for own in groups.values()]
    chosen = [own[0] for own in candidates]
    if target_kl is not None:
        target = target_kl
        chosen = [_nearest(own, target) for own in candidates]
    else:
        target = 0.0
        best = math.inf
        for kl in sorted({_kl(one) for own in candidates for one in own}, reverse=True):
            choice = [_nearest(own, kl) for own in candidates]
            if (ratio := _ratio(choice)) < best:
                target, chosen, best = kl, choice, ratio
            if best <= MATCHED_WITHIN:
                break
    spent = {name(one): one.kl.mean for one in chosen}
    text = _text(spent, _ratio(chosen), target, target_kl is None, len(settings))
    return MatchedSettings(tuple(chosen), target, _ratio(chosen), text)


def _moved(setting: SettingSummary) -> bool:
    return setting.kl.mean >= MOVED * setting.intended_kl


def _kl(setting: SettingSummary) -> float:
    return max(setting.kl.mean, _SMALLEST_KL)


def _nearest(settings: Sequence[SettingSummary], target: float) -> SettingSummary:
    return min(settings, key=lambda setting: abs(math.log(_kl(setting) / max(target, _SMALLEST_KL))))


def _ratio(chosen: Sequence[SettingSummary]) -> float:
    kls = [_kl(setting) for setting in chosen]
    return max(kls) / min(kls)


def _text(spent: Mapping[str, float], ratio: float, target: float, own: bool, tried: int) -> str:
    how = "all there is"
    if tried > len(spent):
        how = f"of {tried} by KL alone, nearest to {target:.2f} nats"
        if own:
            how += ", the most at which they match" if ratio <= MATCHED_WITHIN else ", where they lie closest together"
    listed = ", ".join(f"{name} {kl:.2f}" for name, kl in spent.items())
    match = f"; {found}" if (found := _mismatch(ratio)) else ""
    return f"Settings ({how}), KL at the last evaluation: {listed} nats{match}."


def _mismatch(ratio: float) -> str:
    return "" if ratio <= MATCHED_WITHIN else f"not matched: the largest is {ratio:.1f} times the smallest"
