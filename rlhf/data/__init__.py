"""Data sets as text: SFT texts, preference pairs, prompts, and for made-up labels the gold scorer behind them.

A data set is a module with one function from its settings to a `TextData`, and a line in DATASETS. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from rlhf.config.dataset import DatasetConfig
from rlhf.data.countdown import load_countdown
from rlhf.data.examples import PARTS, TextData
from rlhf.data.letters import load_letters
from rlhf.data.preferences import load_hh, load_preferences, load_prompts
from rlhf.data.reasoning_gym import load_reasoning_gym
from rlhf.data.reviews import load_reviews
from rlhf.data.stackexchange import load_stackexchange
from rlhf.data.sums import load_sums
from rlhf.data.tldr import load_tldr

DATASETS: dict[str, Callable[[DatasetConfig, Collection[str]], TextData]] = {
    "letters": load_letters,
    "sums": load_sums,
    "countdown": load_countdown,
    "reasoning_gym": load_reasoning_gym,
    "reviews": load_reviews,
    "preferences": load_preferences,
    "prompts": load_prompts,
    "hh": load_hh,
    "tldr": load_tldr,
    "stackexchange": load_stackexchange,
}


def load_text_data(config: DatasetConfig, parts: Collection[str] = tuple(PARTS)) -> TextData:
    """The data set that `config.name` names.

    Args:
        parts: names of the parts that are wanted; the others are empty, and the options that bound them are not read.

    Raises:
        DataError: the user's mistakes.
    """
    return DATASETS[config.name](config, parts)
