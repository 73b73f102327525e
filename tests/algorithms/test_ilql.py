"""ILQL's losses against numbers worked out by hand and against a slow loop, its sampler and its target heads."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlhf.algorithms.ilql import ILQL, expectile_loss, td_loss
from rlhf.algorithms.ilql_heads import HEADS, ILQLHeads, ILQLOutputs, ILQLSampler, load_heads
from rlhf.batches import LossOutput, PromptBatch, Totals, TrainingBatch
from rlhf.config import ILQLConfig
from rlhf.evaluation import policy_distance
from rlhf.masked import token_logprobs
from rlhf.models.features import features_of
from rlhf.models.loading import ModelError
from rlhf.random import generator, sampling_uniforms
from tests.helpers import EOS, MODES, SAMPLINGS, VOCAB, WIDTH, policy_models, random_rollouts, sample, tiny_model

CPU = torch.device("cpu")
MASK = torch.tensor([[True, True]])
REWARDS = torch.tensor([[0.0, 3.0]])
VALUES = torch.tensor([[0.5, 1.0]])
TABLES = ([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
"""Q of two heads: two states, three words."""
TAKEN = (2, 1)
TARGETS = torch.tensor([[1.5, 0.5]])


def settings(**changes: float) -> ILQLConfig:
    given = ILQLConfig(
        name="ilql",
        gamma=0.5,
        tau=0.75,
        two_qs=True,
        cql_scale=0.1,
        awac_scale=2.0,
        awac_beta=0.0,
        polyak=0.25,
        sync_every=1,
        top_k=2,
        betas=[1.0],
    )
    return dataclasses.replace(given, **changes)


def ilql(rewards: Tensor, mask: Tensor, outputs: ILQLOutputs, config: ILQLConfig) -> LossOutput:
    """The loss of a minibatch of these token rewards."""
    algorithm = ILQL(config, None)  # type: ignore[arg-type]  # it estimates no advantages
    nothing = torch.zeros(mask.shape)
    signal = algorithm.signal(rewards, None, mask)
    batch = TrainingBatch(torch.arange(len(mask)), mask, nothing, nothing, rewards=signal.rewards)
    return algorithm.loss(batch, outputs, Totals(mask.sum(), len(mask)))


def by_hand(awac_beta: float) -> dict[str, float]:
    """Word 2, then word 1, of a response of two words, with the tables above; Q of the two heads: 2, 1 and 0, 2."""
    # Targets of Q: 0 + 0.5 * 1 = 0.5, then 3 + 0 = 3, since nothing follows the last word.
    td = ((2 - 0.5) ** 2 + (1 - 3) ** 2) / 2 + ((0 - 0.5) ** 2 + (2 - 3) ** 2) / 2
    # u = 1.5 - 0.5 = 1 and 0.5 - 1 = -0.5.
    expectile = (0.75 * 1 + 0.25 * 0.25) / 2
    first = math.log(math.exp(-1) + math.exp(-2) + 1) + math.log(math.exp(-1) + 1 + math.exp(-1))
    second = math.log(3) + math.log(math.exp(-1) + 1 + math.exp(2))
    cql = first / 2 + second / 2
    awac = (math.exp(awac_beta * 1.0) * math.log(2) + math.exp(awac_beta * -0.5) * math.log(4)) / 2
    return {"q_loss": td, "value_loss": expectile, "cql_loss": cql, "awac_loss": awac}


@pytest.mark.parametrize("awac_beta", [0.0, 1.0])
def test_losses_are_those_worked_out_by_hand(awac_beta: float) -> None:
    tables = [torch.tensor([table]) for table in TABLES]
    words = torch.tensor([TAKEN]).unsqueeze(-1)
    outputs = ILQLOutputs(
        logprobs=torch.tensor([[0.5, 0.25]]).log(),
        values=VALUES,
        q=[table.gather(-1, words).squeeze(-1) for table in tables],
        q_logprobs=[table.log_softmax(-1).gather(-1, words).squeeze(-1) for table in tables],
        target_q=TARGETS,
    )
    output = ilql(REWARDS, MASK, outputs, settings(awac_beta=awac_beta))
    expected = by_hand(awac_beta)
    for name, value in expected.items():
        assert float(output.metrics[name]) == pytest.approx(value, rel=1e-6), name
    whole = expected["q_loss"] + expected["value_loss"] + 0.1 * expected["cql_loss"] + 2.0 * expected["awac_loss"]
    assert float(output.loss) == pytest.approx(whole, rel=1e-6)
    assert float(output.metrics["advantage"]) == pytest.approx(0.25)  # of 1 and -0.5


def test_the_targets_of_td_and_expectile_give_no_gradient_to_what_they_are_made_of() -> None:
    q, values = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    mask = torch.ones(2, 3, dtype=torch.bool)
    td_loss(q, torch.ones(2, 3), values, mask, gamma=0.9).backward()
    assert values.grad is None and q.grad is not None
    gradient = torch.autograd.grad(expectile_loss(values, q.detach(), mask, tau=0.6), values)[0]
    steepness = torch.where(q > values, 0.6, 0.4).detach()
    assert torch.allclose(gradient, -2 * steepness * (q - values).detach() / 6)


# --- the heads -----------------------------------------------------------------------------------------------------


def layer(mlp: nn.Module, place: int) -> nn.Linear:
    assert isinstance(mlp, nn.Sequential)
    found = mlp[place]
    assert isinstance(found, nn.Linear)
    return found


def heads_with(seed: int = 3, two_qs: bool = True) -> ILQLHeads:
    torch.manual_seed(seed)
    heads = ILQLHeads(WIDTH, VOCAB, two_qs=two_qs, init_std=0.5, device=CPU)
    with torch.no_grad():
        for parameter in heads.target_q.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)  # as if training had parted them
    return heads


def slow_linear(weight: list[list[float]], bias: list[float], state: list[float]) -> list[float]:
    return [sum(w * x for w, x in zip(row, state, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def slow_mlp(layers: nn.Module, state: list[float]) -> list[float]:
    """ReLU between two linear layers, one product at a time."""
    weight, bias, weight2, bias2 = (p.tolist() for p in layers.parameters())
    return slow_linear(weight2, bias2, [max(0.0, x) for x in slow_linear(weight, bias, state)])


def slow_loss(
    heads: ILQLHeads, logits: Tensor, hidden: Tensor, tokens: Tensor, lengths: list[int], scores: list[float], config
) -> float:
    """The whole loss, token by token."""
    count, total = sum(lengths), 0.0
    for row, length in enumerate(lengths):
        states = [hidden[row, t].tolist() for t in range(length)]
        values = [slow_mlp(heads.v, state)[0] for state in states]
        for t, state in enumerate(states):
            word = int(tokens[row, t])
            target_q = min(slow_mlp(head, state)[word] for head in heads.target_q)
            last = t == length - 1
            target = (scores[row] if last else 0.0) + (0.0 if last else config.gamma * values[t + 1])
            for head in heads.q:
                table = slow_mlp(head, state)
                total += (table[word] - target) ** 2
                total += config.cql_scale * (math.log(sum(map(math.exp, table))) - table[word])
            u = target_q - values[t]
            total += (1 - config.tau if u < 0 else config.tau) * u * u
            odds = logits[row, t].tolist()
            cross_entropy = math.log(sum(map(math.exp, odds))) - odds[word]
            total += config.awac_scale * math.exp(config.awac_beta * u) * cross_entropy
    return total / count


def logprobs_of(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, token_logprobs(logits, tokens), 0.0)


@pytest.mark.parametrize("two_qs", [True, False])
def test_the_loss_of_a_padded_batch_is_that_of_a_slow_loop(two_qs: bool) -> None:
    draws, lengths, scores = generator(0, "ilql"), [3, 1, 4], [0.7, -1.2, 0.1]
    heads, config = heads_with(two_qs=two_qs), settings(awac_beta=0.5, two_qs=two_qs)
    hidden, logits = torch.randn(3, 4, WIDTH, generator=draws), torch.randn(3, 4, VOCAB, generator=draws)
    tokens = torch.randint(VOCAB, (3, 4), generator=draws)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    rewards = torch.zeros(3, 4)
    rewards[torch.arange(3), torch.tensor(lengths) - 1] = torch.tensor(scores)
    at = mask.flatten().nonzero().squeeze(1)
    output = ilql(rewards, mask, heads.outputs(logprobs_of(logits, tokens, mask), hidden, tokens, at), config)
    expected = slow_loss(heads, logits, hidden, tokens, lengths, scores, config)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    hidden[~mask], logits[~mask] = 7.0, 9.0  # padding holds anything
    again = ilql(rewards, mask, heads.outputs(logprobs_of(logits, tokens, mask), hidden, tokens, at), config)
    assert float(again.loss.detach()) == float(output.loss.detach())


def test_gradients_reach_heads_and_hidden_states_but_no_target_head() -> None:
    heads, rows = heads_with(), random_rollouts([2, 2], [3, 2])
    hidden = torch.randn(2, 3, WIDTH, requires_grad=True)
    logprobs = logprobs_of(torch.randn(2, 3, VOCAB), rows.response_ids, rows.mask)
    outputs = heads.outputs(logprobs, hidden, rows.response_ids, features_of(rows).response_positions())
    ilql(torch.ones(2, 3), rows.mask, outputs, settings()).loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in heads.trained_parameters())
    assert all(p.grad is None for p in heads.target_q.parameters())
    assert hidden.grad is not None and bool(hidden.grad[rows.mask].any()) and not bool(hidden.grad[~rows.mask].any())


def test_a_sync_moves_the_targets_by_the_polyak_share() -> None:
    heads = heads_with()
    before = [p.clone() for p in heads.target_q.parameters()]
    heads.sync(0.25)
    for old, new, source in zip(before, heads.target_q.parameters(), heads.q.parameters(), strict=True):
        assert torch.allclose(new, 0.25 * source + 0.75 * old, atol=1e-6)
    heads.sync(1.0)
    assert all(torch.equal(t, q) for t, q in zip(heads.target_q.parameters(), heads.q.parameters(), strict=True))


def test_heads_are_drawn_from_torchs_seed_and_come_back_from_their_file(tmp_path: Path) -> None:
    heads, same, other = heads_with(3), heads_with(3), heads_with(4)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), same.parameters(), strict=True))
    assert not torch.equal(layer(heads.q[0], 0).weight, layer(other.q[0], 0).weight)
    assert not torch.equal(layer(heads.q[0], 0).weight, layer(heads.q[1], 0).weight)
    heads.save(tmp_path)
    loaded = load_heads(str(tmp_path), WIDTH, VOCAB, CPU)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(ModelError, match="no ILQL heads for this model"):
        load_heads(str(tmp_path), WIDTH, VOCAB + 1, CPU)
    (tmp_path / HEADS).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="algo=ilql"):
        load_heads(str(tmp_path), WIDTH, VOCAB, CPU)
    with pytest.raises(ModelError, match="algo=ilql"):
        load_heads(str(tmp_path / "nowhere"), WIDTH, VOCAB, CPU)


# --- the sampler ---------------------------------------------------------------------------------------------------


def constant_heads(first: list[float], second: list[float], value: float) -> ILQLHeads:
    """Target heads and V that say the same of every state."""
    heads = ILQLHeads(4, len(first), two_qs=True, init_std=0.0, device=CPU)
    with torch.no_grad():
        layer(heads.target_q[0], 2).bias.copy_(torch.tensor(first))
        layer(heads.target_q[1], 2).bias.copy_(torch.tensor(second))
        layer(heads.v, 2).bias.fill_(value)
    return heads


def test_the_sampler_is_the_one_worked_out_by_hand() -> None:
    """pi = 0.5, 0.3, 0.2; min Q = 0, 1, 3; V = 0.5; beta = 0.5: weights 0.5 e^-0.25, 0.3 e^0.25, 0.2 e^1.25."""
    heads = constant_heads([0.0, 2.0, 3.0], [1.0, 1.0, 4.0], 0.5)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log() + 2.0  # logits are known up to a constant
    weights = [0.5 * math.exp(-0.25), 0.3 * math.exp(0.25), 0.2 * math.exp(1.25)]
    all_three = heads.sampler_logprobs(logits, torch.randn(1, 4), beta=0.5, top_k=20).exp()
    assert all_three[0].tolist() == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-5)
    two = heads.sampler_logprobs(logits, torch.randn(1, 4), beta=0.5, top_k=2).exp()
    kept = weights[0] + weights[2]  # 0.389 and 0.698 of 0.389, 0.385, 0.698
    assert two[0].tolist() == pytest.approx([weights[0] / kept, 0.0, weights[2] / kept], rel=1e-5)
    assert float(two[0, 1]) == 0.0
    plain = heads.sampler_logprobs(logits, torch.randn(1, 4), beta=0.0, top_k=3).exp()
    assert plain[0].tolist() == pytest.approx([0.5, 0.3, 0.2], rel=1e-5)


def some_prompts(lengths: list[int]) -> PromptBatch:
    rows = random_rollouts(lengths, [1] * len(lengths))
    return PromptBatch(rows.prompt_ids, rows.prompt_mask, rows.prompts, rows.references)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_is_sampled_is_what_is_measured(mode: str, temperature: float, sampling: str) -> None:
    """Token by token through the cache, and in one pass over the whole texts: the same distribution."""
    models = policy_models(tiny_model(), mode, temperature=temperature)
    sampler = ILQLSampler(models, heads_with(), beta=2.0, top_k=5)
    prompts = some_prompts([2, 4, 3])
    uniforms = sampling_uniforms(0, "test", 0, 3, 6)
    with sampler.sampling() as model:
        tokens, logprobs = sample(sampling, model, prompts.input_ids, prompts.mask, uniforms)
    rows = random_rollouts([2, 4, 3], [6, 6, 6])
    mask = (tokens == EOS).cumsum(1) - (tokens == EOS).long() == 0
    rows = dataclasses.replace(rows, prompt_ids=prompts.input_ids, response_ids=tokens, mask=mask)
    features = sampler.features(rows)
    with torch.no_grad():
        logits = sampler.policy_head(sampler.policy_hidden(features))
    measured = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(torch.where(mask, measured, 0.0), logprobs, atol=1e-4)
    assert bool(((logits > -torch.inf).sum(-1)[mask] == 5).all())
    kl, entropies = policy_distance(sampler, rows, 2)
    reference = sampler.reference_head(sampler.reference_hidden(features)).log_softmax(-1)
    for row, t in mask.nonzero().tolist():
        p = logits[row, t].exp().tolist()
        q = reference[row, t].tolist()
        expected = sum(one * (math.log(one) - other) for one, other in zip(p, q, strict=True) if one > 0)
        assert float(kl[row, t]) == pytest.approx(expected, abs=1e-5)
        assert float(entropies[row, t]) == pytest.approx(-sum(one * math.log(one) for one in p if one > 0), abs=1e-5)
    assert not bool(kl[~mask].any())
