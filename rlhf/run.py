"""One run in this process: the runs it starts from, then its own stage in its folder, and how it ended."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from rich.console import Console

from rlhf.config import SCORING_STAGES, RunConfig
from rlhf.config.identity import INPUTS, code_has_changed, input_runs, run_folder, run_id
from rlhf.config.user_code import passed_through, where_it_failed
from rlhf.distributed import RankFailed, count, on_first_rank
from rlhf.errors import UserError
from rlhf.files import file_error
from rlhf.finite import check_metrics
from rlhf.precision import without_cudnn_attention
from rlhf.random import compute_the_same_again
from rlhf.ranks import joined, root_failure, start_ranks
from rlhf.runs.folder import RunFolder
from rlhf.runs.lock import LockError
from rlhf.runs.provenance import peak_memory, provenance
from rlhf.runs.state import FINAL, finished, keep_reference_samples
from rlhf.scorers import check_reward
from rlhf.stages import STAGES
from rlhf.stages.context import RunContext
from rlhf.waiting import Interrupted, StoppedWaiting, stopped_by_signals


class RunError(UserError, RuntimeError):
    """A run that cannot begin here; the message is one line that says what to do."""


def execute(config: RunConfig) -> dict[str, Any]:
    """Do the run, after the runs it starts from; skip what is finished, go on where a checkpoint is.

    SIGINT, SIGTERM and SIGUSR2 let the iteration at work end, checkpoint and return status "interrupted". A run of
    several ranks is done by as many processes: this one is one of them where torchrun's variables say so, and starts
    them otherwise.

    Returns:
        The run's summary: `status`, the last eval/*, seconds, memory, versions.

    Raises:
        Exception: whatever stopped the stage, after it was written to summary.json with status "failed".
    """
    ranks, present = config.hardware.ranks, os.environ.get("WORLD_SIZE")
    if present is not None and int(present) != ranks:
        raise RunError(f"hardware.ranks: {ranks}, but WORLD_SIZE in the environment is {present}; make them equal")
    with stopped_by_signals():
        if ranks == 1:
            return _execute(config)
        if present is None:
            return finished(config) or start_ranks(config, execute)
        with joined(config):
            return _execute(config)


def chat(config: RunConfig, console: Console) -> None:
    """stage=chat: answer lines from stdin; an SFT stage that is not finished is not done for it.

    Raises:
        ModelError: a model cannot be loaded.
        RunError: there is neither a trained nor an initial policy.
    """
    from rlhf.stages.chat import talk

    _set_up_torch(config)
    sft, why = None, ""
    for needed in input_runs(config):
        sft = run_folder(needed) / FINAL
        if finished(needed) is None:
            why = f"{run_folder(needed)} is not finished"
            if config.evaluation.policy is None:
                raise RunError(f"policy: missing, and there is no initial one ({why}); give policy=runs/.../final")
    talk(config, sft, why, console)


def _execute(config: RunConfig, wait: bool = False) -> dict[str, Any]:
    """What `execute` says, in the ranks there are.

    Args:
        wait: for another process that does the same run, and take its result.
    """
    if changed := code_has_changed(config):
        raise RunError(changed)
    if (summary := on_first_rank(lambda: finished(config))) is not None:
        return summary
    inputs: dict[str, Path] = {}
    results: dict[str, dict[str, Any]] = {}
    for needed in input_runs(config):
        summary = _execute(needed, wait=True)
        if summary["status"] != "finished":
            return summary
        inputs[needed.stage.name] = run_folder(needed) / FINAL
        results[needed.stage.name] = {key: value for key, value in summary.items() if key.startswith("eval/")}
    if config.stage.name in SCORING_STAGES and config.reward.path is not None:
        inputs["reward_model"] = Path(config.reward.path)
    try:
        with RunFolder(run_folder(config), wait) as folder:
            # Whoever was waited for may have finished it.
            return on_first_rank(lambda: finished(config)) or _do_stage(config, folder, inputs, results)
    except Interrupted as stop:
        return {"status": "interrupted", "error": str(stop)}


def _do_stage(
    config: RunConfig, folder: RunFolder, inputs: Mapping[str, Path], results: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's stage, from its checkpoint where there is one; its summary, which holds the `results` of its inputs, is
    written however it ends."""
    _set_up_torch(config)  # before anything is deleted: it may refuse
    context = RunContext(config, folder, inputs)  # its clock starts
    made_by = provenance() | ({"inputs": dict(results)} if results else {})

    def summary(status: str) -> dict[str, Any]:
        ended = {"wall_seconds": context.seconds(), **peak_memory(context.device), "finished_at": time.time()}
        return {"status": status, "run_id": run_id(config), **ended, **made_by}

    try:
        try:
            context.begin()
            if config.sweep_name == INPUTS and config.stage.name in ("sft", "reward_model"):
                check_reward(config)  # of the run that this one is made for
            if (scores := inputs.get("reference_samples")) is not None:
                sweep = folder.path.parent
                made_by["reference_samples"] = on_first_rank(lambda: keep_reference_samples(sweep, scores))
            metrics = STAGES[config.stage.name](context)
            check_metrics(metrics, "a smaller learning rate")
            result = summary("finished") | metrics
        except Interrupted as stop:
            if isinstance(stop, StoppedWaiting) and count() > 1:
                # The others may not wait, and go on to where this one never comes.
                raise RankFailed(str(stop)) from stop
            result = summary("interrupted") | {"error": str(stop)}
        folder.write_summary(result)
    except BaseException as raised:
        error = _in_users_code(config, root_failure(raised))
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        result = summary(status) | {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(OSError, LockError):  # a full disk must not hide the error itself
            folder.write_summary(result)
        folder.close_mirrors(result)
        if isinstance(error, OSError) and not isinstance(error, UserError):
            place = Path(error.filename) if isinstance(error.filename, str) else folder.path
            raise file_error(error, place, "go on") from error
        if error is not raised:
            raise error from raised
        raise
    folder.close_mirrors(result)
    return result


def _in_users_code(config: RunConfig, error: BaseException) -> BaseException:
    """The line for what the class of algo.loss raised; any other error as it is."""
    spec = getattr(config.algo, "loss", None)
    meant_for_users = isinstance(error, UserError | Interrupted | RankFailed) or not isinstance(error, Exception)
    if spec is None or meant_for_users or not passed_through(error, spec):
        return error
    return where_it_failed(error, spec, "algo.loss")


def _set_up_torch(config: RunConfig) -> None:
    if config.hardware.device == "cuda" and not torch.cuda.is_available():
        raise RunError("hardware.device: cuda, but torch finds no CUDA device here; use hardware=cpu")
    if config.hardware.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of an input run in this process
    torch.set_num_threads(config.hardware.threads)
    compute_the_same_again(config.hardware.device == "cpu")
    without_cudnn_attention()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # its retries; what failed at last is said in one line
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.* is deprecated", FutureWarning)  # peft asks for it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
