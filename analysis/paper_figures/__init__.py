"""`python -m analysis figure N FOLDER ...`: a figure of the paper, drawn from run folders.

`table.py` says what each figure shows; the data path is

    folders (the runs of all folders, each once) -> contents (rows, lines, gaps) -> drawing -> command (files, caption)
"""

from analysis.paper_figures.command import add_arguments, run

__all__ = ["add_arguments", "run"]
