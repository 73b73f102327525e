"""`python -m analysis figure N FOLDER ...`: a figure of the paper, drawn from run folders.

`table.py` says what each figure shows; the data path is

    folders -> contents (the runs, each once; rows, lines, gaps) -> drawing -> command (files, caption)
"""
