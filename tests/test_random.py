"""Draws are functions of what they are for: not of batches, of their order, or of what was drawn before."""

from __future__ import annotations

import torch

from rlhf.random import endless_order, permutation, sampling_uniforms


def test_uniforms_depend_on_seed_purpose_and_iteration_alone():
    draws = sampling_uniforms(0, "rollout", 3, 64, 5)
    torch.rand(17)  # the global generator has no say
    assert torch.equal(draws, sampling_uniforms(0, "rollout", 3, 64, 5))
    for other in (
        sampling_uniforms(1, "rollout", 3, 64, 5),
        sampling_uniforms(0, "evaluation", 3, 64, 5),
        sampling_uniforms(0, "rollout", 4, 64, 5),
    ):
        assert not bool((draws == other).any())


def test_uniforms_are_float64_in_0_to_1_and_uniform():
    draws = sampling_uniforms(7, "rollout", 0, 1000, 100)
    assert draws.dtype == torch.float64
    assert float(draws.min()) >= 0 and float(draws.max()) < 1
    # mean 1/2 with standard error sqrt(1/12 / 1e5) = 0.0009; a tenth of the draws in each tenth
    assert abs(float(draws.mean()) - 0.5) < 0.004
    counts = draws.flatten().histc(10, 0, 1)
    assert float(((counts - 10_000).square() / 10_000).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_a_responses_draws_do_not_depend_on_how_many_responses_there_are():
    assert torch.equal(sampling_uniforms(0, "rollout", 1, 100, 7)[:8], sampling_uniforms(0, "rollout", 1, 8, 7))


def test_seed_and_index_are_not_glued_together():
    assert not torch.equal(permutation(1, "x", 11, 50), permutation(11, "x", 1, 50))


def test_an_endless_order_lists_every_entry_once_an_epoch_and_reshuffles():
    order = endless_order(0, "prompts", 0, 30, 10)
    epochs = order.split(10)
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()


def test_an_endless_order_is_the_same_in_any_pieces():
    whole = endless_order(0, "prompts", 0, 70, 10)
    for size in (1, 3, 10, 35):  # 35 > 10: a piece may hold more than an epoch
        pieces = [endless_order(0, "prompts", start, min(size, 70 - start), 10) for start in range(0, 70, size)]
        assert torch.equal(torch.cat(pieces), whole)
