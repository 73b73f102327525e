"""Where studies are kept, and the check that a study found there is the one that was asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from rlhf.config.build import ConfigError
from rlhf.config.identity import REVISION, fingerprint, sweep_folder
from rlhf.errors import reason
from rlhf.files import file_errors, write_whole
from rlhf.runs.state import SUMMARY, read_summary
from rlhf.waiting import acquired
from sweeps.settings import StudySettings
from sweeps.study_spec import OBJECTIVES, StudySpec

JOURNAL = "study.journal"
DEFINITION = "definition"
FROM_ENVIRONMENT = "env:"
"""Before the name of the variable that holds a database URL."""

# After which a lock on the journal, held for milliseconds, is one that a killed process left: of this folder's one
# driver, or of one among several.
OWN_LOCK_SECONDS, SHARED_LOCK_SECONDS = 3, 10

MOST_DIFFERENCES = 3
"""Named in the line that refuses another study."""


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Two commands at work on one study would take each other's trials for left-overs.

    Raises:
        ConfigError: another command has this folder.
    """
    with file_errors(folder, "make it"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "study.lock")
    if not acquired(lock, timeout=0):
        line = f"sweep_name: another command is at work on the studies of {folder}; wait for it, or choose another"
        raise ConfigError([line])
    try:
        yield
    finally:
        lock.release()


def owner_of(folder: Path) -> str:
    """Drivers of this folder, whatever machine they are on: a shared database says by this whose a trial is."""
    file = folder / "study.owner"
    if not (file.is_file() and file.read_text()):
        write_whole(file, uuid.uuid4().hex)
    return file.read_text()


def open_storage(settings: StudySettings, folder: Path) -> BaseStorage:
    """Raises: ConfigError: the database cannot be reached, or the journal not be read."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = ""
    try:
        if url := _database_url(settings.storage or ""):
            try:
                return RDBStorage(url)
            except Exception:  # of two drivers that make its tables at the same time one finds them a moment later
                time.sleep(1.0)
                return RDBStorage(url)
        # Resolved: Optuna's lock on a relative path cannot be broken after a kill, and waits for ever.
        path = (folder / JOURNAL if settings.storage is None else Path(settings.storage).expanduser()).resolve()
        path.parent.mkdir(exist_ok=True)  # not its parents: they may be misspelt
        seconds = OWN_LOCK_SECONDS if settings.storage is None else SHARED_LOCK_SECONDS
        lock = JournalFileSymlinkLock(str(path), grace_period=seconds)
        return JournalStorage(_Journal(path, lock))
    except ConfigError:
        raise
    except Exception as error:  # of SQLAlchemy, a database's driver, the file system
        said = reason(error)  # in which a driver may say the URL again
        password = urlsplit(url).password or ""
        for secret in {url, password, unquote(password)} - {""}:
            said = said.replace(secret, "***")
        raise ConfigError([f"hydra.sweeper.storage: {said}"]) from None


class _Journal(JournalFileBackend):
    """Says which file an error of the file system is about, and drops what a full disk or a power cut left of the last
    line, to which the next one would be glued."""

    def __init__(self, path: Path, lock: JournalFileSymlinkLock) -> None:
        super().__init__(str(path), lock)
        self._path = path
        if not path.is_file():
            return
        lock.acquire()
        try:
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
        finally:
            lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with file_errors(self._path, "append to it"):
            super().append_logs(logs)


def _database_url(storage: str) -> str:
    """Empty where the study is a file.

    Raises:
        ConfigError: the environment has no such variable.
    """
    if not storage.startswith(FROM_ENVIRONMENT):
        return storage if "://" in storage else ""
    url = os.environ.get(storage.removeprefix(FROM_ENVIRONMENT), "")
    if "://" not in url:
        line = f"hydra.sweeper.storage: {storage}, but the environment has no database URL of that name"
        raise ConfigError([line])
    return url


def open_study(
    spec: StudySpec,
    settings: StudySettings,
    directions: Sequence[Literal["maximize", "minimize"]],
    storage: BaseStorage,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """The study of `spec`, made where there is none, afresh where the config says overwrite=true.

    Raises:
        ConfigError: one of that name is there and searches something else.
    """
    run = spec.middle[0]
    if run.overwrite and spec.name in optuna.get_all_study_names(storage):
        if settings.storage is not None:
            line = "overwrite: true would delete a study that others may share; choose another sweep_name"
            raise ConfigError([line])
        # Or a new trial with the values of an old one would count as pruned, once the command no longer overwrites.
        for trial in optuna.load_study(study_name=spec.name, storage=storage).get_trials(deepcopy=False):
            for name in trial.user_attrs.get("runs", {}).values():
                if read_summary(sweep_folder(run) / name).get("status") == "pruned":
                    (sweep_folder(run) / name / SUMMARY).unlink()
        optuna.delete_study(study_name=spec.name, storage=storage)
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=directions,
        sampler=sampler,
        pruner=pruner,
        load_if_exists=True,
    )
    wanted = json.loads(json.dumps(_definition(spec, settings)))
    stored = study.user_attrs.get(DEFINITION)
    if stored is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(DEFINITION, wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(OBJECTIVES[settings.objective].values))  # optuna-dashboard shows them
    elif stored != wanted:
        differing = ["it was not made by this command"] if stored is None else _differences(stored, wanted)
        more = f" and {len(differing) - MOST_DIFFERENCES} more" if len(differing) > MOST_DIFFERENCES else ""
        line = f"the study {spec.name} is another one: {'; '.join(differing[:MOST_DIFFERENCES])}{more}"
        raise ConfigError([f"sweep_name: {line}; choose another sweep_name, or overwrite=true starts afresh"])
    return study


def budget_of(spec: StudySpec, settings: StudySettings) -> float:
    """Nats."""
    return spec.middle[0].dataset.kl_budgets[0] if settings.kl_budget is None else float(settings.kl_budget)


def _definition(spec: StudySpec, settings: StudySettings) -> dict[str, Any]:
    """What trials must share to be compared; sampler, pruner and n_trials may change."""
    searched = {dimension.key: str(dimension) for dimension in spec.cell.dimensions}
    fixed = {key: value for key, value in _identifying(spec.middle[0]) if key not in (*searched, "seed")}
    return {
        "objective": settings.objective,
        "kl_budget": budget_of(spec, settings),
        "constraint": settings.constraint,
        "seeds": [run.seed for run in spec.middle],
        "revision of the code": REVISION,
        "space": searched,
        "settings": fixed,
    }


def _identifying(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options that are part of a run's identity."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata["identity"]:
            continue
        if dataclasses.is_dataclass(value):
            yield from _identifying(value, f"{prefix}{field.name}.")
        else:
            is_path = field.metadata["content"] and isinstance(value, str)
            yield f"{prefix}{field.name}", fingerprint(value) if is_path else value


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*wanted, *stored]):
        old, new = stored.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new)
        elif old != new:
            texts = [",".join(map(str, value)) if isinstance(value, list) else value for value in (old, new)]
            there, here = ("not" if text is None else text for text in texts)
            lines.append(f"{name} is {there} there and {here} here")
    return lines
