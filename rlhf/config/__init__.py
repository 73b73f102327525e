"""Every knob of a run: types, units and meaning; the values stand in conf/. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.algo import (
    ALGO_CONFIGS,
    CRITIC,
    GAE,
    HEADS,
    APAConfig,
    AWRConfig,
    ILQLConfig,
    PPOConfig,
)
from rlhf.config.algo_base import AlgoConfig, CriticAlgoConfig, KLControlConfig
from rlhf.config.dataset import ColumnsConfig, DatasetConfig
from rlhf.config.hardware import HardwareConfig, SlurmConfig, TrackingConfig
from rlhf.config.model import ModelConfig, TrainableConfig, ValueConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.setting import (
    CHECKPOINTED,
    REWARD_MODEL,
    RL,
    RL_STAGES,
    SAMPLING,
    SCORING,
    SCORING_STAGES,
    SFT,
    setting,
    stages,
    where,
)
from rlhf.config.stage import (
    AdvantagesConfig,
    CheckpointConfig,
    EvaluationConfig,
    OfflineConfig,
    OptimizationConfig,
    RewardModelConfig,
    RolloutConfig,
    SFTConfig,
    StageConfig,
    SupervisedConfig,
)

__all__ = [
    "ALGO_CONFIGS",
    "SCORING_STAGES",
    "APAConfig",
    "AWRConfig",
    "ColumnsConfig",
    "CriticAlgoConfig",
    "ILQLConfig",
    "KLControlConfig",
    "PPOConfig",
    "SlurmConfig",
    "SupervisedConfig",
    "TrainableConfig",
    "setting",
]  # and what RunConfig is made of


@dataclass(kw_only=True)
class RunConfig:
    """All settings of one run. `algo` is the dataclass that `ALGO_CONFIGS` names for `algo.name`."""

    seed: int = setting(
        "seed of rollouts, prompt order, minibatches and value head", read_by=RL, also_called="random_seed", low=0
    )
    sweep_name: str = setting(
        "folder below output_dir that gathers the runs of one experiment",
        also_called="run_name experiment_name exp_name name",
        identity=False,
    )
    output_dir: str = setting(
        "where runs are written", also_called="save_dir save_path logging_dir log_dir", identity=False, path=True
    )
    cache_dir: str = setting(
        "where SFT policies, reward models and converted weights are kept for later runs",
        also_called="cache",
        identity=False,
        path=True,
    )
    overwrite: bool = setting("start afresh instead of skipping or resuming", identity=False)
    settings_from: list[str] = setting(
        "files beside the groups' own that set values, and what each sets; the program fills it in",
        read_by=where(lambda _: False, "the program, which fills it in,", ""),
        identity=False,
        filled_in=True,
    )
    stage: StageConfig = setting("which stage runs")
    algo: AlgoConfig = setting(
        "the algorithm of stage=online and stage=offline",
        read_by=where(
            lambda run: run.stage.name in RL_STAGES or (run.stage.name in ("evaluate", "chat") and run.algo.heads),
            "a stage that trains no policy",
            "stage=online or stage=offline",
            "stage.name",
        ),
    )
    dataset: DatasetConfig = setting("prompts, SFT texts, preference pairs")
    model: ModelConfig = setting("the policy")
    value: ValueConfig = setting("the value network", read_by=RL & (CRITIC | HEADS))
    reward: RewardConfig = setting("the score of a response", read_by=SCORING)
    sft: SFTConfig = setting("supervised fine-tuning", read_by=SFT)
    reward_model: RewardModelConfig = setting("reward-model training", read_by=REWARD_MODEL)
    rollout: RolloutConfig = setting("sampling", read_by=SAMPLING)
    offline: OfflineConfig = setting("what stage=offline does in place of sampling", read_by=stages("offline"))
    advantages: AdvantagesConfig = setting("advantage estimation", read_by=RL & GAE)
    optimization: OptimizationConfig = setting("policy updates", read_by=RL)
    evaluation: EvaluationConfig = setting("evaluation on held-out prompts", read_by=SAMPLING)
    checkpoint: CheckpointConfig = setting("checkpoints and the final weights", read_by=CHECKPOINTED)
    hardware: HardwareConfig = setting("the machine")
    tracking: TrackingConfig = setting("W&B and TensorBoard")
