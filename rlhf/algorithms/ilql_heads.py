"""ILQL's heads on a policy's hidden states, and the sampler that they make of it. Snell et al. 2022."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf.errors import reason
from rlhf.files import write_whole
from rlhf.finite import check_loaded
from rlhf.masked import token_logprobs
from rlhf.models.loading import ModelError
from rlhf.models.policy import Parameters, Policy, Sampler
from rlhf.models.saving import save_tensors
from rlhf.token_logprobs import chosen, spread


@dataclass(frozen=True)
class ILQLOutputs:
    """What the policy and the heads say of the response tokens; (B, T) float32 each, 0 on padding but for V."""

    logprobs: Tensor
    """log pi_theta of the token."""
    values: Tensor
    """V of the state before the token."""
    q: list[Tensor]
    """Q of the token, of each head."""
    q_logprobs: list[Tensor]
    """log softmax of Q over the vocabulary, at the token, of each head."""
    target_q: Tensor
    """The smallest Q of the token among the target heads; without gradient."""


HEADS = "ilql_heads.safetensors"
"""In final/, beside the language model."""


class ILQLHeads(nn.Module):
    """One or two Q heads over the vocabulary, as many target Q heads, and V. Float32, whatever the policy runs in."""

    def __init__(self, width: int, vocabulary: int, *, two_qs: bool, init_std: float, device: torch.device) -> None:
        """Heads drawn from torch's generator: seed it before.

        Args:
            width, vocabulary: d and V of the policy.
            init_std: standard deviation of the output layers; 0: Q and V start at 0, and with them the sampler at the
                top k of the policy.
        """
        super().__init__()
        self.q = nn.ModuleList(_mlp(width, vocabulary, init_std) for _ in range(2 if two_qs else 1))
        self.v = _mlp(width, 1, init_std)
        self.target_q = copy.deepcopy(self.q)
        self.to(device)
        self.target_q.requires_grad_(False)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [*self.q.parameters(), *self.v.parameters()]

    def named(self) -> Parameters:
        """Everything that a checkpoint keeps, target heads too."""
        return {f"ilql.{name}": parameter for name, parameter in self.named_parameters()}

    def outputs(self, logprobs: Tensor, hidden: Tensor, tokens: Tensor, at: Tensor | None) -> ILQLOutputs:
        """As `Heads.outputs`. Q over the vocabulary is made for valid tokens alone, one head at a time."""
        with _float32(hidden):
            states, taken = chosen(hidden.float(), at), chosen(tokens, at)
            q, q_logprobs = [], []
            for head in self.q:
                table = head(states)
                q.append(spread(_at(table, taken), tokens, at))
                q_logprobs.append(spread(token_logprobs(table, taken), tokens, at))
            with torch.no_grad():
                targets = [_at(head(states), taken) for head in self.target_q]
            return ILQLOutputs(
                logprobs=logprobs,
                values=self.v(hidden.float()).squeeze(-1),
                q=q,
                q_logprobs=q_logprobs,
                target_q=spread(torch.stack(targets).amin(0), tokens, at),
            )

    @torch.no_grad()
    def sampler_logprobs(self, logits: Tensor, hidden: Tensor, *, beta: float, top_k: int) -> Tensor:
        """log softmax(top_k(log pi + beta (min Q_target - V))), -inf outside the top k. (N, V), (N, d) -> (N, V)."""
        with _float32(hidden):
            states = hidden.float()
            smallest = functools.reduce(torch.minimum, (head(states) for head in self.target_q))
            scores = logits.float().log_softmax(-1) + beta * (smallest - self.v(states))
            least = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
            return scores.masked_fill(scores < least, -torch.inf).log_softmax(-1)

    @torch.no_grad()
    def sync(self, polyak: float) -> None:
        """target <- polyak Q + (1 - polyak) target."""
        for target, source in zip(self.target_q.parameters(), self.q.parameters(), strict=True):
            target.lerp_(source, polyak)

    def save(self, folder: Path) -> None:
        """Whole or not at all.

        Raises:
            NotFinite: a weight is NaN or infinite.
        """
        write_whole(folder / HEADS, lambda target: save_tensors(self.state_dict(), target))


def load_heads(folder: str, width: int, vocabulary: int, device: torch.device) -> ILQLHeads:
    """The heads that `ILQLHeads.save` wrote.

    Raises:
        ModelError: none there, damaged, or of another model.
    """
    path = Path(folder) / HEADS
    try:
        tensors = load_file(path)
        two_qs = any(name.startswith("q.1.") for name in tensors)
        heads = ILQLHeads(width, vocabulary, two_qs=two_qs, init_std=0.0, device=device)
        heads.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"evaluation.policy: no ILQL heads for this model in {path} ({reason(error)}); give the "
            "final/ of a run of algo=ilql"
        ) from error
    check_loaded(tensors, folder, "evaluation.policy")
    return heads


class ILQLSampler(Policy):
    """The policy softmax(top_k(log pi + beta (min Q_target - V))) on top of a language model."""

    def __init__(self, policy: Policy, heads: ILQLHeads, *, beta: float, top_k: int) -> None:
        super().__init__(policy.networks, temperature=policy.temperature, autocast=policy.autocast)
        self.heads = heads
        self.beta = beta
        self.top_k = top_k

    @contextlib.contextmanager
    def sampling(self, precision: str | None = None) -> Iterator[Sampler]:
        with super().sampling(precision) as sampler:
            yield Sampler(sampler.model, lambda hidden: self._adjusted(sampler.logits(hidden), hidden))

    @torch.no_grad()
    def policy_head(self, hidden: Tensor) -> Tensor:
        """The sampler's log-probabilities."""
        return self._adjusted(super().policy_head(hidden), hidden)

    def _adjusted(self, logits: Tensor, hidden: Tensor) -> Tensor:
        return self.heads.sampler_logprobs(logits, hidden, beta=self.beta, top_k=self.top_k)


def _mlp(width: int, out: int, init_std: float) -> nn.Sequential:
    output = nn.Linear(2 * width, out)
    nn.init.normal_(output.weight, std=init_std)
    nn.init.zeros_(output.bias)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), output)


def _float32(hidden: Tensor) -> torch.autocast:
    return torch.autocast(hidden.device.type, enabled=False)


def _at(table: Tensor, tokens: Tensor) -> Tensor:
    return table.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
