"""The lines of hardware.slurm.setup in a job script: one that fails ends the job, and is named."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from rlhf.errors import printable

SETUP_FAILED = "hardware.slurm.setup: "
"""What the line begins with that such a job leaves in its log."""

# bash runs this where a command of the script itself fails, not one inside a file that is sourced or a function, nor
# one that is tested (if, &&, ||). `set -e` would end sites' own scripts; 141 is a program whose reader had enough.
_ON_FAILURE = (
    'rlhf_status=$?; [ "$rlhf_status" -eq 141 ] || [ "${#BASH_SOURCE[@]}" -gt 1 ] || '
    f'{{ echo "{SETUP_FAILED}status $rlhf_status of: $(sed -n "${{LINENO}}p" "${{BASH_SOURCE[0]}}")" >&2; exit 1; }}'
)

# A pipe, and neither || nor >|.
_PIPE = re.compile(r"(?<![|>])\|(?!\|)")


def setup_problem(lines: Sequence[str]) -> str:
    """What bash would not understand in them; empty where there is nothing."""
    try:
        done = subprocess.run(["bash", "-n"], input="\n".join([*lines, ""]), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""  # no bash here says nothing about the nodes
    return "" if done.returncode == 0 else printable(re.sub(r"(?m)^bash: ", "", done.stderr))


def checked_setup(lines: Sequence[str]) -> list[str]:
    """The lines, and around them what ends the job where one fails."""
    if not lines:
        return []
    guarded = []
    # Between two lines of one command, or of a text that is given to one, nothing can be put.
    divided = any("<<" in line or line.endswith("\\") or "pipefail" in line for line in lines)
    for line in lines:
        pipes = not divided and _PIPE.search(line) is not None and not setup_problem([line])
        guarded += ["set -o pipefail", line, "set +o pipefail"] if pipes else [line]
    return [f"trap '{_ON_FAILURE}' ERR", *guarded, "trap - ERR"]


def setup_failure(log: Sequence[str]) -> str:
    """The line of the setup that ended a job, as the last lines of its log tell it; empty where none did."""
    for line in log[-3:]:
        if line.startswith(SETUP_FAILED):
            return f"{printable(line)} (append '|| true' where that does not matter)"
    return ""
