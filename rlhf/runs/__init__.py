"""The folder of one run: what its files are called and hold, who may write them, and how a run goes on from them.

| module | what |
| --- | --- |
| state | the files' names, and how a run stands by them |
| lock | lock.json: one process per folder |
| folder | `RunFolder`, through which the run at work writes everything |
| checkpoint | checkpoints/, whole or not at all |
| mirror | the rows of metrics.jsonl on W&B |
| provenance | which machine and which versions did a run |

state and lock import no torch: launchers, displays and the analysis ask them.
"""
