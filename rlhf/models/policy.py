"""Policy, reference and value network as sampling, measuring, updating and evaluation see them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf.batches import Rollouts
from rlhf.distributed import is_sharded
from rlhf.kl import exact_kl
from rlhf.models.features import Features, features_of
from rlhf.models.layers import sampling_head
from rlhf.models.loading import language_head
from rlhf.models.network import Network
from rlhf.precision import LossScaler, autocast
from rlhf.token_logprobs import chosen, measured_logprobs, pieces, spread, trained_logprobs

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Parameters = dict[str, nn.Parameter]
"""Trained parameters by name."""


@dataclass
class SamplerCache:
    """Where `rlhf.sampling` keeps what it has made of a policy, a GPU's captured graphs, from rollout to rollout."""

    content: object = None


@dataclass(frozen=True)
class Sampler:
    """What `rlhf.sampling` runs."""

    model: PreTrainedModel
    """A causal language model, of which the hidden states are read."""
    logits: Callable[[Tensor], Tensor]
    """Hidden states (..., d) -> (..., V) float32 logits at the sampling temperature; -inf where the policy never
    goes."""
    cache: SamplerCache = field(default_factory=SamplerCache)
    """The policy's; its tensors stay where they are, but for those that `rlhf.sampling` casts."""


@dataclass(frozen=True)
class Networks:
    """What a training mode makes of the initial policy, or a pair of finished models."""

    sampler: PreTrainedModel
    """The policy as a whole causal language model with a key-value cache."""
    policy: Network
    reference: Network
    reference_head: nn.Module
    trunk: Network | None = None
    """Frozen lower blocks that the others start from."""
    value: Network | None = None
    """None: there is no critic, or its head sits on the policy."""
    policy_parameters: Parameters = field(default_factory=dict)
    value_parameters: Parameters = field(default_factory=dict)
    adapters: PeftModel | None = None
    """Of one base, of which one is switched on at a time."""
    merge_adapters: bool = False
    """They are saved as part of whole weights, never alone."""


class Policy:
    """A policy and the initial one that its KL is measured to: the networks of a run, a pair of finished models, or
    another sampler on top of either. With precision bf16 or fp16 forward passes run under autocast, but for the heads.

    Args:
        autocast: makes the context in which every forward pass runs.
    """

    def __init__(
        self, networks: Networks, *, temperature: float, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.networks, self.temperature, self.autocast = networks, temperature, autocast
        self.sampler = networks.sampler
        self.language_head = language_head(self.sampler)
        self.device: torch.device = next(self.sampler.parameters()).device
        self._sampler_cache = SamplerCache()

    @contextlib.contextmanager
    def sampling(self, precision: str | None = None) -> Iterator[Sampler]:
        """The policy as it is, without gradient.

        Args:
            precision: one of `rlhf.precision.AUTOCAST`; None: the policy's own autocast.
        """
        computing = self.autocast() if precision is None else autocast(self.device, precision)
        layer, temperature = self.language_head, self.temperature  # not self, which holds the sampler's cache
        head = functools.cache(lambda: sampling_head(layer))  # one of fewer bits is cast when it is first asked
        with torch.no_grad(), computing, self.networks.policy.within():
            yield Sampler(self.sampler, lambda hidden: _logits(head(), hidden, temperature), self._sampler_cache)

    def features(self, rollouts: Rollouts) -> Features:
        """What the frozen part makes of prompts and responses; computed once per rollout."""
        features = features_of(rollouts)
        if self.networks.trunk is None:
            return features
        with torch.no_grad(), self.autocast():
            return dataclasses.replace(features, hidden=self.networks.trunk(features))

    def pieces(self, count: int) -> list[slice]:
        """range(count) of states in pieces whose logits fit into memory together; in one piece where the head's weights
        are cut up among ranks, which gather them together."""
        if is_sharded(self.language_head):
            return [slice(0, count)]
        return pieces(count, self.sampler.config.vocab_size)

    def policy_hidden(self, features: Features) -> Tensor:
        """(B, T, d) states before the response tokens, which the logits are made of."""
        with self.autocast():
            return self.networks.policy(features)

    def policy_head(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., V) float32 logits at the sampling temperature; -inf where the policy never goes."""
        return _logits(self.language_head, hidden, self.temperature)

    @torch.no_grad()
    def reference_hidden(self, features: Features) -> Tensor:
        """As `policy_hidden`, of the initial policy."""
        with self.autocast():
            return self.networks.reference(features)

    @torch.no_grad()
    def reference_head(self, hidden: Tensor) -> Tensor:
        """As `policy_head`, of the initial policy; finite."""
        return _logits(self.networks.reference_head, hidden, self.temperature)

    @property
    def fallback_reason(self) -> str:
        """Why a network is measured and trained by the model's own forward pass; empty where all layers are known."""
        parts = self.networks.trunk, self.networks.policy, self.networks.reference, self.networks.value
        return next((part.fallback_reason for part in parts if part is not None and part.fallback_reason), "")


def policy_pair(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    *,
    temperature: float,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Policy:
    """Two finished models, the policy that is measured and the initial one, which may be the same."""
    networks = Networks(policy, Network(policy.base_model), Network(reference.base_model), language_head(reference))
    return Policy(networks, temperature=temperature, autocast=autocast)


class PolicyModels(Policy):
    """The networks of one run; see the package's table.

    `policy_parameters` and `value_parameters` are what is trained, by name and in float32; where the value head sits on
    the policy it is among the former and the latter is empty, as it is without a critic.

    Args:
        model: the initial policy, all of it frozen but what `networks` trains.
        value_head: None: there is no critic.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        networks: Networks,
        value_head: nn.Linear | None,
        *,
        temperature: float,
        precision: str,
    ) -> None:
        device = next(model.parameters()).device
        super().__init__(networks, temperature=temperature, autocast=lambda: autocast(device, precision))
        self.model = model
        self.scaler = LossScaler(precision)
        self.value_head = value_head
        self.critic = value_head is not None
        self.value_on_policy = self.critic and networks.value is None
        self.policy_parameters, self.value_parameters = networks.policy_parameters, networks.value_parameters
        if value_head is not None:
            head = {f"value_head.{name}": parameter for name, parameter in value_head.named_parameters()}
            (self.policy_parameters if self.value_on_policy else self.value_parameters).update(head)
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)

    @property
    def runs_concurrently(self) -> bool:
        """Whether `run_both` runs both together: with a separate value network on a CPU.

        Not where the networks are adapters of one base, nor where a model's own forward pass may keep angles from call
        to call. Without such a network an update has nothing to run beside the policy, and measuring, whose logprobs
        must be those of the update to the bit, uses as many threads as it does.
        """
        separate = self.networks.value is not None and self.networks.adapters is None
        return separate and self.device.type == "cpu" and not self.fallback_reason

    def run_both(self, first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
        """What two forward or backward passes give, of two networks or of two halves of the texts.

        Together, by half of torch's threads each, where `runs_concurrently`: small matrices on two threads wait for
        each other after every product.
        """
        return run_concurrently(first, second) if self.runs_concurrently else (first(), second())

    def policy_logprobs(self, hidden: Tensor, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """(B, T) log pi of the tokens from `policy_hidden`, in chunks of logits.

        Args:
            at: (N,) int64, which of the B T positions are wanted; 0 elsewhere. None: all.
        """
        return trained_logprobs(self.language_head, hidden, tokens, temperature=self.temperature, at=at)

    def policy_logprobs_and_entropy(
        self, hidden: Tensor, tokens: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `policy_logprobs`, to the bit but without gradient, and the policy's entropy in nats."""
        return measured_logprobs(self.language_head, hidden, tokens, temperature=self.temperature, at=at)

    @torch.no_grad()
    def reference_logprobs(self, hidden: Tensor, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """As `policy_logprobs`, of the frozen initial policy."""
        return trained_logprobs(self.networks.reference_head, hidden, tokens, temperature=self.temperature, at=at)

    def exact_kl(self, hidden: Tensor, reference_hidden: Tensor, tokens: Tensor, at: Tensor | None) -> Tensor:
        """(B, T) float32 nats: KL to the initial policy over the whole vocabulary, with gradient. In chunks of logits,
        which are made again for the gradient.

        Args:
            hidden, reference_hidden: (B, T, d).
            tokens: (B, T), whose shape is meant.
            at: as in `policy_logprobs`.
        """

        def of_states(states: Tensor, initial: Tensor) -> Tensor:
            return exact_kl(self.policy_head(states), self.reference_head(initial))

        states, initial = chosen(hidden, at), chosen(reference_hidden, at)
        parts = [
            checkpoint(of_states, states[rows], initial[rows], use_reentrant=False) for rows in self.pieces(len(states))
        ]
        return spread(torch.cat(parts), tokens, at)  # type: ignore[arg-type]

    def values(self, features: Features) -> Tensor:
        """(B, T) float32: V of the state before each response token."""
        with self.autocast():
            hidden = (self.networks.value or self.networks.policy)(features)
        return self.values_on(hidden)

    def values_on(self, hidden: Tensor) -> Tensor:
        """The value head: (B, T, d) -> (B, T)."""
        assert self.value_head is not None, "no critic"
        return self.value_head(hidden.float()).squeeze(-1)

    def named_parameters(self) -> Parameters:
        """Every trained parameter: what a checkpoint keeps."""
        return {**self.policy_parameters, **self.value_parameters}


def float32_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """A language head in float32 under any autocast: (..., d) -> (..., V).

    bfloat16 has steps of 0.06 at a logit of 10, which no small KL and no probability ratio survives.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())


def _logits(head: nn.Module, hidden: Tensor, temperature: float) -> Tensor:
    logits = float32_logits(head, hidden)
    return logits if temperature == 1.0 else logits / temperature


def run_concurrently(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """What both give, each computed by half of torch's threads; one after the other where torch has a single one.

    Neither writes what the other reads. Gradient mode is the caller's; each enters autocast itself.

    Raises:
        Exception: what either raised, once both have ended; the first's where both did.
    """
    threads, enabled = torch.get_num_threads(), torch.is_grad_enabled()
    if threads < 2:
        return first(), second()

    def run(work: Callable[[], C]) -> C:
        with torch.set_grad_enabled(enabled):
            return work()

    pool = _pool(threads // 2)
    # OpenMP keeps a number by thread, which the workers have set; MKL keeps one for the process.
    torch.set_num_threads(threads // 2)
    try:
        one, other = pool.submit(run, first), pool.submit(run, second)
        wait([one])
        wait([other])
    finally:
        torch.set_num_threads(threads)
    return one.result(), other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Two threads of Python, each with so many of torch's."""
    return ThreadPoolExecutor(2, "network", initializer=torch.set_num_threads, initargs=(threads,))
