"""Settings of what is shown and kept beside metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.readers import ALWAYS, Is
from rlhf.config.setting import setting

_ON_WANDB = Is("tracking.wandb", ("auto", "offline"), remedy="tracking=wandb")


@dataclass(kw_only=True)
class TrackingConfig:
    wandb: str = setting(
        "W&B: online where one is logged in and offline otherwise, always offline, or not at all",
        read_by=ALWAYS,
        also_called=("use_wandb", "report_to", "log_with"),
        choices=("auto", "offline", "off"),
        identity=False,
    )
    project: str = setting(
        "W&B project", read_by=_ON_WANDB, also_called=("wandb_project", "project_name"), identity=False
    )
    entity: str | None = setting("W&B user or team; null: the account's default", read_by=_ON_WANDB, identity=False)
    tags: list[str] = setting("W&B tags beside the algorithm's name", read_by=_ON_WANDB, identity=False)
    init_timeout: float = setting(
        "seconds to wait for the W&B server before going on offline", read_by=_ON_WANDB, above=0, identity=False
    )
