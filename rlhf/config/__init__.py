"""Every knob of a run: types, units and meaning; the values stand in conf/. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.algo import ALGO_CONFIGS, AlgoConfig, APAConfig, AWRConfig, ILQLConfig, KLControlConfig, PPOConfig
from rlhf.config.dataset import DatasetConfig
from rlhf.config.hardware import HardwareConfig, SlurmConfig
from rlhf.config.model import ModelConfig, TrainableConfig, ValueConfig
from rlhf.config.online import (
    AdvantagesConfig,
    CheckpointConfig,
    EvaluationConfig,
    OfflineConfig,
    OptimizationConfig,
    RolloutConfig,
)
from rlhf.config.reward import RewardConfig
from rlhf.config.setting import setting
from rlhf.config.stage import RL_STAGES, RewardModelConfig, SFTConfig, StageConfig, SupervisedConfig
from rlhf.config.tracking import TrackingConfig

__all__ = [
    "ALGO_CONFIGS",
    "RL_STAGES",
    "APAConfig",
    "AWRConfig",
    "AdvantagesConfig",
    "AlgoConfig",
    "CheckpointConfig",
    "DatasetConfig",
    "EvaluationConfig",
    "HardwareConfig",
    "ILQLConfig",
    "KLControlConfig",
    "ModelConfig",
    "OfflineConfig",
    "OptimizationConfig",
    "PPOConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SlurmConfig",
    "StageConfig",
    "SupervisedConfig",
    "TrackingConfig",
    "TrainableConfig",
    "ValueConfig",
]


@dataclass(kw_only=True)
class RunConfig:
    """One run, whole. `algo` is the dataclass that `ALGO_CONFIGS` names for `algo.name`."""

    seed: int = setting("seed of rollouts, prompt order, minibatches and value head", low=0)
    sweep_name: str = setting("folder below output_dir that gathers the runs of one experiment", identity=False)
    output_dir: str = setting("where runs are written", identity=False, path=True)
    cache_dir: str = setting(
        "where SFT policies, reward models and converted weights are kept for later runs", identity=False, path=True
    )
    overwrite: bool = setting("start afresh instead of skipping or resuming", identity=False)
    stage: StageConfig = setting("which stage runs")
    algo: AlgoConfig = setting("the algorithm of stage=online and stage=offline")
    dataset: DatasetConfig = setting("prompts, SFT texts, preference pairs")
    model: ModelConfig = setting("the policy")
    value: ValueConfig = setting("the value network")
    reward: RewardConfig = setting("the score of a response")
    sft: SFTConfig = setting("supervised fine-tuning")
    reward_model: RewardModelConfig = setting("reward-model training")
    rollout: RolloutConfig = setting("sampling")
    offline: OfflineConfig = setting("what stage=offline does in place of sampling")
    advantages: AdvantagesConfig = setting("advantage estimation")
    optimization: OptimizationConfig = setting("policy updates")
    evaluation: EvaluationConfig = setting("evaluation on held-out prompts")
    checkpoint: CheckpointConfig = setting("checkpoints and the final weights")
    hardware: HardwareConfig = setting("the machine")
    tracking: TrackingConfig = setting("W&B")
