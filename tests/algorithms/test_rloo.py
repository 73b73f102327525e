"""RLOO worked out by hand, and what must hold of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rlhf.algorithms.rloo import RLOO, leave_one_out, rloo_loss
from rlhf.batches import Totals, TrainingBatch
from rlhf.config.algo import RLOOConfig
from rlhf.config.identity import run_folder
from rlhf.random import generator
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.test_run import assert_same, signal_at, tiny, weights

CONFIG = RLOOConfig(name="rloo", group_size=2, ratio_clip=0.2, kl=None)  # type: ignore[arg-type]  # not the loss's matter
ALGORITHM = RLOO(CONFIG, None)  # type: ignore[arg-type]  # it estimates no values


def test_the_advantage_is_the_reward_less_the_mean_of_the_others():
    advantages = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), 3)
    assert advantages.tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0]


def test_the_reward_of_a_response_is_the_score_less_the_penalty_of_all_its_tokens():
    # Two prompts of two responses: R = 2 - 0.5, 1 - 0.25 and 0.5, 0.5.
    rewards = torch.tensor([[-0.5, 2.0], [0.75, 0.0], [0.5, 0.0], [0.25, 0.25]])
    signal = ALGORITHM.signal(rewards, None, torch.ones(4, 2, dtype=torch.bool))
    assert signal.advantages.tolist() == [0.75, -0.75, 0.0, 0.0] and signal.returns is None


def test_the_ratio_of_a_whole_response_is_clipped():
    ratios = torch.tensor([0.3, -0.1]).exp()
    loss = rloo_loss(ratios, torch.tensor([2.0, -1.0]), ratio_clip=0.2, num_responses=2)
    assert float(loss) == pytest.approx((-2 * 1.2 + math.exp(-0.1)) / 2)


def test_a_bad_response_that_has_run_away_is_pulled_back():
    mask = torch.ones(2, 3, dtype=torch.bool)
    old = torch.zeros(2, 3)
    logprobs = torch.full((2, 3), 9.0, requires_grad=True)  # 27 nats more likely than when it was sampled
    batch = TrainingBatch(torch.arange(2), mask, old, old, torch.tensor([1.0, -1.0]))
    loss_of(batch, logprobs, 2).loss.backward()
    assert logprobs.grad is not None
    good, bad = logprobs.grad
    assert not good.any() and bool((bad > 0).all()) and bool(bad.isfinite().all())


def random_batch(rows: int = 6, width: int = 4) -> tuple[TrainingBatch, torch.Tensor]:
    draws = generator(0, "rloo")
    mask = torch.arange(width) < torch.tensor([4, 1, 3, 2, 4, 4])[:rows, None]
    old, new = (-torch.rand(rows, width, generator=draws) * mask for _ in range(2))
    rewards = torch.randn(rows, width, generator=draws) * mask
    signal = ALGORITHM.signal(rewards, None, mask)
    return TrainingBatch(torch.arange(rows), mask, old, old, signal.advantages), old + 0.2 * (new - old)


def loss_of(batch: TrainingBatch, logprobs: torch.Tensor, responses: int):
    return ALGORITHM.loss(batch, logprobs, Totals(torch.tensor(1), responses))


def test_the_loss_is_that_of_a_loop_over_responses():
    batch, logprobs = random_batch()
    total, outside = 0.0, 0
    for row, advantage in enumerate(batch.advantages.tolist()):
        valid = batch.mask[row]
        ratio = math.exp(float(logprobs[row][valid].sum() - batch.old_logprobs[row][valid].sum()))
        total += max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
        outside += abs(ratio - 1) > 0.2
    output = loss_of(batch, logprobs, 6)
    assert float(output.loss) == pytest.approx(total / 6, rel=1e-5)
    assert float(output.metrics["clip_fraction"]) == pytest.approx(outside / 6)


def test_where_nothing_has_moved_the_gradient_is_reinforces():
    """rho = 1 exactly: minus the advantage of its response for every token, whatever its length, over N."""
    batch, _ = random_batch()
    logprobs = batch.old_logprobs.clone().requires_grad_()
    loss = loss_of(batch, logprobs, 6).loss
    assert float(loss.detach()) == pytest.approx(-float(batch.advantages.mean()), abs=1e-7)
    loss.backward()
    expected = torch.where(batch.mask, -batch.advantages[:, None] / 6, 0.0)
    torch.testing.assert_close(logprobs.grad, expected)


def test_losses_add_up_over_micro_batches_and_padding_has_no_influence():
    batch, logprobs = random_batch()
    whole = loss_of(batch, logprobs, 6).loss
    parts = [loss_of(batch.rows(rows), logprobs[rows], 6).loss for rows in torch.arange(6).split([2, 4])]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-7)
    dirty = dataclasses.replace(batch, old_logprobs=torch.where(batch.mask, batch.old_logprobs, -300.0))
    assert torch.equal(loss_of(dirty, torch.where(batch.mask, logprobs, 7.0), 6).loss, whole)


@pytest.mark.usefixtures("torchs_switches")
def test_a_run_trains_no_values_and_goes_on_as_if_never_stopped(tmp_path, cache, monkeypatch):
    expected, run = tiny(tmp_path / "whole", cache, "rloo"), tiny(tmp_path / "stopped", cache, "rloo")
    assert execute(expected)["status"] == "finished"
    rows = read_rows(run_folder(expected))
    assert not {"train/value_loss", "train/explained_variance", "train/value_grad_norm"} & set(rows[-1])
    assert {"train/clip_fraction", "train/kl", "eval/kl"} <= set(rows[-1]) and rows[-1]["eval/kl"] > 0
    with monkeypatch.context() as patch:
        signal_at(patch, 3)  # no checkpoint is due there
        assert execute(run)["status"] == "interrupted"
    assert execute(run)["status"] == "finished"
    assert_same(run, expected)
    assert not any("value" in name for name in weights(run) if not name.startswith("model."))
