"""What a judge made of a comparison, whoever the judge is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.winrate.matching import Comparison
from analysis.winrate.prompt import Reply, Verdict

Outcome = Literal["win", "tie", "loss", "inconsistent", "unparsed"]

_FORWARD: dict[Verdict, float] = {"A": 1.0, "TIE": 0.5, "B": 0.0}
_BACKWARD: dict[Verdict, float] = {"A": 0.0, "TIE": 0.5, "B": 1.0}


@dataclass(frozen=True)
class Asked:
    """One order of a comparison: the verdict by place (A is what was shown first) and what it came from."""

    verdict: Verdict | None  # None: no answer had one
    replies: tuple[Reply, ...] = ()  # one per attempt; none where nobody was asked
    refusal: str = ""  # why the server would not answer


@dataclass(frozen=True)
class Judgement:
    """A comparison in both orders: `forward` shows model_a's response first, `backward` model_b's."""

    comparison: Comparison
    forward: Asked
    backward: Asked

    @property
    def score(self) -> float | None:
        """Mean of the two orders for model_a, a win 1, a tie 0.5, a loss 0; None where one has no verdict."""
        first, second = self.forward.verdict, self.backward.verdict
        if first is None or second is None:
            return None
        return (_FORWARD[first] + _BACKWARD[second]) / 2.0

    @property
    def outcome(self) -> Outcome:
        """For model_a: a win above 0.5 (both orders, or one and a tie), a loss below; at 0.5 a tie where both orders
        say so, and `inconsistent` where each order prefers another model."""
        score = self.score
        if score is None:
            return "unparsed"
        if score != 0.5:
            return "win" if score > 0.5 else "loss"
        return "tie" if self.forward.verdict == "TIE" else "inconsistent"

    @property
    def orders_agree(self) -> bool:
        """Both orders say the same of the models."""
        return self.score in (0.0, 1.0) or self.outcome == "tie"

    @property
    def verdicts_by_place(self) -> tuple[Verdict, ...]:
        """Those a judge gave after it saw the responses in an order."""
        return tuple(asked.verdict for asked in (self.forward, self.backward) if asked.verdict and asked.replies)
