"""Settings of the stages: which one to run, and how supervised fine-tuning and the reward model are trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.model import TrainableConfig
from rlhf.config.readers import ALWAYS, RANDOM_MODEL, SFT, Is, Regardless
from rlhf.config.setting import setting

RL_STAGES = ("online", "offline")
"""Those that train a policy with `algo` and that comparisons are made of."""


@dataclass(kw_only=True)
class StageConfig:
    name: str = setting(
        "the stage to run",
        read_by=ALWAYS,
        choices=("online", "offline", "sft", "reward_model", "reference_samples", "evaluate"),
    )


@dataclass(kw_only=True)
class SupervisedConfig:
    """What SFT and reward-model training share: plain minibatch training on a fixed data set."""

    seed: int = setting(
        "seed of data order and random heads; shared by all RL runs, unlike `seed`", read_by=ALWAYS, low=0
    )
    train: TrainableConfig = setting("which parameters are trained", read_by=ALWAYS)
    learning_rate: float = setting("peak learning rate of AdamW", read_by=ALWAYS, also_called=("lr",), above=0)
    weight_decay: float = setting("AdamW's decoupled weight decay", read_by=ALWAYS, low=0)
    warmup_steps: int = setting(
        "optimizer steps of linear warm-up", read_by=ALWAYS, also_called=("warmup_ratio", "num_warmup_steps"), low=0
    )
    schedule: str = setting("after the warm-up", read_by=ALWAYS, choices=("constant", "linear", "cosine"))
    batch_size: int = setting(
        "examples per optimizer step, of all ranks together", read_by=ALWAYS, also_called=("train_batch_size",), low=1
    )
    micro_batch_size: int = setting(
        "examples per forward pass of each rank, at most; divides batch_size", read_by=ALWAYS, low=1
    )
    steps: int = setting("optimizer steps", read_by=ALWAYS, also_called=("max_steps",), low=1)
    max_grad_norm: float = setting("gradients are scaled down to this norm", read_by=ALWAYS, above=0)
    max_bad_steps: int = setting(
        "optimizer steps of the whole run that may be left out since their loss or gradient is not finite; one more "
        "ends the run, and bad_steps/ in its folder has their batches; 0: the first one does",
        read_by=ALWAYS,
        low=0,
        identity=False,  # as many as are allowed are left out, whatever the limit
    )
    eval_every: int = setting("optimizer steps between evaluations on held-out data", read_by=ALWAYS, low=1)


@dataclass(kw_only=True)
class SFTConfig(SupervisedConfig):
    seed: int = setting(
        "seed of data order and random weights, of those that go without SFT too; shared by all RL runs, unlike `seed`",
        read_by=Regardless(SFT | (RANDOM_MODEL & Is("model.sft", (False,)))),
        low=0,
    )
    loss_on_prompt: bool = setting(
        "train on the prompt's tokens too (the released code), not on the response alone", read_by=ALWAYS
    )
    packing: bool = setting("several texts in one row, attention kept apart, instead of padding", read_by=ALWAYS)


@dataclass(kw_only=True)
class RewardModelConfig(SupervisedConfig):
    margin: float = setting(
        "by how much the preferred answer's score has to lead before the loss is log 2", read_by=ALWAYS, low=0
    )
    center_coef: float = setting(
        "weight of the squared sum of a pair's scores (keeps scores near 0); 0: off", read_by=ALWAYS, low=0
    )
    normalize: str = setting(
        "what the scores are shifted and scaled by after training: the mean and standard deviation over reference "
        "answers, their mean alone, or nothing",
        read_by=ALWAYS,
        choices=("mean_std", "mean", "none"),
    )
