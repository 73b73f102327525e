"""Settings of what is shown and kept beside metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.config.setting import setting


@dataclass(kw_only=True)
class TrackingConfig:
    wandb: str = setting(
        "W&B: online where one is logged in and offline otherwise, always offline, or not at all",
        choices=("auto", "offline", "off"),
        identity=False,
    )
    project: str = setting("W&B project", identity=False)
    entity: str | None = setting("W&B user or team; null: the account's default", identity=False)
    tags: list[str] = setting("W&B tags beside the algorithm's name", identity=False)
    init_timeout: float = setting("seconds to wait for the W&B server before going on offline", above=0, identity=False)
