"""What did the runs show?

`python -m analysis report|compare|suite|frontier|figure|winrate|dashboard|kl-check ...`; each with --help.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

# name: (module with add_arguments(parser) and run(options) -> exit code, what it does).
COMMANDS = {
    "report": ("analysis.report", "tables, figures and one HTML page of a sweep, written into its folder"),
    "compare": ("analysis.versus", "runs or sweeps against one another at equal KL"),
    "figure": ("analysis.paper_figures.command", "a figure in the paper's form, 1 to 9"),
    "winrate": ("analysis.winrate.command", "responses of two models judged pair by pair, as figure 1"),
    "suite": ("analysis.suite", "algorithms over several tasks, as shares of what is possible"),
    "frontier": ("analysis.frontier", "reward over KL of any trainer's runs, from CSV, JSON lines or W&B's exports"),
    "kl-check": ("analysis.kl_check", "whether the KL that another trainer reports is what it says"),
    "dashboard": ("analysis.dashboard", "a W&B workspace of a sweep, and its curves averaged over seeds"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 2 for a folder, file or option that cannot be (as argparse for a bad command).

    130 where it was interrupted, 141 where nobody reads what it prints: what a shell expects of a program.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a table's arrows shows question marks
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m analysis", description="What did the runs show?")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in arguments[:1]:  # the others need not be imported
            importlib.import_module(module).add_arguments(command)
    options = parser.parse_args(arguments)
    from analysis.errors import AnalysisError
    from rlhf.terminal import complain

    try:
        code = importlib.import_module(COMMANDS[options.command][0]).run(options)
        sys.stdout.flush()
        return code
    except AnalysisError as error:
        complain(f"analysis: {error}")
        return 2
    except BrokenPipeError:
        # What is still buffered would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        said = f"{error.filename}: {error.strerror}" if named else " ".join(str(error).split())
        complain(f"analysis: {said or type(error).__name__}")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
