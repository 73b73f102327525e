"""Optuna studies of a sweep: what is searched, where it is kept, how trials are asked, run, pruned and told."""
