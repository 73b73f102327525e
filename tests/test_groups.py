"""Groups of responses to one prompt, and algorithms without a critic, by a small made-up algorithm."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlhf import distributed
from rlhf.algorithms import Algorithm
from rlhf.batches import LossOutput, Signal, Totals, TrainingBatch
from rlhf.config import AlgoConfig, RunConfig
from rlhf.config.check import check
from rlhf.config.setting import ALWAYS, setting
from rlhf.data.examples import Demonstration
from rlhf.data.tokenize import Prompts
from rlhf.distributed import own_rows
from rlhf.models.features import features_of
from rlhf.models.loading import word_tokenizer
from rlhf.random import endless_order, generator
from rlhf.stages.offline import DataResponses
from rlhf.stages.online import prompts_of
from rlhf.training_batch import measure_rollouts, training_batch
from rlhf.update import first_micro_batches, minibatches_of, rank_micro_batches, update
from tests.helpers import MODES, nudge, policy_models, random_rollouts, tiny_model
from tests.test_offline import some_answers
from tests.test_update import PROMPTS, RESPONSES, optimizer_of, settings


@dataclass(kw_only=True)
class GroupConfig(AlgoConfig):
    group_size: int = setting("responses to one prompt", read_by=ALWAYS)


class AgainstTheGroup(Algorithm):
    """REINFORCE with the group's mean as its baseline."""

    def signal(self, rewards: Tensor, values: Tensor | None, mask: Tensor, references: Tensor | None = None) -> Signal:
        assert values is None and references is None
        groups = rewards.sum(1).view(-1, self.config.group_size)
        return Signal((groups - groups.mean(1, keepdim=True)).flatten())

    def loss(self, batch: TrainingBatch, logprobs: Tensor, totals: Totals) -> LossOutput:
        sizes = batch.rows_in_rollout.view(-1, self.config.group_size)
        assert bool((sizes.diff(dim=1) == 1).all()) and bool((sizes[:, 0] % self.config.group_size == 0).all())
        of_response = torch.where(batch.mask, logprobs, 0.0).sum(1)
        return LossOutput(-(batch.advantages * of_response).sum() / totals.responses, {})


def grouped(size: int, *overrides: str) -> RunConfig:
    return dataclasses.replace(settings("apa", *overrides), algo=GroupConfig(name="apa", group_size=size))


def assert_whole_groups(rows: Tensor, size: int) -> None:
    groups = rows.view(-1, size)
    assert torch.equal(groups, groups[:, :1] // size * size + torch.arange(size))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("by_length", [False, True])
def test_minibatches_and_micro_batches_never_cut_a_group(size, by_length):
    run, features = (
        grouped(size, f"optimization.pack_by_length={by_length}"),
        features_of(random_rollouts(PROMPTS, RESPONSES)),
    )
    batches = minibatches_of(run, 16, 1, 0)
    assert sorted(torch.cat(batches).tolist()) == list(range(16)) and len(batches) == 2
    assert torch.cat(batches).tolist() != list(range(16))
    for rows in [*batches, *first_micro_batches(run, features, 1)]:
        assert_whole_groups(rows, size)
    assert len(first_micro_batches(run, features, 1)) == 4


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_never_cut_a_group(monkeypatch, size):
    run, features = grouped(size, "hardware.ranks=2"), features_of(random_rollouts(PROMPTS, RESPONSES))
    monkeypatch.setattr(distributed, "count", lambda: 2)
    (minibatch, _), parts = minibatches_of(run, 16, 1, 0), []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts += rank_micro_batches(run, minibatch, features)
    assert sorted(torch.cat(parts).tolist()) == sorted(minibatch.tolist())
    for rows in parts:
        assert_whole_groups(rows, size)
    with pytest.raises(AssertionError, match="a group would be cut between ranks"):
        own_rows(size, size)


def test_every_prompt_comes_as_often_as_its_group_has_responses():
    words = [f"word{i}" for i in range(20)]
    tokenizer = word_tokenizer(words)
    prompts = Prompts(tokenizer, [Demonstration(word, "") for word in words], 4)
    run, plain = grouped(4), settings("apa")
    texts = [prompts_of(run, prompts, iteration).texts for iteration in (1, 2, 3)]
    for iteration in texts:
        assert len(iteration) == 16
        assert all(len({*iteration[i : i + 4]}) == 1 for i in range(0, 16, 4))
    distinct = [text for iteration in texts for text in iteration[::4]]
    assert len({*distinct}) == 12  # every prompt has its turn before any comes again
    order = endless_order(plain.seed, "prompts", 0, 16, 20).tolist()
    assert prompts_of(plain, prompts, 1).texts == [words[i] for i in order]


def test_the_answers_of_a_data_set_come_in_pairs():
    run = dataclasses.replace(grouped(2), stage=dataclasses.replace(settings().stage, name="offline"))
    responses = DataResponses(run, some_answers(20), torch.arange(40.0), None)
    scores = torch.cat([responses.scores(responses.rollouts(i), i) for i in range(1, 6)]).long()
    assert_whole_groups(scores, 2)
    assert sorted(scores[:40].tolist()) == list(range(40))


@pytest.mark.parametrize(
    ("size", "overrides", "line"),
    [
        (3, (), "rollout.num_responses: 16 is no multiple of algo.group_size = 3"),
        (16, (), "optimization.minibatch_size: 8 is no multiple of algo.group_size = 16"),
        (8, (), "optimization.micro_batch_size: 4 is no multiple of algo.group_size = 8"),
        (4, ("hardware.ranks=4", "optimization.micro_batch_size=2"), "hardware.ranks: .* 2 is no multiple"),
        (4, ("stage=offline",), "algo.group_size: 4, but a data set has 2 answers to each prompt; use 2"),
    ],
)
def test_what_would_cut_a_group_is_refused_in_one_line(size, overrides, line):
    problems = check(grouped(size, *overrides), {})
    assert any(re.match(line, problem) for problem in problems), problems


@pytest.mark.parametrize("mode", MODES)
def test_without_a_critic_there_is_no_value_network_and_nothing_of_it_is_measured_or_trained(mode):
    run = grouped(2)
    models = policy_models(tiny_model(), mode, critic=False)
    assert models.value_parameters == {} and models.value_head is None
    assert not any("value_head" in name or ".value." in name for name in models.policy_parameters)
    nudge(models.named_parameters(), 0.1)
    rollouts = random_rollouts(PROMPTS, RESPONSES)
    measured = measure_rollouts(run, models, rollouts, 1)
    assert measured.values is None and set(measured.columns) == {"old_logprobs", "reference_logprobs", "entropy"}
    algorithm = AgainstTheGroup(run.algo, run.advantages)
    batch = training_batch(algorithm, rollouts, measured, torch.randn(16, generator=generator(0, "scores")), 0.1)
    assert batch.returns is None and batch.old_values is None and batch.advantages.shape == (16,)
    optimizer, before = optimizer_of(models, run), [p.clone() for p in models.named_parameters().values()]
    metrics, step = update(run, algorithm, models, optimizer, batch, measured.features, iteration=1, step=0)
    assert set(metrics) == {"policy_loss", "grad_norm"} and step == 2
    assert not all(torch.equal(a, b) for a, b in zip(before, models.named_parameters().values(), strict=True))
