"""Rows of metrics.jsonl as TensorBoard's event files, written anew by each process: nothing is there twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import RunConfig
from rlhf.config.build import ConfigError, config_to_mapping
from rlhf.config.packages import TENSORBOARD
from rlhf.errors import reason

FOLDER = "tensorboard"

log = logging.getLogger(__name__)


class TensorboardMirror:
    """The event file of a run folder. A resumed run replaces it by one that begins with the rows there are.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        if problem := TENSORBOARD.missing_for("tensorboard"):
            raise ConfigError([problem])
        from torch.utils.tensorboard import SummaryWriter

        place = folder / FOLDER
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self._rows_written = 0
        self._started: float | None = None
        self._writer = SummaryWriter(str(place))
        text = yaml.safe_dump(config_to_mapping(config), sort_keys=False)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Write those of all rows so far that are not written yet, at their step and the run's own seconds."""
        try:
            for row in rows[self._rows_written :]:
                if self._started is None:
                    self._started = time.time() - float(rows[-1].get("seconds") or 0)
                at = self._started + float(row.get("seconds") or 0)
                for name, value in row.items():
                    if "/" in name and isinstance(value, int | float):
                        self._writer.add_scalar(name, value, row["step"], walltime=at)
            self._rows_written = len(rows)
            self._writer.flush()
        except Exception as error:  # a mirror never ends a run
            log.warning("TensorBoard: %s; metrics.jsonl has every row", reason(error))

    def finish(self, _: Mapping[str, Any]) -> None:
        try:
            self._writer.close()
        except Exception as error:  # likewise
            log.warning("TensorBoard: %s; metrics.jsonl has every row", reason(error))
