"""`stage=chat policy=runs/.../final`: the run's own config in place of the options that would be typed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import ConfigError, build_config
from rlhf.config.identity import CONFIG_FILE, input_runs, run_folder
from rlhf.config.packages import MODEL_FILES
from rlhf.errors import reason
from rlhf.runs.state import FINAL, finished
from rlhf.terminal import say
from sweeps.command_line import quoted

SECTIONS = ("algo", "dataset", "model", "rollout", "sft", "cache_dir")
"""What a run's config is asked for; the machine is this one."""
GROUP, NAME = "run_of_policy", "run"
ALONE = {
    "dataset.max_total_length": "1024",
    "dataset.max_new_tokens": "256",
    "dataset.stop_strings": "[]",
    "dataset.template": "auto",
}
"""Of a policy that no run's config lies beside."""


def chat_overrides(overrides: Sequence[str], multirun: bool) -> tuple[list[str], list[str]]:
    """(overrides, what to add to them once they have been checked); of any other stage they stay as they are.

    Raises:
        ConfigError: the policy, or what lies beside it, is none.
    """
    typed = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    if multirun and "chat" in typed.get("stage", "").split(","):
        raise ConfigError(["stage=chat: talks to one policy; leave -m out"])
    if typed.get("stage") != "chat":
        return list(overrides), []
    kept = [f"evaluation.{override}" if override.startswith("policy=") else override for override in overrides]
    policy = (typed.get("policy") or typed.get("evaluation.policy") or "").strip("\"'")
    if not policy:
        return kept, []
    folder = Path(policy).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in MODEL_FILES):
        final = folder / FINAL
        remedy = f"give {final}" if final.is_dir() else "give the final/ of a run, or a folder in save_pretrained form"
        raise ConfigError([f"policy: {folder} has no {MODEL_FILES[0]}; {remedy}"])
    file = folder.parent / CONFIG_FILE
    if folder.is_dir() and folder.resolve().name == FINAL and file.is_file():
        return kept, _of_run(_read(file), file, policy, typed)
    if not folder.is_dir() and (policy.count("/") != 1 or policy.startswith((".", "~", "/"))):
        raise ConfigError([f"policy: {policy} does not exist; give a folder, or a hub name as owner/name"])
    if "model" in typed:
        return kept, []
    lengths = [] if "dataset" in typed else [f"{key}={value}" for key, value in ALONE.items() if key not in typed]
    return kept, ["model=hub", f"model.path={quoted(policy)}", "model.sft=false", *lengths]


def _of_run(mapping: Mapping[str, Any], file: Path, policy: str, typed: Mapping[str, str]) -> list[str]:
    from hydra.core.config_store import ConfigStore

    if across := [group for group in ("experiment", "debug", "+sweep") if group in typed]:
        raise ConfigError([f"{group}: {file} has the settings of stage=chat; leave it out" for group in across])
    node = {section: mapping[section] for section in SECTIONS if section in mapping and section not in typed}
    if "model" in node:
        node["model"] = {**node["model"], **_initial_policy(mapping, policy)}
    ConfigStore.instance().store(group=GROUP, name=NAME, node=node, package="_global_")
    algo = (mapping.get("algo") or {}).get("name")
    chosen = [f"algo={algo}"] if algo in ALGO_CONFIGS and "algo" not in typed else []
    return [*chosen, "~tuned@_global_", "~tuned", f"+{GROUP}={NAME}"]


def _initial_policy(mapping: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """The settings of `model` that name what the run began with; the policy itself where that is not there any more."""
    try:
        needs = [need for need in input_runs(build_config(dict(mapping))) if need.stage.name == "sft"]
        why = f"{run_folder(needs[0])} is not finished" if needs and finished(needs[0]) is None else ""
    except ConfigError:
        needs, why = [], "the run is of another version of this program"
    if why:
        say(f"the initial policy is not found ({why}): the trained one's answers alone")
    elif not needs:
        return {}
    path = policy if why else str(run_folder(needs[0]) / FINAL)
    return {"name": "policy", "source": "pretrained", "path": path, "tokenizer": None, "sft": False}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"policy: {file} cannot be read ({reason(error)})"]) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ConfigError([f"policy: {file} is no config of a run; move it away to talk to the policy alone"])
    return content
