"""KL(pi || pi_init): estimators from sampled tokens, and over the whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.masked import finite_logprobs


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log pi_init of tokens sampled from pi: unbiased, may be negative. (B, T) -> (B, T) nats."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d^2 / 2 with d = log pi - log pi_init: biased, and its gradient under pi is that of the KL. (B, T) -> (B, T)."""
    return (logprobs - reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log pi - log pi_init: unbiased under pi and never negative.

    J. Schulman, "Approximating KL divergence", 2020. (B, T) -> (B, T) nats.
    """
    difference = logprobs - reference_logprobs
    return torch.expm1(-difference) + difference


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""Of the KL at sampled tokens, from their logprobs."""


def released_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The released code's metric exp(d) - 1 - d: on samples of pi its mean is chi2(pi || pi_init) - KL, not the KL.

    Kept under its own name so that published curves can be compared. (B, T) -> (B, T).
    """
    difference = logprobs - reference_logprobs
    return torch.expm1(difference) - difference


def exact_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL over the whole vocabulary at every position: sum_v pi(v) (log pi(v) - log pi_init(v)).

    Summed along responses that pi sampled and averaged over them it estimates the sequence KL without the noise of
    the sampled token (Rao-Blackwell).

    Args:
        logits: (B, T, V) at the sampling temperature; -inf where pi never goes, which adds 0.
        reference_logits: (B, T, V) at the same temperature, finite.

    Returns:
        (B, T) float32 nats, not negative up to rounding.
    """
    logprobs = finite_logprobs(logits)
    reference_logprobs = reference_logits.float().log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference_logprobs)).sum(-1)


def sequence_kl(token_kl: Tensor, mask: Tensor) -> Tensor:
    """Sum over a response's valid tokens, mean over responses: (B, T), (B, T) bool -> () nats."""
    return torch.where(mask, token_kl, 0.0).sum(1).mean()
