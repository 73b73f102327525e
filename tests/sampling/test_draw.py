"""One draw: by hand, against a search of the cumulative sum in float64, and its frequencies."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from rlhf.random import generator
from rlhf.sampling.plain import CHUNK, draw

LARGEST = 1 - 2**-53
"""No float64 below 1 is larger."""
EDGES = [0.0, LARGEST]


def drawn(logits: Tensor, uniforms: list[float]) -> list[int]:
    """Of one row of logits, a token for each uniform."""
    rows = logits.expand(len(uniforms), -1)
    return draw(rows, torch.tensor(uniforms, dtype=torch.float64))[0].tolist()


def test_the_token_at_which_the_cumulative_probability_first_exceeds_the_uniform():
    # Cumulative 0.25, 0.25, 0.75, 1; token 1 is impossible. Quarters are exact in every float.
    logits = torch.tensor([[1.0, 0.0, 2.0, 1.0]]).log()
    uniforms = [0.0, 0.2499, 0.25, 0.7499, 0.75, LARGEST]
    assert drawn(logits, uniforms) == [0, 0, 2, 2, 3, 3]
    assert drawn(logits + 5.0, uniforms) == [0, 0, 2, 2, 3, 3]  # logits are known up to a constant
    tokens, logprobs = draw(logits.expand(2, -1), torch.tensor([0.1, 0.5], dtype=torch.float64))
    assert logprobs.tolist() == pytest.approx([math.log(0.25), math.log(0.5)]) and tokens.dtype == torch.int64
    assert logprobs.dtype == torch.float32


@pytest.mark.parametrize("vocabulary", [2 * CHUNK, 2 * CHUNK + 44, 3 * CHUNK])
def test_the_edges_between_chunks(vocabulary):
    """Two tokens of probability a half each, the last of one chunk and the first of the next."""
    logits = torch.full((1, vocabulary), -torch.inf)
    logits[0, CHUNK - 1] = logits[0, CHUNK] = 3.0
    assert drawn(logits, [0.0, 0.4999, 0.5, LARGEST]) == [CHUNK - 1, CHUNK - 1, CHUNK, CHUNK]


@pytest.mark.parametrize("vocabulary", [5, 128, 300])
def test_what_the_policy_never_says_is_never_drawn(vocabulary):
    draws = generator(0, "impossible")
    logits = torch.randn(400, vocabulary, generator=draws)
    possible = torch.rand(logits.shape, generator=draws) < 0.4
    possible[:, 1] = True
    possible[:, 0] = possible[:, -1] = False  # the edges themselves
    logits[~possible] = -torch.inf
    uniforms = torch.rand(400, dtype=torch.float64, generator=draws)
    uniforms[:200:2], uniforms[1:200:2] = EDGES[0], EDGES[1]
    tokens, logprobs = draw(logits.clone(), uniforms)
    assert bool(possible.gather(1, tokens[:, None]).all()) and bool(logprobs.isfinite().all())
    first, last = possible.int().argmax(1), vocabulary - 1 - possible.flip(1).int().argmax(1)
    assert torch.equal(tokens[:200:2], first[:200:2]) and torch.equal(tokens[1:200:2], last[1:200:2])


def test_a_uniform_at_the_very_edge_of_a_chunk_draws_what_can_be_drawn():
    """Of probabilities of all sizes, whose sums round otherwise from one order of adding to another."""
    draws, rows, chunks = generator(4, "edges"), 10_000, 4
    logits = torch.randn(rows, chunks * CHUNK, generator=draws) * 4
    possible = torch.rand(logits.shape, generator=draws) < 0.3
    possible[:, ::CHUNK] = possible[:, CHUNK - 1 :: CHUNK] = False  # on both sides of each edge
    logits[~possible] = -torch.inf
    through = logits.double().sub(logits.amax(1, keepdim=True)).exp().view(rows, chunks, CHUNK).sum(2).cumsum(1)
    edge = (through / through[:, -1:])[torch.arange(rows), torch.arange(rows) % chunks]
    zero, one = torch.zeros_like(edge), torch.ones_like(edge)
    for uniforms in (edge, edge.nextafter(zero), edge.nextafter(one), one):
        tokens, logprobs = draw(logits.clone(), uniforms.clamp(max=LARGEST))
        assert bool(possible.gather(1, tokens[:, None]).all()) and bool(logprobs.isfinite().all())


@pytest.mark.parametrize(("vocabulary", "scale"), [*itertools.product([5, 128, 300], [0.0, 1.0, 6.0]), (50257, 1.0)])
def test_it_is_a_search_of_the_cumulative_sum_in_float64(vocabulary, scale):
    draws = generator(1, "draws")
    logits = torch.randn(200, vocabulary, generator=draws) * scale
    uniforms = torch.rand(200, dtype=torch.float64, generator=draws)
    through = logits.double().softmax(-1).cumsum(-1)
    expected = torch.searchsorted(through / through[:, -1:], uniforms[:, None], right=True).squeeze(1)
    near = (through - uniforms[:, None]).abs().amin(1) < 1e-6  # an edge, which rounding may move
    tokens, logprobs = draw(logits.clone(), uniforms)
    assert torch.equal(tokens[~near], expected[~near])
    assert int(near.sum()) < (20 if vocabulary < 1000 or scale > 1 else 60)
    assert bool(((tokens - expected)[near].abs() <= 1).all())
    log_softmax = logits.double().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs.double(), log_softmax, atol=2e-6, rtol=1e-6)


def test_frequencies_are_those_of_the_softmax():
    draws, count = generator(3, "draws"), 40_000
    logits = torch.randn(1, 300, generator=draws)
    uniforms = torch.rand(count, dtype=torch.float64, generator=draws)
    tokens, _ = draw(logits.expand(count, -1), uniforms)
    expected = logits[0].double().softmax(-1) * count
    observed = tokens.bincount(minlength=300).double()
    assert float(expected.min()) > 5
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 0.001
    other = (logits[0].double() * 1.1).softmax(-1) * count  # a temperature a tenth lower: the test can tell it apart
    assert chisquare(observed.numpy(), other.numpy()).pvalue < 1e-6


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    """One token of probability 0.999, fifty thousand that share the rest: 2e-8 each, which a cumulative sum in float32
    cannot tell apart near 1."""
    vocabulary, likely = 50257, 200
    logits = torch.zeros(1, vocabulary)
    logits[0, likely] = math.log(999.0 * (vocabulary - 1))
    share = 0.001 / (vocabulary - 1)
    wanted = torch.arange(30_000, 50_257, 101)
    uniforms = 0.999 + share * (wanted.double() - 0.5)  # the middle of each one's share
    tokens, logprobs = draw(logits.expand(len(wanted), -1), uniforms)
    assert torch.equal(tokens, wanted)
    torch.testing.assert_close(logprobs, torch.full_like(logprobs, math.log(share)), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_draw_some_token_and_a_logprob_that_says_so(bad):
    """The update refuses it in a line of its own; an index out of bounds would be a traceback, on a GPU the end."""
    logits = torch.zeros(2, 300)
    logits[0, 17] = bad
    tokens, logprobs = draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert 0 <= int(tokens[0]) < 300 and not bool(logprobs[0].isfinite())
    assert int(tokens[1]) == 150 and bool(logprobs[1].isfinite())
