"""Two iterations of the embedded default against a loop of their own: transformers' forward pass in float64, response
by response and without padding, formulas as the papers have them, torch's AdamW. Shared are the initial policy's
weights, the sampled tokens and their scores."""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.batches import Rollouts
from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.run import execute
from tests.config.composed import config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("torchs_switches")]


@dataclass
class Iteration:
    """What a run's iteration learnt from."""

    texts: list[tuple[list[int], list[int]]]
    """Tokens of each prompt and its response."""
    scores: list[float]
    references: list[list[float]] = field(default_factory=list)
    """Scores of the initial policy's responses to each prompt; none where the algorithm asks for none."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Iteration]:
    """The iterations of the runs that follow."""
    from rlhf.stages.online import Sampled  # to listen at: the loop below takes nothing of it

    made: list[Iteration] = []
    scores_of, references_of = Sampled.scores, Sampled.references

    def scores(self: Any, rollouts: Rollouts, iteration: int) -> Tensor:
        found = scores_of(self, rollouts, iteration)
        columns = rollouts.prompt_ids, rollouts.prompt_mask, rollouts.response_ids, rollouts.mask
        texts = [(prompt[p].tolist(), response[r].tolist()) for prompt, p, response, r in zip(*columns, strict=True)]
        made.append(Iteration(texts, found.tolist()))
        return found

    def references(self: Any, iteration: int) -> Tensor | None:
        found = references_of(self, iteration)
        if found is not None:
            made[-1].references = found.tolist()
        return found

    monkeypatch.setattr(Sampled, "scores", scores)
    monkeypatch.setattr(Sampled, "references", references)
    return made


def random_order(seed: int, purpose: str, index: int, size: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randperm(size, generator=generator).tolist()


def logprobs_of(model: Any, text: tuple[list[int], list[int]]) -> Tensor:
    """(tokens of the response,) nats."""
    prompt, response = text
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response]


class SlowLoop:
    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.policy: Any = AutoModelForCausalLM.from_pretrained(run_folder(input_runs(run)[0]) / "final").double()
        self.reference = copy.deepcopy(self.policy)
        self.policy.requires_grad_(False)
        self.trained = [
            *self.policy.gpt_neox.layers[-1].parameters(),
            *self.policy.gpt_neox.final_layer_norm.parameters(),
        ]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        settings = run.optimization
        self.optimizer = torch.optim.AdamW(
            self.trained, settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
        )
        self.all_scores: list[float] = []

    def scaled(self, scores: list[float]) -> list[float]:
        spread = statistics.stdev(self.all_scores)
        return [min(max(score / spread, -10.0), 10.0) for score in scores]

    def iteration(self, number: int, data: Iteration) -> dict[str, float]:
        """train/* of one iteration."""
        run, settings = self.run, self.run.optimization
        self.all_scores += data.scores
        with torch.no_grad():
            old, reference = ([logprobs_of(m, text) for text in data.texts] for m in (self.policy, self.reference))
        log_ratios = [o - r for o, r in zip(old, reference, strict=True)]
        advantages = self.advantages(data, [float(ratio.sum()) for ratio in log_ratios])
        sums: dict[str, float] = {}
        size, groups = run.algo.group_size, len(data.texts) // run.algo.group_size
        for epoch in range(settings.epochs):
            order = random_order(run.seed, f"minibatches of epoch {epoch}", number, groups)
            rows = [group * size + place for group in order for place in range(size)]
            for start in range(0, len(rows), settings.minibatch_size):
                minibatch = rows[start : start + settings.minibatch_size]
                new = {row: logprobs_of(self.policy, data.texts[row]) for row in minibatch}
                loss, metrics = self.loss(new, old, reference, advantages)
                gradients = torch.autograd.grad(loss, self.trained)
                norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
                for parameter, gradient in zip(self.trained, gradients, strict=True):
                    parameter.grad = gradient * min(1.0, settings.max_grad_norm / (norm + 1e-6))
                self.optimizer.step()
                for name, value in {"policy_loss": loss.item(), "grad_norm": norm, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + value
        steps = settings.epochs * len(rows) // settings.minibatch_size
        sampled = {
            "reward": statistics.mean(data.scores),
            "kl": statistics.mean(float(ratio.sum()) for ratio in log_ratios),
            "kl_k3": statistics.mean(float((ratio + (-ratio).exp() - 1).sum()) for ratio in log_ratios),
        }
        return sampled | {name: value / steps for name, value in sums.items()}

    def advantages(self, data: Iteration, log_ratios: list[float]) -> list[float]:
        """Of each response, whose sum of log-ratios to the initial policy is given."""
        run, algo, scores = self.run, self.run.algo, self.scaled(data.scores)
        if run.algo.name == "a_star_po":
            worth = [torch.tensor(self.scaled(row), dtype=torch.float64) for row in data.references]
            v_star = [0.5 * float((row / 0.5).exp().mean().log()) for row in worth]
            return [score - value for score, value in zip(scores, v_star, strict=True)]
        found = []
        if run.algo.name == "rloo":
            scores = [score - 0.05 * ratio for score, ratio in zip(scores, log_ratios, strict=True)]
        for start in range(0, len(scores), algo.group_size):
            group = scores[start : start + algo.group_size]
            for place, score in enumerate(group):
                if run.algo.name == "rloo":
                    found.append(score - statistics.mean(group[:place] + group[place + 1 :]))
                else:
                    found.append((score - statistics.mean(group)) / (statistics.stdev(group) + 1e-4))
        return found

    def loss(
        self, new: dict[int, Tensor], old: list[Tensor], reference: list[Tensor], advantages: list[float]
    ) -> tuple[Tensor, dict[str, float]]:
        terms, outside, tokens, other = [], 0, 0, 0.0
        for row, logprobs in new.items():
            advantage = advantages[row]
            if self.run.algo.name == "a_star_po":
                ratio = (logprobs - reference[row]).sum()
                terms.append((0.001 * ratio - advantage) ** 2)
                other += ratio.item()
            elif self.run.algo.name == "rloo":
                ratio = (logprobs.sum() - old[row].sum()).exp()
                terms.append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
                outside, tokens = outside + (abs(ratio.item() - 1) > 0.2), tokens + 1
            else:
                ratio, back = (logprobs - old[row]).exp(), reference[row] - logprobs
                k3 = back.exp() - back - 1
                surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                terms.append((0.04 * k3 - surrogate).mean())
                other += k3.sum().item()
                outside, tokens = outside + int(((ratio - 1).abs() > 0.2).sum()), tokens + len(ratio)
        name = {"a_star_po": "log_ratio", "grpo": "kl_in_loss"}.get(self.run.algo.name)
        metrics = {"clip_fraction": outside / tokens} if tokens else {}
        return torch.stack(terms).mean(), metrics | ({name: other / len(new)} if name else {})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.mark.parametrize("algo", ["rloo", "grpo", "a_star_po"])
def test_two_iterations_are_those_of_a_slow_loop(
    algo: str, recorded: list[Iteration], tmp_path: Path, inputs: Path
) -> None:
    run = config(
        f"algo={algo}",
        "rollout.iterations=2",
        "evaluation.reference_responses=0",
        "tracking=none",
        f"cache_dir={inputs}",
        f"output_dir={tmp_path}",
    )
    assert execute(run)["status"] == "finished"
    lines = (run_folder(run) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["iteration"] > 0]
    assert len(rows) == len(recorded) == 2
    slow = SlowLoop(run)
    for number, (row, data) in enumerate(zip(rows, recorded, strict=True), 1):
        expected = slow.iteration(number, data)
        assert {"policy_loss", "grad_norm", "kl"} < set(expected)
        found = {name: row[f"train/{name}"] for name in expected}
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
