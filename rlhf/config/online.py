"""Settings of the RL loop: rollouts, advantages, updates, evaluations, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.algo import CRITIC, PACKS_BY_LENGTH
from rlhf.config.readers import ALWAYS, EVALUATING, RL, Is, stages
from rlhf.config.setting import setting


@dataclass(kw_only=True)
class RolloutConfig:
    iterations: int = setting(
        "rollout-and-update rounds",
        read_by=RL,
        also_called=("num_iterations", "total_episodes", "max_steps", "num_steps", "total_steps"),
        low=1,
    )
    num_responses: int = setting(
        "responses per iteration, of all ranks together",
        read_by=RL,
        also_called=("batch_size", "rollout_batch_size", "num_rollouts"),
        low=1,
    )
    batch_size: int = setting(
        "responses sampled, and measured where nothing is trained, at once by each rank", read_by=ALWAYS, low=1
    )
    sampling: str = setting(
        "fast: our own layers over a static key-value cache; plain: the model's forward pass, which any architecture "
        "has and which takes over where fast does not fit; typed as rollout=plain",
        read_by=ALWAYS,
        choices=("fast", "plain"),
    )
    temperature: float = setting(
        "sampling temperature; logprobs are taken at it too", read_by=ALWAYS, also_called=("temp",), above=0
    )


@dataclass(kw_only=True)
class OfflineConfig:
    """stage=offline: an iteration is the next rollout.num_responses responses of the data set.

    reward.scale has no part in it, reward.clip has.
    """

    refresh_values: bool = setting(
        "an iteration's values come from the value network as it is; false: from the untrained one for the whole run "
        "(the released code)",
        read_by=CRITIC,
    )
    standardize_scores: bool = setting("scores get mean 0 and standard deviation 1 over the data set", read_by=ALWAYS)


@dataclass(kw_only=True)
class AdvantagesConfig:
    gamma: float = setting("discount per token", read_by=ALWAYS, above=0, high=1)
    gae_lambda: float = setting(
        "lambda of generalised advantage estimation; not algo.lam",
        read_by=ALWAYS,
        also_called=("gae_lam", "lambd"),
        low=0,
        high=1,
    )
    whiten: str = setting(
        "zero mean and unit standard deviation over valid tokens, unit standard deviation alone, or raw",
        read_by=ALWAYS,
        also_called=("whiten_rewards", "whiten_advantages"),
        choices=("full", "scale", "none"),
    )
    whiten_over: str = setting(
        "the tokens that whitening pools: the whole rollout batch, or each minibatch (the released code)",
        read_by=Is(".whiten", ("full", "scale")),
        choices=("rollout", "minibatch"),
    )


@dataclass(kw_only=True)
class OptimizationConfig:
    learning_rate: float = setting(
        "learning rate of the policy (AdamW)",
        read_by=ALWAYS,
        also_called=("lr", "actor_learning_rate", "actor_lr", "policy_lr"),
        above=0,
    )
    betas: list[float] = setting("AdamW's decay rates of the two moments", read_by=ALWAYS, low=0, high=1)
    eps: float = setting("AdamW's epsilon", read_by=ALWAYS, above=0)
    weight_decay: float = setting("AdamW's decoupled weight decay", read_by=ALWAYS, low=0)
    schedule: str = setting(
        "learning rate over the run",
        read_by=ALWAYS,
        also_called=("lr_scheduler_type", "lr_scheduler", "scheduler"),
        choices=("constant", "linear", "cosine"),
    )
    epochs: int = setting(
        "passes over each rollout batch, freshly shuffled",
        read_by=ALWAYS,
        also_called=("num_epochs", "num_train_epochs", "ppo_epochs", "num_ppo_epochs", "max_epochs"),
        low=1,
    )
    minibatch_size: int = setting(
        "responses per optimizer step, of all ranks together; divides rollout.num_responses",
        read_by=ALWAYS,
        also_called=("mini_batch_size", "train_batch_size", "batch_size"),
        low=1,
    )
    micro_batch_size: int = setting(
        "responses of an update's forward pass on each rank, at most; divides minibatch_size; the frozen trunk and "
        "evaluations go by rollout.batch_size",
        read_by=ALWAYS,
        also_called=("per_device_train_batch_size", "gradient_accumulation_steps", "micro_train_batch_size"),
        low=1,
    )
    pack_by_length: bool = setting(
        "a minibatch's micro-batches are of neighbours in length, without their padding; false: all are as wide as the "
        "rollout",
        read_by=PACKS_BY_LENGTH,
    )
    max_grad_norm: float = setting(
        "gradients of each network are scaled down to this norm",
        read_by=ALWAYS,
        also_called=("grad_clip", "clip_grad_norm", "max_norm"),
        above=0,
    )
    max_bad_steps: int = setting(
        "optimizer steps of the whole run that may be left out since their loss or gradient is not finite; one more "
        "ends the run, and bad_steps/ in its folder has their batches; 0: the first one does",
        read_by=ALWAYS,
        low=0,
        identity=False,  # as many as are allowed are left out, whatever the limit
    )


@dataclass(kw_only=True)
class EvaluationConfig:
    eval_every: int = setting(
        "iterations between evaluations; the first is at step 0",
        read_by=RL,
        also_called=("eval_steps", "eval_interval", "eval_freq"),
        low=1,
    )
    seed: int = setting(
        "seed of the evaluation's draws, the same at every evaluation and in every run", read_by=ALWAYS, low=0
    )
    responses_per_prompt: int = setting(
        "responses to each evaluation prompt at every evaluation: more of them measure reward and KL more closely",
        read_by=EVALUATING,
        low=1,
    )
    reference_responses: int = setting(
        "responses of the initial policy to each evaluation prompt, made once for all runs: they tell the reward that "
        "runs start from and the most that any policy can gain for its KL; 0: none",
        read_by=RL | stages("reference_samples"),
        low=0,
    )
    kl_step: float | None = setting(
        "evaluate also where the square root of the rollouts' KL (nats) has moved by so much since the last "
        "evaluation, so that the reward-KL curve is read evenly; null: by eval_every alone",
        read_by=stages("online"),
        above=0,
    )
    policy: str | None = setting(
        "folder or hub name that stage=evaluate measures; null: the initial policy itself",
        read_by=stages("evaluate"),
        content=True,
    )
    samples: int = setting(
        "responses kept in samples.jsonl at each evaluation", read_by=EVALUATING, low=0, identity=False
    )
    released_k3: bool = setting(
        "also log train/kl_released_k3, the released code's estimator, which is not the KL", read_by=stages("online")
    )


@dataclass(kw_only=True)
class CheckpointConfig:
    checkpoint_every: int = setting(
        "iterations (optimizer steps in sft and reward_model) between checkpoints",
        read_by=ALWAYS,
        also_called=("save_steps", "save_freq", "save_interval", "save_every"),
        low=1,
        identity=False,
    )
    save_final: str = setting(
        "what final/ holds: the whole policy, its trained tensors, or nothing",
        read_by=RL,
        choices=("full", "trained", "none"),
    )
