"""What the paper's figures show: the one table.

Zhu et al. 2023, "Fine-Tuning Language Models with Advantage-Induced Policy Alignment".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LineKind = Literal["algorithm", "lambda", "controller", "pair"]


@dataclass(frozen=True)
class Named:
    """A model or data set of the paper, and the names it may have here."""

    name: str
    pattern: str
    """Regular expression, searched for in `model.name` or `dataset.name` in lower case."""

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name.lower()) is not None


@dataclass(frozen=True)
class PaperFigure:
    """One figure: what it expects of the runs, and what a reader should look for."""

    number: int
    shows: str
    """Whatever the data set and the models are."""
    finds: str
    """What the paper reads from it."""
    algos: tuple[str, ...]
    """`algo.name` in the order of the legend; other algorithms are left out."""
    dataset: Named | None
    models: tuple[Named, ...]
    """A row each; other models are drawn too, and it is said."""
    lines: LineKind
    """By what lines are told apart."""
    stage: str = "online"
    chosen_at_equal_kl: bool = False
    """Whether the paper chose settings by KL; otherwise that is done only where an algorithm has several."""
    log_kl: bool = False
    """Whether the KL axis is logarithmic where the lines are far apart."""

    @property
    def title(self) -> str:
        """With the paper's data set and models."""
        of = [self.dataset.name if self.dataset else "", " and ".join(model.name for model in self.models)]
        return f"Figure {self.number}: {', '.join(filter(None, of))}; {self.shows}"


_HH = Named("HH", r"^hh|helpful|harmless")
_STACK_EXCHANGE = Named("StackExchange", r"stack_?-?exchange")
_TLDR = Named("TLDR", r"tl_?dr")
_125M = Named("125M", r"(?<!\d)1[26]\dm")  # the hub now calls pythia-125m pythia-160m
_1B = Named("1B", r"(?<!\d)(?<!\d[._])1(?:[._][04])?b")
_2_7B = Named("2.7B", r"(?<!v)2[._]7b")
_6B = Named("6B", r"(?<!\d)(?<!\d[._])6(?:[._]\d)?b|6[._]9b|gpt-?_?j")
_7B = Named("LLaMA-7B", r"llama.*7b")
_DOLLY = Named("Dolly-v2-7B", r"dolly")

_ALL_THREE = ("apa", "ppo", "awr")

FIGURES = {
    figure.number: figure
    for figure in (
        PaperFigure(
            number=1,
            shows="win rates of SFT, PPO and APA",
            finds="judged by GPT-4, APA wins more often than it loses against SFT and against PPO",
            algos=(),
            dataset=_STACK_EXCHANGE,
            models=(_7B,),
            lines="pair",
        ),
        PaperFigure(
            number=2,
            shows="APA, PPO and AWR at similar KL",
            finds="at similar KL, APA soon has a higher reward than PPO and AWR; AWR is unstable with every setting",
            algos=_ALL_THREE,
            dataset=_STACK_EXCHANGE,
            models=(_7B,),
            lines="algorithm",
            chosen_at_equal_kl=True,
        ),
        PaperFigure(
            number=3,
            shows="APA, PPO and AWR",
            finds="PPO deteriorates after some steps, APA and AWR are stable; APA has the highest reward and less KL",
            algos=_ALL_THREE,
            dataset=_HH,
            models=(_125M, _1B),
            lines="algorithm",
        ),
        PaperFigure(
            number=4,
            shows="APA, PPO and AWR",
            finds="APA has the highest reward; PPO is more stable than with small models, its KL slightly below APA's",
            algos=_ALL_THREE,
            dataset=_HH,
            models=(_6B,),
            lines="algorithm",
        ),
        PaperFigure(
            number=5,
            shows="APA, PPO and AWR",
            finds="APA needs fewer samples than PPO and controls KL better, with both models",
            algos=_ALL_THREE,
            dataset=_TLDR,
            models=(_2_7B, _6B),
            lines="algorithm",
        ),
        PaperFigure(
            number=6,
            shows="APA and PPO",
            finds="APA improves on the initial model with less KL, PPO does not improve; AWR drops and is not shown",
            algos=("apa", "ppo"),
            dataset=_HH,
            models=(_DOLLY,),
            lines="algorithm",
        ),
        PaperFigure(
            number=7,
            shows="APA by its lambda",
            finds="lambda sets how much KL is spent and where the reward converges: a clear trade-off",
            algos=("apa",),
            dataset=_HH,
            models=(_125M,),
            lines="lambda",
            log_kl=True,
        ),
        PaperFigure(
            number=8,
            shows="PPO by its KL control",
            finds="without control PPO gets more reward for far more KL; with the adaptive controller its reward drops "
            "midway, when the penalty takes over",
            algos=("ppo",),
            dataset=_HH,
            models=(_125M,),
            lines="controller",
            log_kl=True,
        ),
        PaperFigure(
            number=9,
            shows="ILQL, AWR and APA, offline",
            finds="AWR does better than ILQL, APA does not carry over; offline training adds little after SFT",
            algos=("ilql", "awr", "apa"),
            dataset=_HH,
            models=(_125M, _1B),
            lines="algorithm",
            stage="offline",
        ),
    )
}

PAIRS = (("sft", "ppo"), ("sft", "apa"), ("ppo", "apa"))
"""Of figure 1."""
CONTROLLERS = {"none": "no KL control", "fixed": "fixed KL coefficient", "adaptive": "adaptive KL control"}
"""`algo.kl.controller` in the order of figure 8's legend, and how it says it."""
