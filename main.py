"""The command line: `python main.py algo=ppo seed=3`, or `-m algo=apa,ppo,awr seed=0,100` for many runs.

Nothing heavy is imported here: --help answers at once, and each child process of a sweep imports this file again.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent
CONF = ROOT / "conf"


def run(config: DictConfig) -> None:
    """One run: in this process, or as a SLURM job."""
    from hydra.core.hydra_config import HydraConfig

    from sweeps.single import run_chat, run_single
    from sweeps.sources import composed_run

    try:
        checked = composed_run(config, HydraConfig.get())
        if checked.stage.name == "chat":
            run_chat(checked)
        elif checked.hardware.slurm is None:
            run_single(checked)
        else:
            from sweeps.experiment import run_experiment

            run_experiment([checked])
    except Exception as error:
        _leave(error)  # from here, or Hydra would add lines of its own


def main() -> None:
    """Compose, check and run; the user's mistakes end in one line each and exit code 2, a failed run in 1."""
    try:
        _hydra(sys.argv[1:])
    except BrokenPipeError:  # of whoever read the help
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        _leave(error)


def _hydra(arguments: list[str]) -> None:
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from rlhf.config.build import ConfigError
    from sweeps.chat import chat_overrides
    from sweeps.command_line import (
        MULTIRUN,
        as_typed,
        config_folders,
        flags_first,
        refuse_unknown,
        store_sweep_files,
        with_own_settings,
        without_null_groups,
    )
    from sweeps.sources import composition_problem
    from sweeps.usage import asked_for_help, usage

    if (asked := asked_for_help(arguments)) is not None:
        sys.stdout.write(f"{usage(CONF, asked)}\n")
        return
    # Hydra finds the sweeper in the namespace package hydra_plugins, a part of which lies here.
    sys.path.append(str(ROOT / "sweeps" / "plugin"))
    # Hydra's own reports have tracebacks; errors come to main() instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags, overrides = flags_first(arguments)
    store_sweep_files(overrides)
    folders = config_folders(flags, overrides, CONF)
    multirun = any(flag in MULTIRUN for flag in flags)
    overrides, of_chat = chat_overrides(overrides, multirun)
    overrides = as_typed(without_null_groups(overrides, folders), OverridesParser.create(), multirun)
    shows_config = any(flag == "-c" or flag.startswith("--cfg") for flag in flags)
    refuse_unknown(overrides, folders, multirun, shows_config)
    sys.argv[1:] = [*flags, *with_own_settings(overrides, folders), *of_chat]
    old = tuple(int(part) for part in hydra.__version__.split(".")[:2]) < (1, 4)
    version: dict[str, Any] = {"version_base": "1.3"} if old else {}  # 1.3 warns without it, 1.4 with it
    try:
        hydra.main(config_path=str(CONF), config_name="config", **version)(run)()
    except HydraException as error:
        raise ConfigError([composition_problem(error, overrides)]) from error


def _leave(error: BaseException) -> NoReturn:
    from sweeps.runs import interrupted

    if interrupted(error):  # before a run listens, or by the second Ctrl-C: the first asks the run to checkpoint
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        sys.exit(130)
    assert isinstance(error, Exception)
    code = _exit_code(error)
    if os.environ.get("RLHF_TRACEBACK") == "1" and code != 130:
        from rlhf.terminal import complain

        complain("".join(traceback.format_exception(error)))
    sys.exit(code)


def _exit_code(error: Exception) -> int:
    """Say what is wrong; 2 for what the user can mend by typing something else, 1 for what went wrong in a run."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rlhf.config.build import ConfigError
    from rlhf.errors import UserError, one_line
    from rlhf.terminal import complain
    from sweeps.runs import Stopped

    if isinstance(error, Stopped):
        return error.exit_code
    if isinstance(error, ConfigError):
        for problem in error.problems:
            complain(f"config error: {problem}")
        return 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        complain(f"config error: {' '.join(str(error).split())}")
        return 2
    label, code = (error.label, error.exit_code) if isinstance(error, UserError) else ("failed", 1)
    hint = " (RLHF_TRACEBACK=1 shows where)" if code == 1 else ""
    complain(f"{label}: {one_line(error)}{hint}")
    return code


if __name__ == "__main__":
    main()
