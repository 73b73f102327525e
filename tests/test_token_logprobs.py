"""Logprobs from hidden states in chunks: values and gradients of the plain log-softmax, and no tensor of all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import rlhf.token_logprobs as chunked
from rlhf.models.layers import ShortLinear
from rlhf.random import generator
from rlhf.token_logprobs import chosen, spread, trained_logprobs

ROWS, TOKENS, WIDTH, VOCAB = 3, 5, 7, 11
VALID = torch.arange(TOKENS) < torch.tensor([5, 2, 0])[:, None]
AT = VALID.flatten().nonzero().squeeze(1)
WHOLE, FOUR, ONE = 2**24, 4 * VOCAB + 3, 1
"""Sizes of a chunk: all positions at once, four of them, one."""


def parts(bias: bool = True) -> tuple[nn.Linear, Tensor, Tensor]:
    draws = generator(0, "token logprobs")
    head = nn.Linear(WIDTH, VOCAB, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=draws, requires_grad=True)
    return head, hidden, torch.randint(VOCAB, (ROWS, TOKENS), generator=draws)


def by_autograd(head: nn.Linear, hidden: Tensor, tokens: Tensor, temperature: float, at: Tensor | None) -> Tensor:
    """In float64, written out."""
    bias = None if head.bias is None else head.bias.double()
    logits = nn.functional.linear(hidden.double(), head.weight.double(), bias) / temperature
    taken = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return taken if at is None else torch.where(VALID, taken, 0.0)


def gradients(logprobs: Tensor, head: nn.Linear, hidden: Tensor) -> list[Tensor]:
    """Of a loss that weighs each position otherwise; by hidden states and by what of the head trains."""
    weights = torch.linspace(-1.0, 2.0, logprobs.numel(), dtype=logprobs.dtype).view(logprobs.shape)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad((logprobs * weights).sum(), [hidden, *trained]))


def test_what_is_chosen_is_put_back():
    values, tokens = torch.arange(15.0).view(3, 5, 1).requires_grad_(), torch.arange(15).view(3, 5)
    states = chosen(values, AT)
    assert chosen(tokens, AT).tolist() == [0, 1, 2, 3, 4, 5, 6] and states.tolist() == [[float(i)] for i in range(7)]
    back = spread(states.squeeze(-1), tokens, AT)
    assert back.tolist() == [[0, 1, 2, 3, 4], [5, 6, 0, 0, 0], [0] * 5]
    (back * torch.arange(1.0, 16.0).view(3, 5)).sum().backward()
    assert values.grad is not None and values.grad.squeeze(-1).tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [0] * 5]
    assert torch.equal(spread(chosen(values, None).squeeze(-1), tokens, None), values.squeeze(-1))


@pytest.mark.parametrize("chunk", [WHOLE, FOUR, ONE])
@pytest.mark.parametrize("at", [None, AT])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_log_softmax(monkeypatch, chunk, at, temperature, bias):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    head, hidden, tokens = parts(bias)
    found = trained_logprobs(head, hidden, tokens, temperature=temperature, at=at)
    expected = by_autograd(head, hidden, tokens, temperature, at)
    assert found.dtype == torch.float32 and found.shape == tokens.shape
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    assert at is None or bool((found[~VALID] == 0).all())
    ours, theirs = gradients(found, head, hidden), gradients(expected, head, hidden)
    assert len(ours) == len(theirs) == (3 if bias else 2)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.float(), atol=1e-5, rtol=1e-5)
        assert bool(mine.any())


@pytest.mark.parametrize("chunk", [WHOLE, FOUR])
def test_a_frozen_head_passes_the_gradient_on_and_keeps_nothing_of_the_vocabulary(monkeypatch, chunk):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    head, hidden, tokens = parts()
    head.requires_grad_(False)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = trained_logprobs(head, hidden, tokens, temperature=0.7, at=AT)
    assert kept and all(tensor.shape[-1:] != (VOCAB,) for tensor in kept if tensor.dim() > 1)
    (ours,), (theirs,) = (
        gradients(logprobs, head, hidden) for logprobs in (found, by_autograd(head, hidden, tokens, 0.7, AT))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert head.weight.grad is None and head.bias.grad is None


@pytest.mark.parametrize("chunk", [WHOLE, FOUR])
def test_a_head_held_in_bf16_is_its_rounded_weights_in_float32(monkeypatch, chunk):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    head, hidden, tokens = parts(bias=False)
    head.requires_grad_(False)
    head.weight.data = head.weight.data.bfloat16()
    head.__class__ = ShortLinear
    found = trained_logprobs(head, hidden, tokens, temperature=1.0)
    expected = by_autograd(head, hidden, tokens, 1.0, None)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    (ours,), (theirs,) = gradients(found, head, hidden), gradients(expected, head, hidden)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_states_of_few_bits_under_autocast_are_computed_in_float32():
    head, hidden, tokens = parts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = trained_logprobs(head, hidden.bfloat16(), tokens, temperature=1.0)
    expected = by_autograd(head, hidden.bfloat16(), tokens, 1.0, None).float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_head_of_another_kind_is_called():
    class Doubled(nn.Module):
        def __init__(self, head: nn.Linear) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: Tensor) -> Tensor:
            return 2 * self.head(hidden)

    head, hidden, tokens = parts()
    found = trained_logprobs(Doubled(head), hidden, tokens, temperature=1.0, at=AT)
    torch.testing.assert_close(found, by_autograd(head, hidden, tokens, 0.5, AT).float(), atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return output


@pytest.mark.parametrize("trains", [True, False])
def test_no_tensor_of_all_logits_is_ever_made(monkeypatch, trains):
    rows, tokens_each, width, vocabulary = 4, 8, 3, 101
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(trains)
    hidden = torch.randn(rows, tokens_each, width, requires_grad=True)
    tokens = torch.zeros(rows, tokens_each, dtype=torch.int64)

    def largest(chunk: int) -> int:
        monkeypatch.setattr(chunked, "CHUNK", chunk)
        with Largest() as seen:
            trained_logprobs(head, hidden, tokens, temperature=0.7).sum().backward()
        return seen.numel

    whole = rows * tokens_each * vocabulary
    assert largest(whole) == whole  # the test can see it
    assert largest(4 * vocabulary) == 4 * vocabulary
