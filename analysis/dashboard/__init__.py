"""A sweep's W&B workspace: `python -m analysis dashboard runs/<sweep>`."""

from analysis.dashboard.command import add_arguments, run

__all__ = ["add_arguments", "run"]
