"""Tiny random models of six architectures, rollouts of unequal lengths, and config values, for the tests beside this.

Weights are drawn much wider than a real initialisation, so that logprobs differ from token to token and from the
uniform, and a mask or position that is off by one shows at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from rlhf.batches import Rollouts, pad
from rlhf.config import TrainableConfig, ValueConfig
from rlhf.models import PolicyModels, build_models
from rlhf.models.families import FAMILIES as KNOWN
from rlhf.models.features import Features, features_of, micro_batches
from rlhf.models.loading import language_head
from rlhf.models.policy import Sampler, float32_logits
from rlhf.random import generator
from rlhf.sampling.fast import fast_sampler, unfit
from rlhf.sampling.plain import sample_plain
from rlhf.training_batch import Measured, measure

VOCAB, WIDTH, LAYERS, PAD, EOS = 23, 16, 3, 0, 1
_SHARED = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
_LLAMA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 64,
}
ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt_neox": lambda: GPTNeoXConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **_SHARED,
    ),
    "llama": lambda: LlamaConfig(**_LLAMA, **_SHARED),
    "qwen2": lambda: Qwen2Config(tie_word_embeddings=True, **_LLAMA, **_SHARED),
    "qwen3": lambda: Qwen3Config(head_dim=8, **_LLAMA, **_SHARED),
    "gptj": lambda: GPTJConfig(n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=64, rotary_dim=4, **_SHARED),
    "gpt_neo": lambda: GPTNeoConfig(  # learned positions; a local block between two global ones
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1], [["global"], 1]],
        window_size=4,
        **_SHARED,
    ),
}
FAMILIES = {**ARCHITECTURES, "mistral": lambda: MistralConfig(head_dim=4, sliding_window=4, **_LLAMA, **_SHARED)}
"""One of each class that `rlhf.models.families` knows."""
MODES = ("all", "last_k", "lora")
SAMPLINGS = ("plain", "fast")


def tiny_model(architecture: str = "gpt_neox", seed: int = 0, scale: float = 0.25) -> PreTrainedModel:
    """Three blocks, width 16; every matrix and bias drawn at standard deviation `scale`."""
    return model_of(ARCHITECTURES[architecture](), seed, scale)


def model_of(config: PretrainedConfig, seed: int = 0, scale: float = 0.25) -> PreTrainedModel:
    """As `tiny_model`, of any architecture; a family that our layers do not fit skips the test."""
    model = any_model_of(config, seed, scale)
    skip_where_moved(type(model.base_model).__name__)
    return model


def skip_where_moved(base: str) -> None:
    """Skip a test of our layers where this base model's class does not fit; tests/models/test_network.py fails."""
    if base in KNOWN and (line := misfit(base)):
        pytest.skip(line)


@functools.cache
def misfit(base: str) -> str:
    """Why our layers are not those of a base model's class under this version of transformers; empty where they are."""
    model = any_model_of(next(settings() for name, settings in FAMILIES.items() if base_class(name) == base))
    return unfit(model)


@functools.cache
def base_class(family: str) -> str:
    """The name of the class of a family's base model."""
    return type(AutoModel.from_config(FAMILIES[family]())).__name__


def any_model_of(config: PretrainedConfig, seed: int = 0, scale: float = 0.25) -> PreTrainedModel:
    """As `model_of`, whether our layers fit or not."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draws = generator(seed, "tiny model")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws) * scale
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)  # norms stay around 1
    return model.eval()


def trainable(mode: str, last_k: int = 2, merge_adapters: bool = False) -> TrainableConfig:
    return TrainableConfig(
        mode=mode, last_k=last_k, lora_rank=2, lora_alpha=4.0, lora_targets=None, merge_adapters=merge_adapters
    )


def value_settings(network: str = "separate", train: str = "as_policy", head_init_std: float = 0.3) -> ValueConfig:
    """A head that is not 0, so that values differ from state to state."""
    return ValueConfig(network=network, train=train, coef=1.0, learning_rate=1e-2, head_init_std=head_init_std)


def policy_models(
    model: PreTrainedModel,
    mode: str,
    value: ValueConfig | None = None,
    temperature: float = 1.0,
    last_k: int = 2,
    *,
    precision: str = "fp32",
    recompute: bool = False,
    merge_adapters: bool = False,
    train: TrainableConfig | None = None,
    critic: bool = True,
) -> PolicyModels:
    torch.manual_seed(0)
    settings = (value or value_settings()) if critic else None
    train = train or trainable(mode, last_k, merge_adapters)
    return build_models(model, train, settings, temperature=temperature, precision=precision, recompute=recompute)


def nudge(parameters: dict[str, torch.nn.Parameter], size: float = 0.3, seed: int = 1) -> None:
    """As if training had moved them: LoRA's second matrix starts at 0, where half of its gradients vanish."""
    draws = generator(seed, "nudge")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += (size * torch.randn(parameter.shape, generator=draws)).to(parameter.device)


def random_rollouts(prompt_lengths: list[int], response_lengths: list[int], seed: int = 0) -> Rollouts:
    """Prompts and responses of random tokens, neither pad nor EOS, the responses padded to the longest."""
    draws = generator(seed, "rollouts")

    def rows(lengths: list[int]) -> list[list[int]]:
        return [torch.randint(2, VOCAB, (length,), generator=draws).tolist() for length in lengths]

    prompt_ids, prompt_mask = pad(rows(prompt_lengths), PAD, left=True)
    response_ids, mask = pad(rows(response_lengths), PAD, left=False)
    names = [str(i) for i in range(len(prompt_lengths))]
    return Rollouts(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        mask=mask,
        ended=torch.ones(len(names), dtype=torch.bool),
        prompts=names,
        references=names,
        responses=names,
        sampler_logprobs=torch.zeros(mask.shape),
    )


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, prompt: list[int], response: list[int], temperature: float = 1.0) -> Tensor:
    """log pi of each response token by one plain forward of one unpadded text, in float64 after the logits."""
    logits = model(torch.tensor([prompt + response])).logits[0].double() / temperature
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[len(prompt) + t - 1, token] for t, token in enumerate(response)])


def sampler_of(model: PreTrainedModel, temperature: float = 1.0) -> Sampler:
    """A whole model as it is, which no mode has touched."""
    return Sampler(model, lambda hidden: float32_logits(language_head(model), hidden) / temperature)


def sample(
    sampling: str, sampler: Sampler, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor, *, eos_id: int = EOS
) -> tuple[Tensor, Tensor]:
    """Tokens and logprobs of one batch, either way; without a gradient. A model that fast does not fit is an error."""
    if sampling == "plain":
        return sample_plain(sampler, prompt_ids, prompt_mask, uniforms, eos_id=eos_id, pad_id=PAD)
    assert unfit(sampler.model) == ""
    rows, width = prompt_ids.shape
    sizes = {"rows": rows, "prompt_width": width, "response_width": uniforms.shape[1]}
    return fast_sampler(sampler, **sizes, eos_id=eos_id, pad_id=PAD).sample(prompt_ids, prompt_mask, uniforms)


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[valid].tolist() for row, valid in zip(ids, mask, strict=True)]


def measure_all(models: PolicyModels, rollouts: Rollouts, micro_batch_size: int, *, by_length: bool) -> Measured:
    """All rows in their order, or that of their length, in parts of this size."""
    parts = micro_batches(
        torch.arange(len(rollouts.mask)), features_of(rollouts), micro_batch_size, by_length=by_length
    )
    return measure(models, rollouts, parts, rows_per_pass=4, by_length=by_length)


def policy_logits(models: PolicyModels, features: Features) -> Tensor:
    """(B, T, V) of the response tokens."""
    return models.policy_head(models.policy_hidden(features))


def reference_logits(models: PolicyModels, features: Features) -> Tensor:
    """As `policy_logits`, of the frozen initial policy."""
    return models.reference_head(models.reference_hidden(features))


def hidden_and_values(models: PolicyModels, features: Features) -> tuple[Tensor, Tensor]:
    """What the policy's logits are made of, and the values, wherever their head sits."""
    hidden = models.policy_hidden(features)
    return hidden, models.values_on(hidden) if models.value_on_policy else models.values(features)
