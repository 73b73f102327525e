"""stage=offline: the data set's answers as rows, their scores in the cache, values, whole tiny runs, and learning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

import rlhf.answers
from rlhf.algorithms import algorithm_of
from rlhf.algorithms.ilql_heads import HEADS
from rlhf.answers import Answers, scored_once, scores_file
from rlhf.batches import Rollouts
from rlhf.config.build import ConfigError
from rlhf.config.identity import run_folder, run_id
from rlhf.data.examples import Preference
from rlhf.models.loading import word_tokenizer
from rlhf.random import generator
from rlhf.run import execute
from rlhf.runs.checkpoint import load_checkpoint
from rlhf.runs.state import read_rows
from rlhf.stages.offline import DataResponses, UntrainedValues
from rlhf.training_batch import measure_rollouts, training_batch
from rlhf.update import accumulate_gradients
from rlhf.waiting import Interrupted, request_stop, stopped_by_signals
from tests.algorithms.test_ilql import heads_with
from tests.config.composed import config, typed
from tests.helpers import measure_all, nudge, policy_models, random_rollouts, tiny_model, unpadded, value_settings
from tests.test_run import assert_same, signal_at, tiny, without_time

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ("apa", "awr", "ilql")

pytestmark = pytest.mark.usefixtures("torchs_switches")


# --- rows ----------------------------------------------------------------------------------------------------------


def some_answers(count: int = 3, max_new_tokens: int = 4) -> Answers:
    tokenizer = word_tokenizer(["a", "b", "c", "d", "e", "f"])
    pairs = [Preference("a b c d :"[: 2 * (i % 4) + 1], " b" * (i % 3 + 1), " e f a b c") for i in range(count)]
    return Answers(tokenizer, pairs, 3, max_new_tokens)


def test_each_pair_is_two_rows_as_if_they_had_been_sampled():
    answers = some_answers()
    rows = answers.rows(torch.tensor([5, 0, 4, 3]))
    words = answers.tokenizer.convert_ids_to_tokens
    assert [words(ids) for ids in unpadded(rows.response_ids, rows.mask)] == [
        ["e", "f", "a", "b"],  # rejected answers are longer than max_new_tokens: cut, and without an EOS
        ["b", "[EOS]"],
        ["b", "b", "b", "[EOS]"],
        ["e", "f", "a", "b"],
    ]
    assert rows.ended.tolist() == [False, True, True, False]
    assert rows.responses == ["e f a b", " b", " b b b", "e f a b"]
    assert [words(ids) for ids in unpadded(rows.prompt_ids, rows.prompt_mask)] == [
        ["a", "b", "c"],
        ["a"],
        ["a", "b", "c"],
        ["a", "b"],
    ]
    assert rows.prompt_mask[1].tolist() == [False, False, True]  # left-padded
    assert rows.prompts == ["a b c", "a", "a b c", "a b"]
    assert not bool(rows.sampler_logprobs.any()) and len(answers) == 6


def test_a_prompt_is_cut_on_the_left_in_tokens_and_text():
    answers = some_answers(4)
    assert answers.rows(torch.tensor([6])).prompts == ["b c d"]


def test_an_answer_of_exactly_max_new_tokens_has_ended():
    answers = some_answers(3, max_new_tokens=6)
    row = answers.rows(torch.tensor([1]))
    assert row.ended.tolist() == [True] and int(row.mask.sum()) == 6 and row.responses == [" e f a b c"]


def data_responses(scores: Tensor, *overrides: str) -> DataResponses:
    run = config("stage=offline", "algo=awr", "rollout.num_responses=16", *overrides)
    return DataResponses(run, some_answers(20), scores, None)


def test_every_answer_has_its_turn_before_any_comes_again():
    responses = data_responses(torch.arange(40.0))
    seen = torch.cat([responses.scores(responses.rollouts(i), i) for i in range(1, 6)]).tolist()
    assert sorted(seen[:40]) == sorted(seen[40:80]) == [float(i) for i in range(40)]
    assert seen[:40] != seen[40:80]
    other = data_responses(torch.arange(40.0), "seed=1")
    assert other.scores(other.rollouts(1), 1).tolist() != seen[:16]
    rows = responses.rollouts(1)
    expected = responses.answers.rows(torch.tensor(seen[:16]).long())
    assert rows.responses == expected.responses and torch.equal(rows.response_ids, expected.response_ids)


def test_scores_are_z_scored_over_the_whole_data_set_and_clipped():
    raw = torch.tensor([1.0, 3.0, 5.0, 100.0] * 10)
    z = (raw.double() - raw.double().mean()) / raw.double().std()
    scaled = data_responses(raw, "reward.clip=1.5").scaled(raw[:4], 1.0)
    assert torch.allclose(scaled, z[:4].float().clamp(max=1.5))
    assert float(scaled[3]) == 1.5 < float(z[3])
    unscaled = data_responses(raw, "offline.standardize_scores=false", "reward.clip=10").scaled(raw[:4], 1.0)
    assert unscaled.tolist() == [1.0, 3.0, 5.0, 10.0]
    same = torch.full((40,), 2.0)
    assert not bool(data_responses(same).scaled(same[:4], 1.0).any())


# --- scores in the cache -------------------------------------------------------------------------------------------


class Counting:
    """Scores rows by their lengths, counts them, and may ask the run to stop while a chunk is scored."""

    def __init__(self, stop_at: int = 0) -> None:
        self.asked = 0
        self.stop_at = stop_at

    def __call__(self, rollouts: Rollouts) -> Tensor:
        self.asked += len(rollouts.responses)
        if self.asked == self.stop_at:
            request_stop("SIGTERM")
        return rollouts.lengths.float() + rollouts.prompt_mask.sum(1) / 8


def expected_scores(answers: Answers) -> Tensor:
    return Counting()(answers.rows(torch.arange(len(answers))))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(rlhf.answers, "CHUNK", 16)


DAMAGES = {
    "none": (lambda content: content, 0),
    "a line that a kill cut off": (lambda content: content[:-5], 8),
    "a flipped digit": (lambda content: content.replace(b"2.", b"3.", 1), 40),
    "too many": (lambda content: 2 * content, 40),
    "another kind": (lambda content: b"PK\x03\x04\n", 40),
    "empty": (lambda content: b"", 40),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_scores_are_worked_out_once_and_a_damaged_file_is_made_again(tmp_path, small_chunks, damage):
    path, answers, (damaged, asked) = tmp_path / "scores" / "x.txt", some_answers(20), DAMAGES[damage]
    assert torch.equal(scored_once(path, answers, Counting()), expected_scores(answers))
    content, score = path.read_bytes(), Counting()
    path.write_bytes(damaged(content))
    for _ in range(2):
        assert torch.equal(scored_once(path, answers, score), expected_scores(answers))
        assert score.asked == asked and path.read_bytes() == content


def test_an_interruption_loses_nothing_that_is_scored(tmp_path, small_chunks):
    path, answers, score = tmp_path / "x.txt", some_answers(20), Counting(stop_at=32)
    line = "stopped by SIGTERM; 32 of 40 answers of the data set are scored and kept"
    with stopped_by_signals(), pytest.raises(Interrupted, match=line):
        scored_once(path, answers, score)
    assert score.asked == 32
    again = Counting()
    assert torch.equal(scored_once(path, answers, again), expected_scores(answers))
    assert again.asked == 8


def test_who_waits_for_another_run_can_be_stopped(tmp_path):
    path, answers = tmp_path / "x.txt", some_answers(2)
    with FileLock(path.with_suffix(".lock")), stopped_by_signals(), pytest.raises(Interrupted, match="another process"):
        request_stop("SIGTERM")
        scored_once(path, answers, Counting())


def test_scores_are_shared_by_all_that_does_not_change_them(tmp_path):
    answers = some_answers()

    def file(*overrides: str, of: Answers = answers) -> Path:
        return scores_file(config("stage=offline", f"cache_dir={tmp_path}", *overrides), tmp_path, of)

    plain = file("algo=awr")
    assert plain.parent == tmp_path / "scores"
    assert file("algo=ilql", "seed=7", "optimization.epochs=1", "reward.missing_eos_score=-2") == plain
    unread = ("reward.scale=none", "reward.clip=3", "hardware.precision=bf16", "rollout.batch_size=8")
    unread += ("dataset.num_eval_prompts=6", "dataset.kl_budgets=[1]", "dataset.stop_strings=[x]", "dataset.seed=1")
    assert all(file("algo=awr", one) == plain for one in unread)
    others = {file("algo=awr", "reward.missing_eos_score=-1"), file("algo=awr", "hardware.threads=7"), plain}
    others |= {file("algo=awr", one) for one in ("reward.batch_size=3", "hardware.ranks=2")}
    others |= {file("algo=awr", "reward.normalize=mean", one) for one in ("dataset.seed=0", "dataset.seed=1")}
    http = [file("algo=awr", "reward=http", f"reward.url=http://{x}:1/score") for x in "ab"]
    named = {file("algo=awr", "reward=http", f"reward.url=http://{x}:1/score", "reward.server=x") for x in "ab"}
    assert len({*http, *named}) == 3  # a server without a name may be another one elsewhere
    others |= {file("algo=awr", of=other) for other in (some_answers(4), some_answers(3, max_new_tokens=5))}
    (tmp_path / "weights").write_text("other weights of the reward model")
    assert len({*others, file("algo=awr")}) == 10


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["all", "last_k", "lora"])
@pytest.mark.parametrize("network", ["separate", "head"])
@pytest.mark.parametrize("by_length", [False, True])
def test_untrained_values_are_those_before_training_and_leave_no_trace(mode, network, by_length):
    models = policy_models(tiny_model(), mode, value_settings(network))
    rollouts = random_rollouts([2, 3, 1, 2], [3, 4, 2, 1])
    before = measure_all(models, rollouts, 2, by_length=by_length)
    untrained = UntrainedValues(models)
    nudge(models.named_parameters())
    moved = {name: parameter.clone() for name, parameter in models.named_parameters().items()}
    now = measure_all(models, rollouts, 2, by_length=by_length)
    assert not torch.allclose(now.values, before.values)
    again = untrained.values(now, rollouts.mask, 2)  # all as wide as the rollout
    close = 1e-5 if by_length else 0.0
    torch.testing.assert_close(again, before.values, atol=close, rtol=close)
    assert all(torch.equal(p, moved[name]) for name, p in models.named_parameters().items())
    assert torch.equal(measure_all(models, rollouts, 2, by_length=by_length).values, now.values)


# --- whole runs ----------------------------------------------------------------------------------------------------


OFFLINE = ("stage=offline", "value.head_init_std=0.5")
UNREFRESHED = (*OFFLINE, "offline.refresh_values=false")


COMMON = {
    "reward",
    "data_log_ratio",
    "entropy",
    "response_length",
    "eos_rate",
    "policy_loss",
    "value_loss",
    "grad_norm",
}
OWN = {
    "apa": {"infeasible_target_fraction", "explained_variance"},
    "awr": {"mean_weight", "explained_variance"},
    "ilql": {"q_loss", "cql_loss", "awac_loss", "target_q", "advantage"},
}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_logs_what_can_be_said_of_a_data_set(never_stopped, algo):
    run = never_stopped(algo, *OFFLINE)
    rows = read_rows(run_folder(run))
    assert [(row["iteration"], row["step"], row["samples"]) for row in rows] == [(i, 4 * i, 8 * i) for i in range(5)]
    for row in rows[1:]:
        assert set(row) >= {f"train/{name}" for name in COMMON | OWN[algo]}
        assert not {"train/kl", "train/kl_k3", "perf/sampler_logprob_gap"} & set(row)
    assert all(value is not None for row in rows for value in row.values())
    assert rows[1]["train/data_log_ratio"] == 0.0 and rows[4]["train/data_log_ratio"] != 0.0
    assert rows[4]["eval/kl"] != rows[0]["eval/kl"]
    assert run_id(run).startswith(f"{algo}-s0-")


def test_refreshed_values_part_from_the_untrained_ones_once_there_was_training(never_stopped):
    refreshed, not_refreshed = (
        [without_time(row) for row in read_rows(run_folder(never_stopped("awr", *settings)))]
        for settings in (OFFLINE, UNREFRESHED)
    )
    assert refreshed[:2] == not_refreshed[:2]
    assert refreshed[2]["train/policy_loss"] != not_refreshed[2]["train/policy_loss"]
    assert refreshed[2]["train/reward"] == not_refreshed[2]["train/reward"]


@pytest.mark.parametrize(
    "settings",
    [
        ("apa", *UNREFRESHED),
        ("ilql", *OFFLINE, "algo.sync_every=3", "algo.polyak=0.3"),
        ("ilql", *OFFLINE, "model.train.mode=all"),
    ],
)
def test_a_run_goes_on_as_if_never_stopped(never_stopped, monkeypatch, tmp_path, cache, settings):
    expected = never_stopped(*settings)
    run = tiny(tmp_path, cache, *settings)
    with monkeypatch.context() as patch:
        signal_at(patch, 3)  # no checkpoint is due there
        assert execute(run)["status"] == "interrupted"
    checkpoint = load_checkpoint(run_folder(run))
    assert checkpoint is not None and checkpoint.state["iteration"] == 3
    assert execute(run)["status"] == "finished"
    assert_same(run, expected)


def test_ilql_leaves_heads_beside_the_language_model_and_targets_that_lag_behind(never_stopped):
    run = never_stopped("ilql", *OFFLINE, "algo.sync_every=3", "algo.polyak=0.3")
    heads = load_file(run_folder(run) / "final" / HEADS)
    checkpoint = load_checkpoint(run_folder(run))
    assert checkpoint is not None
    for name, tensor in heads.items():
        assert torch.equal(checkpoint.tensors[f"parameter.ilql.{name}"], tensor)
    assert not torch.equal(heads["q.0.2.bias"], heads["target_q.0.2.bias"])
    assert bool(heads["target_q.0.2.bias"].any())  # drawn at 0: syncs have moved it
    assert not any("value_head" in name for name in checkpoint.tensors)


def test_every_beta_is_evaluated_and_the_first_is_the_headline(never_stopped):
    last = read_rows(run_folder(never_stopped("ilql", *OFFLINE, "algo.betas=[1.0,0.5,3.0,10.0]")))[-1]
    names = {key.split("/")[-1] for key in last if key.startswith("eval/beta_1/")}
    assert names >= {"reward", "kl", "reward_even", "reward_odd", "entropy", "gold_reward"}
    for beta in ("0.5", "1", "3", "10"):
        assert {f"eval/beta_{beta}/{name}" for name in names} <= set(last)
    assert all(last[f"eval/{name}"] == last[f"eval/beta_1/{name}"] for name in names)
    assert last["eval/beta_1/kl"] != last["eval/beta_10/kl"]


def test_ilqls_gradients_do_not_depend_on_micro_batches():
    rollouts = random_rollouts([2, 3, 1, 2], [3, 4, 2, 1])
    models, heads = policy_models(tiny_model(), "last_k", critic=False), heads_with()
    results = []
    for size in (1, 4):
        sizes = ("optimization.minibatch_size=4", f"optimization.micro_batch_size={size}")
        run = config("stage=offline", "algo=ilql", "rollout.num_responses=4", *sizes)
        algorithm = algorithm_of(run)
        algorithm.heads = heads
        measured = measure_rollouts(run, models, rollouts, 1)
        batch = training_batch(algorithm, rollouts, measured, torch.randn(4, generator=generator(0, "scores")), 0.0)
        metrics = accumulate_gradients(run, algorithm, models, batch, measured.features)
        trained = [*models.policy_parameters.values(), *heads.trained_parameters()]
        results.append((metrics, [p.grad for p in trained if p.grad is not None]))
        for parameter in trained:
            parameter.grad = None
    (metrics, gradients), (other_metrics, other_gradients) = results
    assert metrics == pytest.approx(other_metrics, rel=1e-5)
    assert len(gradients) == len(other_gradients) > 8
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, other_gradients, strict=True))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("stage=online", "algo=ilql"), "stage.name: ilql cannot learn by stage=online; use stage=offline"),
        (("stage=offline", "algo=ppo"), "stage.name: ppo cannot learn by stage=offline; use stage=online"),
        (("stage=offline", "algo=apa", "algo.anchor=old"), "algo.anchor: old is the policy that sampled"),
        (
            ("stage=offline", "algo=ilql", "offline.refresh_values=false"),
            "offline.refresh_values: algo=ilql does not read it",
        ),
        (("stage=offline", "algo=ilql", "hardware.sharding=fsdp"), "hardware.sharding: fsdp does not cut up ilql's"),
        (("stage=offline", "algo=awr", "reward.baseline=reference"), "reward.baseline: stage=offline does not read it"),
        (("stage=offline", "algo=ilql", "algo.betas=[]"), "algo.betas: empty"),
        (("stage=evaluate", "algo=ilql"), "evaluation.policy: missing"),
    ],
)
def test_what_cannot_be_is_refused(settings, line):
    with pytest.raises(ConfigError, match=line):
        typed(*settings)


# --- learning ------------------------------------------------------------------------------------------------------


def evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/kl" in row]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_offline_learning_on_the_embedded_task(tmp_path, default_cache):
    """AWR's policy, and ILQL's sampler at some beta, end above the SFT policy by a fifth of the standard deviation of
    reference answers' scores; the standard error over 120 prompts is below 0.1."""
    words = ["stage=offline", "algo=apa,awr,ilql", "seed=0,1", "tracking=none", "checkpoint.save_final=none"]
    folders = [f"output_dir={tmp_path}/runs", f"cache_dir={default_cache}"]
    subprocess.run([sys.executable, "main.py", "-m", *words, *folders], cwd=ROOT, check=True, timeout=1400)
    sweep = tmp_path / "runs" / "default"
    for seed in (0, 1):
        (awr,), (ilql,) = (list(sweep.glob(f"{algo}-s{seed}-*")) for algo in ("awr", "ilql"))
        initial = evaluations(awr)[0]["eval/reward"]
        assert evaluations(awr)[-1]["eval/reward"] - initial >= 0.2
        last = evaluations(ilql)[-1]
        assert max(last[f"eval/beta_{beta}/reward"] for beta in (4, 8, 16)) - initial >= 0.2
    assert (sweep / "report.html").is_file()
    table = (sweep / "kl_efficiency.csv").read_text()
    assert all(algo in table for algo in ALGORITHMS)
