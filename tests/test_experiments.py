"""Every experiment of the paper: its numbers against the paper's table, its sweep files against the figures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from rlhf.config import APAConfig, AWRConfig, PPOConfig, RunConfig
from tests.config.composed import CONF, config, typed
from tests.test_main import typed as typed_here

__all__ = ["typed_here"]

SWEEPS = Path(__file__).parents[1] / "sweeps"
FIGURES = sorted(SWEEPS.glob("figure_*.yaml")) + sorted(SWEEPS.glob("demo_figure_*.yaml"))


@dataclass(frozen=True)
class Paper:
    """What the paper, or where it is silent its released code, says of an experiment."""

    policy: str
    data: str
    reward: str | None
    responses: int
    batch: int
    learning_rate: float
    steps: int
    tokens: tuple[int, int]
    """Longest response, longest prompt + response."""
    trained: tuple[str, int]
    betas: tuple[float, float] = (0.9, 0.95)
    apa_lambda: float = 0.1
    init_kl: float = 0.05
    epochs: int = 2


STATIC_HH, HH_REWARD = "Dahoas/rm-static", "Dahoas/gptj-rm-static"
TLDR, TLDR_REWARD = "CarperAI/openai_summarize_comparisons", "CarperAI/openai_summarize_tldr_rm_checkpoint"
HH_TOKENS, LAST_TWO = (128, 1024), ("last_k", 2)
HH = Paper("Dahoas/pythia-125M-static-sft", STATIC_HH, HH_REWARD, 64, 8, 8e-6, 20_000, HH_TOKENS, LAST_TWO)
HH_1B = replace(HH, policy="Dahoas/pythia-1B-static-sft", batch=2, learning_rate=1e-6)
HH_6B = replace(HH, policy="Dahoas/pythia-6B-static-sft", batch=1, learning_rate=1e-6)
TLDR_2_7B = Paper(
    "EleutherAI/gpt-neo-2.7B",
    TLDR,
    TLDR_REWARD,
    128,
    2,
    1e-6,
    5_000,
    (50, 550),
    ("last_k", 8),
    (0.9, 0.999),
    init_kl=0.1,
)
PAPER = {
    "hh_125m": HH,
    "hh_1b": HH_1B,
    "hh_6b": HH_6B,
    "dolly_7b": replace(HH_6B, policy="databricks/dolly-v2-7b", apa_lambda=1.0),
    "tldr_2_7b": TLDR_2_7B,
    "tldr_6b": replace(TLDR_2_7B, policy="CarperAI/openai_summarize_tldr_sft"),
    # Responses and steps are ours: the text lost them. A batch of 16 with 8 accumulation steps.
    "stackexchange_7b": Paper(
        "huggyllama/llama-7b",
        "lvwerra/stack-exchange-paired/data/reward",
        None,
        256,
        16 * 8,
        2e-5,
        600,
        HH_TOKENS,
        ("lora", 16),
        init_kl=0.1,
    ),
    # Appendix D.3 and the released offline code.
    "hh_125m_offline": replace(HH, batch=4, learning_rate=1e-6),
    "hh_1b_offline": HH_1B,
}


@pytest.mark.parametrize(
    ("name", "algo"),
    [
        (name, algo)
        for name in PAPER
        for algo in (("apa", "awr") if name.endswith("_offline") else ("apa", "ppo", "awr"))
    ],
)
def test_an_experiment_has_the_papers_numbers(name, algo):
    paper, run = PAPER[name], config(f"experiment={name}", f"algo={algo}")
    optimization, train = run.optimization, run.model.train
    assert (run.model.path, run.dataset.hub, run.reward.path) == (paper.policy, paper.data, paper.reward)
    assert (run.rollout.num_responses, optimization.minibatch_size) == (paper.responses, paper.batch)
    assert optimization.learning_rate == run.value.learning_rate == paper.learning_rate
    steps = run.rollout.iterations * optimization.epochs * paper.responses // paper.batch
    assert abs(steps - paper.steps) <= paper.steps * 0.005
    assert (run.dataset.max_new_tokens, run.dataset.max_total_length) == paper.tokens
    assert (train.mode, train.lora_rank if train.mode == "lora" else train.last_k) == paper.trained
    assert tuple(optimization.betas) == paper.betas and optimization.epochs == paper.epochs
    assert (optimization.eps, optimization.weight_decay, optimization.schedule) == (1e-8, 1e-6, "constant")
    assert optimization.max_grad_norm == 1.0
    advantages = run.advantages
    assert (advantages.gamma, advantages.gae_lambda, run.value.coef, run.reward.clip) == (1.0, 0.95, 1.0, 10.0)
    _check_algorithm(run, paper)


def _check_algorithm(run: RunConfig, paper: Paper) -> None:
    algo = run.algo
    if isinstance(algo, APAConfig):
        assert algo.lam == paper.apa_lambda and algo.anchor == "initial"
    elif isinstance(algo, AWRConfig):
        assert algo.lam == 1.0 and algo.weight_clip is None
    else:
        assert isinstance(algo, PPOConfig) and (algo.ratio_clip, algo.value_clip) == (0.2, 0.2)
        control = algo.kl
        assert (control.controller, control.init_coef) == ("adaptive", paper.init_kl)
        assert (control.target, control.horizon) == (6.0, 10_000.0)


def test_the_reward_model_of_stackexchange_has_lora_of_rank_8():
    run = config("experiment=stackexchange_7b")
    assert (run.sft.train.mode, run.sft.train.lora_rank) == ("lora", 16)
    assert (run.reward_model.train.mode, run.reward_model.train.lora_rank) == ("lora", 8)


def cells(file: Path) -> list[tuple[str, ...]]:
    """The overrides of each run of a sweep file, by a product of its own lists."""
    sweeper = yaml.safe_load(file.read_text())["hydra"]["sweeper"]
    found = []
    for point in _product(sweeper["params"]):
        labels = {*point, *(text.removeprefix("algo=") for text in point)}
        spaces = [space for label, space in sweeper.get("spaces", {}).items() if label in labels]
        found += [(*point, *inner) for inner in _product(spaces[0] if spaces else {})]
    return found


def _product(lists: dict[str, object]) -> list[tuple[str, ...]]:
    axes = [[f"{key}={value.strip()}" for value in str(values).split(",")] for key, values in lists.items()]
    return list(itertools.product(*axes))


RUNS = {
    "figure_1": 2,
    "figure_2": 9,
    "figure_3": 18,
    "figure_4": 9,
    "figure_5": 12,
    "figure_6": 4,
    "figure_7": 15,
    "figure_8": 9,
    "figure_9": 18,
    "demo_figure_3": 9,
    "demo_figure_7": 10,
    "demo_figure_8": 9,
    "demo_figure_9": 9,
}


@pytest.mark.parametrize("file", FIGURES, ids=lambda file: file.stem)
def test_a_figures_file_says_what_it_remakes_and_all_its_runs_compose(file):
    content = yaml.safe_load(file.read_text())
    number = file.stem.rsplit("_", 1)[1]
    first = file.read_text().splitlines()[0]
    runs = cells(file)
    assert first.startswith(f"# Figure {number}") and f"python main.py -m +sweep={file.stem} " in first
    assert f"({len(runs)} runs, about " in first and ("GPU hours" in first or "no GPU" in first)
    assert content["sweep_name"] == file.stem and len(runs) == RUNS[file.stem]
    for overrides in runs:
        stage = [f"stage={content['stage']['name']}"] if "stage" in content else []
        run = typed(*overrides, *stage)
        assert run.hardware.device == ("cpu" if file.stem.startswith("demo") else "cuda")


def test_runs_for_debugging_are_none_of_the_figures(typed_here):
    for further, name in ((), "figure_8"), (("debug=one_step",), "debug"):
        _, output, _ = typed_here("--cfg", "job", "+sweep=figure_8", *further)
        assert f"\nsweep_name: {name}\n" in output


def test_every_experiment_of_the_paper_is_here():
    names = {file.stem for file in (CONF / "experiment").glob("*.yaml")}
    assert names >= set(PAPER)
    assert {file.stem for file in FIGURES} == set(RUNS)
