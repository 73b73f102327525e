"""Small random weights in the real format, tokenizer and all, through the door that real ones come by."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.batches import PromptBatch, Rollouts
from rlhf.data.examples import Demonstration
from rlhf.data.tokenize import encode_prompts
from rlhf.masked import token_logprobs
from rlhf.models import PolicyModels
from rlhf.models.layers import FrozenWeights
from rlhf.models.loading import ModelError, load_base, load_pretrained
from rlhf.random import generator, sampling_uniforms
from rlhf.rollout import generate
from rlhf.sampling.fast import unfit
from tests.config.composed import config
from tests.helpers import (
    ARCHITECTURES,
    MODES,
    SAMPLINGS,
    nudge,
    plain_logprobs,
    policy_logits,
    policy_models,
    unpadded,
)

TEXT = "the cat sat on the mat and the dog ran to the cat while a bird sang in the tall old tree by the river"
PROMPTS = ["the cat", "while a bird sang in the tall old tree", "a", "the dog ran to the river by the"]
# Each architecture, and one of them in every mode.
EVERYWHERE = [*zip(ARCHITECTURES, itertools.cycle(MODES)), *(("gpt_neox", mode) for mode in MODES[1:])]
NEW = 12


def byte_pairs() -> PreTrainedTokenizerFast:
    """Of bytes, as GPT-2's and Pythia's, learnt from a few words; an EOS and no padding token, as theirs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    learn = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, learn)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """`save_pretrained` of each architecture, with weights wide enough that positions and masks matter."""
    parent, tokenizer, made = tmp_path_factory.mktemp("hub"), byte_pairs(), {}
    for name, settings in ARCHITECTURES.items():
        architecture = settings()
        architecture.vocab_size = len(tokenizer)
        architecture.pad_token_id = None
        model, draws = AutoModelForCausalLM.from_config(architecture), generator(0, "architectures")
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=draws) * 0.3
                parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
        made[name] = parent / name
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


def loaded(folder: Path, mode: str, tmp_path: Path) -> tuple[PolicyModels, PreTrainedTokenizerBase]:
    settings = config("model=pythia_125m", f"model.path={folder}", "dataset=reviews").model
    model, tokenizer = load_base(settings, (), 64, tmp_path)
    return policy_models(model, mode), tokenizer


def responses(
    networks: PolicyModels, tokenizer: PreTrainedTokenizerBase, prompts: PromptBatch, uniforms: Tensor, sampling: str
) -> Rollouts:
    assert unfit(networks.sampler) == ""
    return generate(networks, tokenizer, prompts, uniforms, sampling=sampling, batch_size=3, stop_strings=[])


@pytest.mark.parametrize(("architecture", "mode"), EVERYWHERE)
def test_samplers_update_and_a_plain_forward_agree_with_and_without_left_padding(architecture, mode, folders, tmp_path):
    """The plain forward is transformers' own of each text alone: no padding, positions or mask, none of our code."""
    networks, tokenizer = loaded(folders[architecture], mode, tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # it had none, and none is added
    plain = AutoModelForCausalLM.from_pretrained(folders[architecture])
    prompts = encode_prompts(tokenizer, [Demonstration(text, "") for text in PROMPTS], 20)
    assert not bool(prompts.mask.all())
    uniforms = sampling_uniforms(0, "test", 0, len(PROMPTS), NEW)
    rollouts, other = (responses(networks, tokenizer, prompts, uniforms, sampling) for sampling in SAMPLINGS)
    assert torch.equal(rollouts.response_ids, other.response_ids)
    with torch.no_grad():
        updated = token_logprobs(policy_logits(networks, networks.features(rollouts)), rollouts.response_ids)
    for sampled in (rollouts.sampler_logprobs, other.sampler_logprobs):
        torch.testing.assert_close(sampled[rollouts.mask], updated[rollouts.mask], atol=1e-5, rtol=1e-5)
    texts = zip(
        unpadded(rollouts.prompt_ids, rollouts.prompt_mask), unpadded(rollouts.response_ids, rollouts.mask), strict=True
    )
    for i, (prompt, response) in enumerate(texts):
        update = updated[i, : len(response)]
        torch.testing.assert_close(update, plain_logprobs(plain, prompt, response).float(), atol=2e-5, rtol=2e-5)
        alone = prompts.rows(torch.tensor([i])).trimmed()
        single = responses(networks, tokenizer, alone, uniforms[i : i + 1], "fast")
        assert single.prompt_mask.all() and single.responses == [rollouts.responses[i]]
        with torch.no_grad():
            row = token_logprobs(policy_logits(networks, networks.features(single)), single.response_ids)
        torch.testing.assert_close(row[0, : len(response)], update, atol=1e-5, rtol=1e-5)


def test_texts_longer_than_the_model_are_refused_at_once(folders, tmp_path):
    settings = config("model=pythia_125m", f"model.path={folders['gpt_neo']}", "dataset=reviews").model
    assert load_base(settings, (), 64, tmp_path)
    with pytest.raises(ModelError, match=r"^dataset\.max_total_length: 65, but .* reads at most 64 tokens; make it 64"):
        load_base(settings, (), 65, tmp_path)


def test_a_widened_vocabulary_is_the_same_each_time(folders):
    first, second = (load_pretrained(folders["llama"])[0] for _ in range(2))
    rows = [model.get_input_embeddings().weight[-1] for model in (first, second)]
    assert torch.equal(*rows) and bool((rows[0] != 0).any())
    held, _ = load_pretrained(folders["llama"], FrozenWeights("bfloat16"))
    assert held.get_input_embeddings().weight.shape == first.get_input_embeddings().weight.shape


@pytest.mark.parametrize("mode", MODES)
def test_nudged_policies_are_still_their_samplers(folders, tmp_path, mode):
    networks, tokenizer = loaded(folders["gpt_neo"], mode, tmp_path)
    nudge(networks.named_parameters(), 0.2)
    prompts = encode_prompts(tokenizer, [Demonstration(text, "") for text in PROMPTS], 20)
    uniforms = sampling_uniforms(0, "test", 0, len(PROMPTS), NEW)
    for sampling in SAMPLINGS:
        rollouts = responses(networks, tokenizer, prompts, uniforms, sampling)
        with torch.no_grad():
            updated = token_logprobs(policy_logits(networks, networks.features(rollouts)), rollouts.response_ids)
        sampled = rollouts.sampler_logprobs[rollouts.mask]
        torch.testing.assert_close(sampled, updated[rollouts.mask], atol=1e-5, rtol=1e-5)
