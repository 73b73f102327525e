"""Gradient checkpointing: the same gradients to the bit, each block computed twice where it is trained."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from rlhf.models import PolicyModels
from rlhf.random import sampling_uniforms
from tests.helpers import (
    ARCHITECTURES,
    LAYERS,
    MODES,
    SAMPLINGS,
    nudge,
    policy_logits,
    policy_models,
    random_rollouts,
    sample,
    tiny_model,
    value_settings,
)

ROLLOUTS = random_rollouts([5, 1, 3, 2], [4, 6, 1, 2])


def gradients(models: PolicyModels, *, together: bool = False) -> dict[str, torch.Tensor]:
    features = models.features(ROLLOUTS)
    policy = policy_logits(models, features).square().mean()
    if together:
        (policy + models.values(features).square().mean()).backward()
    else:
        policy.backward()
        models.values(features).square().mean().backward()
    return {name: p.grad for name, p in models.named_parameters().items() if p.grad is not None}


def both(architecture: str, mode: str, value=None) -> tuple[PolicyModels, PolicyModels]:
    kept, recomputed = (policy_models(tiny_model(architecture), mode, value, recompute=r) for r in (False, True))
    for models in (kept, recomputed):
        nudge(models.named_parameters())
    return kept, recomputed


@pytest.mark.parametrize(("architecture", "mode"), list(itertools.product(ARCHITECTURES, MODES)))
def test_the_gradients_are_the_same(architecture, mode):
    kept, recomputed = (gradients(models) for models in both(architecture, mode))
    assert set(kept) == set(recomputed) and len(kept) > 6
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("architecture", "mode"), [("gpt_neo", "all"), ("llama", "last_k"), ("gptj", "lora")])
def test_the_gradients_are_the_same_by_the_models_own_forward_pass(own_pass, architecture, mode):
    test_the_gradients_are_the_same(architecture, mode)


@pytest.mark.parametrize("value", [value_settings("head"), value_settings()])
def test_adapters_are_switched_back_for_a_models_own_forward_pass(own_pass, value):
    test_whatever_the_value_network_and_whichever_adapter_was_on_last("lora", value)


@pytest.mark.parametrize("value", [value_settings("head"), value_settings(train="all"), value_settings()])
@pytest.mark.parametrize("mode", MODES)
def test_whatever_the_value_network_and_whichever_adapter_was_on_last(mode, value):
    """Both losses on one graph: with LoRA, the value adapter is on when the policy's blocks are computed again."""
    kept, recomputed = (gradients(models, together=True) for models in both("llama", mode, value))
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_computed_again_for_training_alone(mode, monkeypatch):
    models = policy_models(tiny_model("llama"), mode, last_k=2, recompute=True)
    calls: Counter[bool] = Counter()
    mlp = type(models.model.base_model.layers[0].mlp)
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda *a, **k: (calls.update([torch.is_grad_enabled()]), plain(*a, **k))[1])
    trained = 2 if mode == "last_k" else LAYERS
    features = models.features(ROLLOUTS)
    calls.clear()
    policy_logits(models, features).square().mean().backward()
    assert calls[True] == 2 * trained
    calls.clear()
    with torch.no_grad():
        policy_logits(models, features)
    assert calls == {False: trained}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("mode", MODES)
def test_the_sampler_keeps_its_cache(mode, sampling):
    uniforms = sampling_uniforms(0, "test", 0, 4, 5)
    drawn = []
    for models in both("gpt_neox", mode):
        with models.sampling() as sampler:
            tokens = sample(sampling, sampler, ROLLOUTS.prompt_ids, ROLLOUTS.prompt_mask, uniforms)
        drawn.append(tokens)
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
