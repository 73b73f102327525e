"""Settings of the stages: which one to run, supervised fine-tuning, the reward model, and the RL loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlhf.config.algo import CRITIC, PACKS_BY_LENGTH
from rlhf.config.model import TrainableConfig
from rlhf.config.setting import EVALUATING, RANDOM_MODEL, RL, SCORING, SFT, VLLM, option_is, setting, stages, where


@dataclass(kw_only=True)
class StageConfig:
    name: str = setting(
        "the stage to run",
        choices=("online", "offline", "sft", "reward_model", "reference_samples", "evaluate", "chat"),
    )


@dataclass(kw_only=True)
class SupervisedConfig:
    """What SFT and reward-model training share: plain minibatch training on a fixed data set."""

    seed: int = setting("seed of data order and random heads; shared by all RL runs, unlike `seed`", low=0)
    train: TrainableConfig = setting("which parameters are trained")
    learning_rate: float = setting("peak learning rate of AdamW", also_called="lr", above=0)
    weight_decay: float = setting("AdamW's decoupled weight decay", low=0)
    warmup_steps: int = setting("optimizer steps of linear warm-up", also_called="warmup_ratio num_warmup_steps", low=0)
    schedule: str = setting("after the warm-up", choices=("constant", "linear", "cosine"))
    batch_size: int = setting(
        "examples per optimizer step, of all ranks together", also_called="train_batch_size", low=1
    )
    micro_batch_size: int = setting("examples per forward pass of each rank, at most; divides batch_size", low=1)
    steps: int = setting("optimizer steps", also_called="max_steps", low=1)
    max_grad_norm: float = setting("gradients are scaled down to this norm", above=0)
    max_bad_steps: int = setting(
        "optimizer steps of the whole run that may be left out since their loss or gradient is not finite; one more "
        "ends the run, and bad_steps/ in its folder has their batches; 0: the first one does",
        low=0,
        identity=False,  # as many as are allowed are left out, whatever the limit
    )
    eval_every: int = setting("optimizer steps between evaluations on held-out data", low=1)


@dataclass(kw_only=True)
class SFTConfig(SupervisedConfig):
    seed: int = setting(
        "seed of data order and random weights, of those that go without SFT too; shared by all RL runs, unlike `seed`",
        read_by=replace(SFT | (RANDOM_MODEL & option_is("model.sft", False)), regardless=True),
        low=0,
    )
    loss_on_prompt: bool = setting("train on the prompt's tokens too (the released code), not on the response alone")
    turns: str = setting(
        "which answers of a conversation are learnt: every turn of the assistant, each behind what precedes it, or the "
        "last one alone",
        read_by=where(
            lambda config: config.dataset.has_conversations,
            "SFT on the preferred answers",
            "dataset.sft_path=... or dataset=prompts",
            "dataset.name",
            "dataset.sft_path",
            "dataset.sft_hub",
        )
        & option_is("sft.loss_on_prompt", False),
        also_called="assistant_only_loss mask_history roles_to_train",
        choices=("all", "last"),
    )
    packing: bool = setting("several texts in one row, attention kept apart, instead of padding")


@dataclass(kw_only=True)
class RewardModelConfig(SupervisedConfig):
    margin: float = setting("by how much the preferred answer's score has to lead before the loss is log 2", low=0)
    center_coef: float = setting("weight of the squared sum of a pair's scores (keeps scores near 0); 0: off", low=0)
    normalize: str = setting(
        "what the scores are shifted and scaled by after training: the mean and standard deviation over reference "
        "answers, their mean alone, or nothing",
        choices=("mean_std", "mean", "none"),
    )


_OWN_SERVER = VLLM & option_is("rollout.url", None)


@dataclass(kw_only=True)
class RolloutConfig:
    iterations: int = setting(
        "rollout-and-update rounds",
        read_by=RL,
        also_called="num_iterations total_episodes max_steps num_steps total_steps",
        low=1,
    )
    num_responses: int = setting(
        "responses per iteration, of all ranks together",
        read_by=RL,
        also_called="batch_size rollout_batch_size num_rollouts",
        low=1,
    )
    batch_size: int = setting(
        "responses sampled, and measured where nothing is trained, at once by each rank", read_by=SCORING, low=1
    )
    sampling: str = setting(
        "fast: our own layers over a static key-value cache; plain: the model's forward pass, which any architecture "
        "has and which takes over where fast does not fit; vllm: a vLLM server, while all but the rollouts is sampled "
        "by fast; typed as rollout=plain or rollout=vllm",
        choices=("fast", "plain", "vllm"),
    )
    temperature: float = setting("sampling temperature; logprobs are taken at it too", also_called="temp", above=0)
    lag: int = setting(
        "iterations by which the policy that samples is older than the one that learns; the initial policy samples the "
        "first ones",
        read_by=stages("online"),
        also_called="staleness off_policy_steps async_steps max_staleness",
        low=0,
        off=0,
    )
    precision: str | None = setting(
        "what the sampler of training responses computes in, while the update's logprobs stay in "
        "hardware.precision: the noise of a sampler that rounds otherwise; null: hardware.precision",
        read_by=stages("online"),
        also_called="sampler_dtype vllm_dtype rollout_dtype",
        choices=("fp32", "bf16"),
        off=None,
    )
    # Whichever server samples, the run is the same: none of these is part of its identity.
    url: str | None = setting(
        "address of a vLLM server that is up, as http://127.0.0.1:8000; null: the run starts one by `command`",
        read_by=VLLM,
        also_called="vllm_url vllm_server_base_url vllm_server_host",
        identity=False,
    )
    command: str = setting(
        "the program `vllm` that starts the run's own server, by name or path", read_by=_OWN_SERVER, identity=False
    )
    arguments: list[str] = setting(
        "further arguments of `vllm serve` for the run's own server, as [--gpu-memory-utilization=0.4]",
        read_by=_OWN_SERVER,
        identity=False,
    )
    weights_dir: str | None = setting(
        "folder through which the policy's weights reach the server, which sees it by the same path; null: the run's",
        read_by=VLLM,
        identity=False,
        path=True,
    )
    tolerance: float | None = setting(
        "mean distance per token, in nats, up to which the server's logprobs and our own count as those of the same "
        "weights; null: 0.001 with hardware.precision=fp32, 0.05 otherwise",
        read_by=VLLM,
        identity=False,
        above=0,
    )
    timeout_seconds: float = setting(
        "longest wait for the server to start, and for one of its answers", read_by=VLLM, identity=False, above=0
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
    standardize_scores: bool = setting("scores get mean 0 and standard deviation 1 over the data set")


@dataclass(kw_only=True)
class AdvantagesConfig:
    gamma: float = setting("discount per token", above=0, high=1)
    gae_lambda: float = setting(
        "lambda of generalised advantage estimation; not algo.lam", also_called="gae_lam lambd", low=0, high=1
    )
    whiten: str = setting(
        "zero mean and unit standard deviation over valid tokens, unit standard deviation alone, or raw",
        also_called="whiten_rewards whiten_advantages",
        choices=("full", "scale", "none"),
    )
    whiten_over: str = setting(
        "the tokens that whitening pools: the whole rollout batch, or each minibatch (the released code)",
        read_by=option_is(".whiten", "full", "scale"),
        choices=("rollout", "minibatch"),
    )


@dataclass(kw_only=True)
class OptimizationConfig:
    learning_rate: float = setting(
        "learning rate of the policy (AdamW)", also_called="lr actor_learning_rate actor_lr policy_lr", above=0
    )
    betas: list[float] = setting("AdamW's decay rates of the two moments", low=0, high=1)
    eps: float = setting("AdamW's epsilon", above=0)
    weight_decay: float = setting("AdamW's decoupled weight decay", low=0)
    schedule: str = setting(
        "learning rate over the run",
        also_called="lr_scheduler_type lr_scheduler scheduler",
        choices=("constant", "linear", "cosine"),
    )
    epochs: int = setting(
        "passes over each rollout batch, freshly shuffled",
        also_called="num_epochs num_train_epochs ppo_epochs num_ppo_epochs max_epochs",
        low=1,
    )
    minibatch_size: int = setting(
        "responses per optimizer step, of all ranks together; divides rollout.num_responses",
        also_called="mini_batch_size train_batch_size batch_size",
        low=1,
    )
    micro_batch_size: int = setting(
        "responses of an update's forward pass on each rank, at most; divides minibatch_size; the frozen trunk and "
        "evaluations go by rollout.batch_size",
        also_called="per_device_train_batch_size gradient_accumulation_steps micro_train_batch_size",
        low=1,
    )
    pack_by_length: bool = setting(
        "a minibatch's micro-batches are of neighbours in length, without their padding; false: all are as wide as the "
        "rollout",
        read_by=PACKS_BY_LENGTH,
    )
    max_grad_norm: float = setting(
        "gradients of each network are scaled down to this norm",
        also_called="grad_clip clip_grad_norm max_norm",
        above=0,
    )
    max_bad_steps: int = setting(
        "optimizer steps of the whole run that may be left out since their loss or gradient is not finite; one more "
        "ends the run, and bad_steps/ in its folder has their batches; 0: the first one does",
        low=0,
        identity=False,  # as many as are allowed are left out, whatever the limit
    )


@dataclass(kw_only=True)
class EvaluationConfig:
    eval_every: int = setting(
        "iterations between evaluations; the first is at step 0",
        read_by=RL,
        also_called="eval_steps eval_interval eval_freq",
        low=1,
    )
    responses_per_prompt: int = setting(
        "responses to each evaluation prompt at every evaluation: more of them measure reward and KL more closely",
        read_by=EVALUATING,
        low=1,
    )
    kl_step: float | None = setting(
        "evaluate also where the square root of the rollouts' KL (nats) has moved by so much since the last "
        "evaluation, so that the reward-KL curve is read evenly; null: by eval_every alone",
        read_by=stages("online"),
        above=0,
    )
    reference_responses: int = setting(
        "responses of the initial policy to each evaluation prompt, made once for all runs: they tell the reward that "
        "runs start from and the most that any policy can gain for its KL; 0: none",
        read_by=RL | stages("reference_samples"),
        low=0,
    )
    seed: int = setting("seed of the evaluation's draws, the same at every evaluation and in every run", low=0)
    policy: str | None = setting(
        "folder or hub name that stage=evaluate measures and stage=chat talks to, there typed as policy=; null: the "
        "initial policy itself",
        read_by=stages("evaluate", "chat"),
        also_called="policy",
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
        also_called="save_steps save_freq save_interval save_every",
        low=1,
        identity=False,
    )
    save_final: str = setting(
        "what final/ holds: the whole policy, its trained tensors, or nothing",
        read_by=RL,
        choices=("full", "trained", "none"),
    )
