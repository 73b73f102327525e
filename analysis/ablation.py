"""One number varied, as lambda or a KL coefficient: KL efficiency, reward and KL over its values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from analysis.compared import Comparison, SettingSummary
from analysis.labels import label_values
from analysis.statistics import Interval


@dataclass(frozen=True)
class AblationPoint:
    """One value of the setting, over its seeds."""

    value: float
    setting: SettingSummary


@dataclass(frozen=True)
class Ablation:
    """The settings of one algorithm that differ in this one number alone."""

    algo: str
    key: str
    """As typed, such as algo.lam."""
    points: tuple[AblationPoint, ...]
    """By rising value."""

    @property
    def is_log(self) -> bool:
        """Whether the values are spread over orders of magnitude."""
        values = [point.value for point in self.points]
        return min(values) > 0.0 and max(values) / min(values) >= 8.0


ABLATION_QUANTITIES: dict[str, Callable[[AblationPoint], Interval]] = {
    "KL efficiency": lambda point: point.setting.headline.kl_efficiency,
    "Last reward": lambda point: point.setting.reward_after,
    "Last KL, nats per response": lambda point: point.setting.kl,
}
"""What is drawn over the values, by its title."""


def ablations(comparison: Comparison) -> list[Ablation]:
    """One for each algorithm whose settings differ in one number; none of those that differ in more."""
    found = []
    for algo in dict.fromkeys(setting.algo for setting in comparison.settings):
        settings = [setting for setting in comparison.settings if setting.algo == algo]
        varied = label_values([setting.runs[0].record.config for setting in settings])
        if len(settings) > 1 and len(varied) == 1:
            ((key, values),) = varied.items()
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                pairs = zip(values, settings, strict=True)
                points = [AblationPoint(float(value), setting) for value, setting in pairs if math.isfinite(value)]
                if len(points) > 1:
                    found.append(Ablation(algo, key, tuple(sorted(points, key=lambda point: point.value))))
    return found
