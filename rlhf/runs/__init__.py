"""The folder of one run: its files' names and states, its lock, its checkpoints, and `RunFolder`, which writes it.

state, lock and mirror import no torch: launchers, displays and the analysis ask them.
"""
