"""Rows of metrics.jsonl on W&B: online where one is logged in, offline otherwise, never a question asked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.config import RunConfig, TrackingConfig
from rlhf.config.build import config_to_mapping
from rlhf.errors import FileError, reason
from rlhf.files import read_json_object, write_whole

SENT = "wandb/sent.json"
"""How many rows W&B was given, so that a resumed run repeats none. What a kill -9 catches in W&B's own buffer is lost
there (seen offline: a handful of rows); metrics.jsonl has every row."""

AXES = {"train/*": "samples", "perf/*": "samples", "eval/kl": "samples", "eval/*": "samples", "eval/reward": "eval/kl"}
"""Training over responses generated, evaluation over KL: reward over KL is a panel of its own."""

log = logging.getLogger(__name__)


class WandbMirror:
    """One W&B run per run folder; a resumed run goes on under the same id, one that was emptied under another."""

    def __init__(self, config: RunConfig, folder: Path, times_emptied: int = 0) -> None:
        self.folder = folder
        try:
            self._rows_sent = rows_sent(folder)
        except FileError as error:
            log.warning("W&B: %s; it is sent all rows again", error)
            self._rows_sent = 0
        suffix = f"-g{times_emptied}" if times_emptied else ""
        self._run = open_wandb_run(
            config.tracking,
            folder,
            id=f"{config.sweep_name}-{folder.name}{suffix}",
            name=folder.name,
            group=config.sweep_name,
            job_type=config.stage.name,
            tags=[config.algo.name, config.dataset.name, config.model.name, *config.tracking.tags],
            config=config_to_mapping(config),
        )
        self._run.define_metric("samples", hidden=True)
        for metric, axis in AXES.items():
            self._run.define_metric(metric, step_metric=axis)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Send those of all rows so far that W&B has not got, with their explicit step.

        The count goes to disk first, so that no step is ever sent twice, whenever the process is killed.
        """
        unsent = rows[self._rows_sent :]
        if not unsent:
            return
        self._rows_sent = len(rows)
        try:
            write_whole(self.folder / SENT, json.dumps({"rows": self._rows_sent}))
            for row in unsent:
                self._run.log({key: value for key, value in row.items() if value is not None}, step=row["step"])
        except Exception as error:  # a mirror never ends a run
            log.warning("W&B: %s; metrics.jsonl has every row", error)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the W&B run with the numbers and texts of `summary`."""
        try:
            self._run.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})
            self._run.finish()
        except Exception as error:  # likewise
            log.warning("W&B: %s; summary.json has the outcome", error)


def open_wandb_run(tracking: TrackingConfig, folder: Path, **identity: Any) -> Any:
    """A W&B run whose files lie in folder/wandb: online where one is logged in and the server answers.

    Args:
        identity: id, name, group, job_type, tags, config of wandb.init.
    """
    import wandb

    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"project": tracking.project, "entity": tracking.entity, "dir": str(folder)}
    common |= {"resume": "allow", **identity}
    asked = "offline" if tracking.wandb == "offline" else os.environ.get("WANDB_MODE")
    mode: Any = asked or ("online" if _logged_in() else "offline")
    settings = quiet_settings(tracking.init_timeout)
    try:
        return wandb.init(**common, mode=mode, settings=settings)
    except Exception as error:  # whatever W&B raises: a mirror never ends a run
        log.warning("W&B cannot be reached (%s); this run goes on offline", reason(error))
        wandb.teardown()  # else the half-open run still owns the id
        return wandb.init(**common, mode="offline", settings=settings)


def quiet_settings(init_timeout: float) -> Any:
    """wandb.Settings: no output, no look at git or the code, and so many seconds of waiting for the server."""
    import wandb

    return wandb.Settings(
        init_timeout=init_timeout, silent=True, console="off", disable_git=True, disable_code=True
    )


def has_credentials() -> bool:
    """Whether W&B has credentials: in the environment, its settings files or netrc (`wandb login` writes there).

    Not by wandb.login(prompt=False), which asks the server for the user's name and writes a settings file.

    Raises:
        Exception: whatever W&B raises of a broken netrc or settings file.
    """
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb_setup.singleton().settings
    return bool(settings.api_key or settings.identity_token_file or read_netrc_auth(host=settings.base_url))


def rows_sent(folder: Path) -> int:
    """How many rows of a run folder W&B was given; FileError where the file that says so is damaged."""
    content = read_json_object(folder / SENT)
    rows = 0 if content is None else content.get("rows")
    if not isinstance(rows, int) or rows < 0:
        raise FileError(f"{folder / SENT}: holds no number of rows")
    return rows


def _logged_in() -> bool:
    try:
        return has_credentials()
    except Exception as error:  # a broken W&B installation or configuration is no reason to stop
        log.warning("W&B's credentials cannot be read (%s); this run is logged offline", error)
        return False
