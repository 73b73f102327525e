"""Models of known shapes with random weights, texts of one length that never end, and a run's `Setup` made of them.

Equal lengths come about without a rule for any sampler: the language head gets a bias that makes every special token
(EOS, padding, unknown) impossible, so that each library samples responses of exactly as many tokens as it may.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.algorithms import algorithm_of
from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.data.examples import DataError, Demonstration, TextData
from rlhf.data.tokenize import Prompts, encode_prompts
from rlhf.evaluation import Evaluator
from rlhf.models.layers import compute_in_float32
from rlhf.models.loading import language_head, load_base, moved, word_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.optimization import BadSteps
from rlhf.random import generator, seed_torch
from rlhf.rewards import controller_of
from rlhf.scorers import Scorer
from rlhf.stages.loop import Progress
from rlhf.stages.online import EarlyScores, Sampled, scores_early
from rlhf.stages.setup import Setup, networks, optimizer_of
from rlhf.text import decode
from tests.config.composed import config as composed_config

NEVER = -1e4
"""Logit of what is not to be sampled; its probability is 0 in float32."""

MODELS: dict[str, Callable[[int], PretrainedConfig]] = {
    "tiny": lambda layers: neox(layers or 4, 128, 4, 1024),
    "smollm2_135m": lambda layers: _llama(layers or 30, 576, 9, 3, 1536, 49152, tie_word_embeddings=True),
    "pythia_1b": lambda layers: neox(layers or 16, 2048, 8, 50304),
    "llama_7b": lambda layers: _llama(layers or 32, 4096, 32, 32, 11008, 32000, tie_word_embeddings=False),
    "gptj_6b": lambda layers: GPTJConfig(
        n_embd=4096, n_layer=layers or 28, n_head=16, rotary_dim=64, vocab_size=50400, pad_token_id=0, eos_token_id=1
    ),
}
"""By name of conf/model; 0 layers: as many as the model has."""


def neox(layers: int, width: int, heads: int, vocabulary: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=2048,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def _llama(
    layers: int, width: int, heads: int, groups: int, inner: int, vocabulary: int, *, tie_word_embeddings: bool
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=inner,
        max_position_embeddings=2048,
        tie_word_embeddings=tie_word_embeddings,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def random_model(
    shape: PretrainedConfig, dtype: torch.dtype, device: torch.device, *, classifier: bool = False
) -> PreTrainedModel:
    """Weights as transformers draws them, made where they stay."""
    seed_torch(0, "benchmark")
    shape = copy.deepcopy(shape)
    shape.num_labels = 1
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    with torch.device(device):
        return kind.from_config(shape, dtype=dtype).eval()


def words_for(vocabulary: int) -> PreTrainedTokenizerBase:
    """A tokenizer of so many tokens, a word each."""
    return word_tokenizer([f"w{i:05}" for i in range(vocabulary - 3)])


def policy_for(
    config: RunConfig, name: str, dtype: torch.dtype, device: torch.device, layers: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Random weights, or SmolLM2's own where its package is; a policy whose responses never end."""
    if name == "smollm2_135m" and not layers:
        try:
            model, tokenizer = load_base(config.model, (), config.dataset.max_total_length, Path("cache"))
        except DataError as error:
            sys.exit(str(error))
    else:
        shape = MODELS[name](layers)
        model, tokenizer = random_model(shape, dtype, device), words_for(shape.vocab_size)
    never_ends(model, tokenizer)
    if dtype != torch.float32:
        compute_in_float32(model)
    return moved(model, device), tokenizer


def never_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the head a bias under which no special token is ever drawn, in place."""
    head = language_head(model)
    assert isinstance(head, nn.Linear)
    with torch.device(head.weight.device):
        biased = nn.Linear(head.in_features, head.out_features, dtype=head.weight.dtype)
    biased.weight = head.weight
    with torch.no_grad():
        biased.bias.zero_()[tokenizer.all_special_ids] = NEVER
    model.set_output_embeddings(biased)


def classifier_of(model: PreTrainedModel) -> PreTrainedModel:
    """A sequence classifier with one output and the policy's weights: reward model, and TRL's value network."""
    classifier = random_model(model.config, torch.float32, model.device, classifier=True)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    return classifier


def reward_of(config: RunConfig, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    limits = config.dataset.max_prompt_tokens, config.dataset.max_new_tokens + 1  # and the EOS
    return RewardModel(network, tokenizer, max_prompt_tokens=limits[0], max_new_tokens=limits[1])


@dataclass(frozen=True)
class NoReward:
    """Scores that cost nothing."""

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        return torch.arange(len(answers)) / len(answers)


def prompts_for(tokenizer: PreTrainedTokenizerBase, count: int, tokens: int) -> list[Demonstration]:
    """Texts of at least so many tokens, of which the last are taken."""
    draws = torch.randint(0, len(tokenizer), (count, 4 * tokens), generator=generator(0, "benchmark's prompts"))
    texts = [decode(tokenizer, row) for row in draws.tolist()]
    return [Demonstration(text, "") for text in texts]


def config_for(*overrides: str, algo: str, responses: int, prompt: int, new: int, minibatch: int) -> RunConfig:
    """A run of the default settings at these sizes; a minibatch is one forward pass. Leaves with a line where a
    benchmark's options make no config."""
    try:
        return composed_config(
            f"algo={algo}",
            f"rollout.num_responses={responses}",
            f"rollout.batch_size={responses}",
            "rollout.iterations=1000",
            f"dataset.max_total_length={prompt + new}",
            f"dataset.max_new_tokens={new}",
            f"optimization.minibatch_size={minibatch}",
            f"optimization.micro_batch_size={minibatch}",
            "value.head_init_std=0.1",
            *overrides,
        )
    except ConfigError as error:
        sys.exit(str(error))


def setup_of(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scorer: Scorer
) -> tuple[Setup, Progress]:
    """As `rlhf.stages.setup.build` makes it; takes the model."""
    limits = config.dataset.max_prompt_tokens
    examples = prompts_for(tokenizer, config.rollout.num_responses, limits)
    models, algorithm = networks(config, model), algorithm_of(config)
    held_out = encode_prompts(tokenizer, examples[:1], limits)
    setup = Setup(
        data=TextData([], [], [], [], examples, examples),
        tokenizer=tokenizer,
        prompts=Prompts(tokenizer, examples, limits),
        models=models,
        scorer=scorer,
        optimizer=optimizer_of(config, models, algorithm),
        algorithm=algorithm,
        evaluator=Evaluator(config, algorithm, tokenizer, held_out, scorer, None),
    )
    bad_steps = BadSteps(Path("unused"), "optimization.max_bad_steps", 0, lambda write: write())
    return setup, Progress(controller_of(config.algo.penalty), bad_steps)


def responses_of(config: RunConfig, setup: Setup) -> Sampled:
    """As `rlhf.stages.online.run_online` has it."""
    early = EarlyScores(setup.scorer, setup.models.device) if scores_early(config) else None
    return Sampled(config, setup, early)
