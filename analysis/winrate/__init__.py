"""Judged pairwise comparisons, as in figure 1 of the APA paper: responses of two models and a reference answer in,
win rates with intervals out. `python -m analysis winrate` is `command.py`; the data path is

    matching -> chat (prompt, asking) or scores -> results -> output
"""
