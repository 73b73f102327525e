"""Models of known shapes with random weights, texts of one length that never end, and a run's `Setup` made of them.

Equal lengths come about without a rule for any sampler: the language head gets a bias that makes every special token
(EOS, padding, unknown) impossible, so that each library samples responses of exactly as many tokens as it may.
"""

from __future__ import annotations

import copy
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from rlhf.batches import Rollouts
from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.data.examples import DataError, Demonstration, TextData
from rlhf.data.tokenize import Prompts, encode_prompts
from rlhf.earlier import EarlierPolicies
from rlhf.evaluation import Evaluator
from rlhf.models.layers import compute_in_float32
from rlhf.models.loading import language_head, load_base, moved, word_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.optimization import BadSteps
from rlhf.random import generator, seed_torch
from rlhf.rewards import controller_of
from rlhf.scorers import Scorer
from rlhf.stages.loop import Progress, one_iteration
from rlhf.stages.online import EarlyScores, Sampled, scores_early
from rlhf.stages.setup import Setup, networks, optimizer_of
from rlhf.text import decode
from rlhf.training_batch import measure_rollouts, training_batch
from rlhf.update import update
from tests.benchmarks.measuring import as_runs_do
from tests.config.composed import config as composed_config

NEVER = -1e4
"""Logit of what is not to be sampled; its probability is 0 in float32."""
TINY = ("model.num_layers=4", "model.width=128", "model.num_heads=4")
SPECIAL = {"max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}

MODELS: dict[str, Callable[[int], PretrainedConfig]] = {
    "tiny": lambda layers: neox(layers or 4, 128, 4, 1024),
    "smollm2_135m": lambda layers: _llama(layers or 30, 576, 9, 3, 1536, 49152, tied=True),
    "pythia_1b": lambda layers: neox(layers or 16, 2048, 8, 50304),
    "llama_7b": lambda layers: _llama(layers or 32, 4096, 32, 32, 11008, 32000, tied=False),
    "gptj_6b": lambda layers: GPTJConfig(
        n_embd=4096, n_layer=layers or 28, n_head=16, rotary_dim=64, vocab_size=50400, pad_token_id=0, eos_token_id=1
    ),
}
"""By name of conf/model; 0 layers: as many as the model has."""
POLICIES = [name for name in MODELS if name != "gptj_6b"]


def neox(layers: int, width: int, heads: int, vocabulary: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **SPECIAL,
    )


def _llama(layers: int, width: int, heads: int, groups: int, inner: int, vocabulary: int, *, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        **SPECIAL,
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

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Any = None) -> Tensor:
        return torch.arange(len(answers)) / len(answers)


def config_for(options: Namespace, *overrides: str, train: str | None = None, **changes: str | int) -> RunConfig:
    """A run at the sizes of a command's options, a minibatch in one forward pass. Leaves with a line where the options
    make no config.

    Args:
        train: all, last_k=2, lora; as conf/model has it where it is not given.
        changes: what this run has otherwise than `options`.
    """
    at = Namespace(**{"model": "tiny", "device": "cpu", "layers": 0, "epochs": 2, **vars(options), **changes})
    mode, _, last_k = (train or "").partition("=")
    words = [
        f"algo={at.algo}",
        f"model={at.model}",
        f"hardware={'cpu' if at.device == 'cpu' else 'gpu'}",
        *(TINY if at.model == "tiny" else ()),
        *([f"model.num_layers={at.layers}"] if at.layers else []),
        *([f"model.train.mode={mode}"] if mode else []),
        *([f"model.train.last_k={last_k}"] if last_k else []),
        f"rollout.num_responses={at.responses}",
        f"rollout.batch_size={at.responses}",
        "rollout.iterations=1000",
        f"dataset.max_total_length={at.prompt + at.new}",
        f"dataset.max_new_tokens={at.new}",
        f"optimization.epochs={at.epochs}",
        f"optimization.minibatch_size={at.minibatch}",
        f"optimization.micro_batch_size={at.minibatch}",
        "value.head_init_std=0.1",
        *overrides,
    ]
    try:
        return composed_config(*words)
    except ConfigError as error:
        sys.exit(str(error))


@dataclass
class Iterations:
    """A run's iterations, one behind the other, as `rlhf.stages.setup.build` and `run_online` make them."""

    config: RunConfig
    setup: Setup
    progress: Progress
    responses: Sampled
    deterministic: bool = True

    def next(self) -> dict[str, float]:
        """The row of metrics of one more."""
        with as_runs_do(self.setup.models.device, deterministic=self.deterministic):
            return one_iteration(self.config, self.setup, self.responses, self.progress, self.progress.iteration + 1)

    def updates(self, rollouts: Rollouts) -> Callable[[], object]:
        """The same update again and again; the weights move, the batch stays."""
        config, setup = self.config, self.setup
        with as_runs_do(setup.models.device):
            measured = measure_rollouts(config, setup.models, rollouts, 1)
        scores = torch.randn(len(rollouts.mask), generator=generator(0, "benchmark's scores"))
        batch = training_batch(setup.algorithm, rollouts, measured, scores, 0.0)
        steps = (config, setup.algorithm, setup.models, setup.optimizer, batch, measured.features)

        def call() -> None:
            with as_runs_do(setup.models.device):
                update(*steps, iteration=1, step=0)

        return call


def iterations_of(
    config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scorer: Scorer
) -> Iterations:
    """Takes the model. Prompts are texts of at least as many tokens as the prompt has, of which the last are taken."""
    limit, count = config.dataset.max_prompt_tokens, config.rollout.num_responses
    draws = torch.randint(0, len(tokenizer), (count, 4 * limit), generator=generator(0, "benchmark's prompts"))
    examples = [Demonstration(decode(tokenizer, row), "") for row in draws.tolist()]
    models, algorithm = networks(config, model), algorithm_of(config)
    setup = Setup(
        data=TextData([], [], [], [], examples, examples),
        tokenizer=tokenizer,
        prompts=Prompts(tokenizer, examples, limit),
        models=models,
        scorer=scorer,
        optimizer=optimizer_of(config, models, algorithm),
        algorithm=algorithm,
        earlier=EarlierPolicies(models.policy_parameters, 0),
        evaluator=Evaluator(config, algorithm, tokenizer, encode_prompts(tokenizer, examples[:1], limit), scorer, None),
    )
    no_folder: Any = None  # the first bad step ends a benchmark
    bad_steps = BadSteps(no_folder, "optimization.max_bad_steps", 0)
    early = EarlyScores(scorer, models.device) if scores_early(config) else None
    responses = Sampled(config, setup, early)
    return Iterations(config, setup, Progress(controller_of(config.algo.penalty), bad_steps), responses)


def made_up(config: RunConfig, vocabulary: int, device: torch.device) -> Rollouts:
    """Random tokens, none of them special, all texts of one length."""
    count, prompt, new = config.rollout.num_responses, config.dataset.max_prompt_tokens, config.dataset.max_new_tokens
    ids = torch.randint(3, vocabulary, (count, prompt + new), generator=generator(0, "benchmark's responses"))
    texts = [""] * count
    return Rollouts(
        prompt_ids=ids[:, :prompt],
        prompt_mask=torch.ones(count, prompt, dtype=torch.bool),
        response_ids=ids[:, prompt:],
        mask=torch.ones(count, new, dtype=torch.bool),
        ended=torch.zeros(count, dtype=torch.bool),
        prompts=texts,
        references=texts,
        responses=texts,
        sampler_logprobs=torch.zeros(count, new),
    ).to(device)
