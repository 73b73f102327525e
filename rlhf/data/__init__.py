"""Data sets as text: SFT texts, preference pairs, prompts, and for made-up labels the gold scorer behind them.

A data set is a module with one function from its settings to a `TextData`, and a line in DATASETS. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

from rlhf.config.dataset import DatasetConfig
from rlhf.data.examples import TextData
from rlhf.data.hh import load_hh
from rlhf.data.letters import load_letters
from rlhf.data.reviews import load_reviews
from rlhf.data.stackexchange import load_stackexchange
from rlhf.data.tldr import load_tldr

DATASETS: dict[str, Callable[[DatasetConfig], TextData]] = {
    "letters": load_letters,
    "reviews": load_reviews,
    "hh": load_hh,
    "tldr": load_tldr,
    "stackexchange": load_stackexchange,
}


def load_text_data(config: DatasetConfig) -> TextData:
    """The data set that `config.name` names. The user's mistakes are raised as DataError."""
    return DATASETS[config.name](config)
