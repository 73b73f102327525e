"""Whole tiny runs with every reward that nothing here has trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.data import load_text_data
from rlhf.random import endless_order
from rlhf.run import execute
from rlhf.runs.state import read_rows
from rlhf.scorers import Scorer, load_scorer
from rlhf.scorers.http import RewardServerError
from tests.scorers.made_up import (
    Server,
    byte_tokenizer,
    classifier,
    says,
    scores_of,
    serving,
    stalls,
)
from tests.test_run import outcome, tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")
CPU = torch.device("cpu")
SHORT = ("rollout.iterations=2",)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("rlhf.scorers.http.FIRST_WAIT", 0.02)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def sequence_classifier(folder: Path) -> list[str]:
    config = GPT2Config(vocab_size=257, n_positions=128, n_embd=16, n_layer=1, n_head=2, num_labels=1)
    classifier(GPT2ForSequenceClassification, config).save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    return [f"reward.path={folder / 'gpt2'}"]


def sentiment(_: Path) -> list[str]:
    return ["reward=sentiment"]


def scorer_of(run: RunConfig) -> Scorer:
    """As the run itself has it."""
    trained = None if run.reward.path is None else Path(run.reward.path)
    return load_scorer(run, trained, CPU, load_text_data(run.dataset))


def samples_of(run: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder(run) / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("reward", [sequence_classifier, sentiment])
def test_a_run_is_rewarded_by_it_and_normalised_on_reference_answers(tmp_path, cache, reward: Callable):
    overrides = [*SHORT, *reward(tmp_path), "reward.normalize=mean_std", "reward.baseline=reference"]
    run = tiny(tmp_path / "runs", cache, "ppo", *overrides)
    assert [needed.stage.name for needed in input_runs(run)] == ["sft"]
    assert execute(run)["status"] == "finished"
    scorer, data = scorer_of(run), load_text_data(run.dataset)
    samples = samples_of(run)
    scores = scorer.score([s["prompt"] for s in samples], [s["response"] for s in samples])
    assert [s["reward"] for s in samples] == pytest.approx(scores.tolist(), abs=1e-4)
    every = scorer.score([e.prompt for e in data.prompts], [e.response for e in data.prompts])  # 24, all drawn
    assert float(every.mean()) == pytest.approx(0, abs=1e-4)
    assert float(every.std(correction=0)) == pytest.approx(1, abs=1e-4)
    rows = read_rows(run_folder(run))
    assert len({row["train/reward"] for row in rows[1:]}) == 2


def vowels(prompt: str, response: str) -> float:
    return sum(response.count(vowel) for vowel in "aeiou") - len(response) / 10 + len(prompt) % 3


def test_a_server_rewards_a_run_and_may_fail_and_stall_on_the_way(tmp_path, cache):
    mishaps = [stalls(2.0), says("", 503), says("<html>")]
    with serving(Server(scores_of(vowels), mishaps)) as server:
        settings = (f"reward.url={server.url}", "reward.timeout_seconds=0.5", "reward.batch_size=3")
        run = tiny(tmp_path, cache, "apa", *SHORT, "reward=http", *settings)
        assert execute(run)["status"] == "finished"
    for sample in samples_of(run):
        assert sample["reward"] == pytest.approx(vowels(sample["prompt"], sample["response"]), abs=1e-5)
    assert max(len(request["responses"]) for request in server.requests) == 3
    # Two evaluations of 8 prompts and two iterations of 8 responses, in threes, and three tries in vain.
    assert len(server.requests) == 4 * 3 + 3
    sent = {prompt for request in server.requests for prompt in request["prompts"]}
    data = load_text_data(run.dataset)
    used = endless_order(run.seed, "prompts", 0, 16, len(data.prompts)).tolist()
    assert sent == {data.prompts[i].prompt for i in used} | {e.prompt for e in data.eval_prompts}


def test_a_server_that_is_of_no_use_ends_a_run_in_one_line(tmp_path, cache):
    with serving(Server(says('{"scores": [NaN, 1, 1, 1, 1, 1, 1, 1]}'))) as server:
        run = tiny(tmp_path, cache, "apa", *SHORT, "reward=http", f"reward.url={server.url}", "reward.retries=1")
        message = rf"^reward.url: {server.url} gave a score that is no finite number \('NaN', .* 1 of 8\)"
        with pytest.raises(RewardServerError, match=message):
            execute(run)
    summary = json.loads((run_folder(run) / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["error"].startswith(f"RewardServerError: reward.url: {server.url}")


def test_a_run_that_its_server_left_goes_on_at_another_address(tmp_path, cache):
    """Where the same reward is served is no part of a run; what it is normalised by is found again."""
    honest = scores_of(vowels)
    own = ("reward=http", "reward.retries=0", "reward.normalize=mean_std", "checkpoint.checkpoint_every=1", *SHORT)
    with serving(Server(honest)) as server:
        run = tiny(tmp_path / "left", cache, "apa", *own, f"reward.url={server.url}")
        # The references, the first evaluation, the first iteration, the second.
        server.replies = [honest, honest, honest, says("", 500)]
        with pytest.raises(RewardServerError):
            execute(run)
    with serving(Server(honest)) as server:
        again = tiny(tmp_path / "left", cache, "apa", *own, f"reward.url={server.url}")
        assert execute(again)["status"] == "finished"
        assert len(server.requests) == 3  # the references, the second iteration and the last evaluation
        whole = tiny(tmp_path / "whole", cache, "apa", *own, f"reward.url={server.url}")
        assert execute(whole)["status"] == "finished"
    assert outcome(again) == outcome(whole)


def test_an_adapter_that_the_reward_model_stage_left_scores_as_its_merged_twin(tmp_path, cache):
    scores = {}
    for merged in ("true", "false"):
        lora = ("reward_model.train.mode=lora", "reward_model.learning_rate=0.01")
        stage = tiny(tmp_path, cache, "apa", "stage=reward_model", *lora, f"reward_model.train.merge_adapters={merged}")
        assert execute(stage)["status"] == "finished"
        final = run_folder(stage) / "final"
        assert (final / "adapter_config.json").exists() == (merged == "false")
        run = tiny(tmp_path, cache, "apa", *SHORT, f"reward.path={final}")
        assert execute(run)["status"] == "finished"
        prompts = load_text_data(run.dataset).prompts
        scores[merged] = scorer_of(run).score([e.prompt for e in prompts], [e.response for e in prompts])
    torch.testing.assert_close(scores["false"], scores["true"], atol=1e-4, rtol=0)
    assert float(scores["true"].std()) > 0.1
