"""The algorithms: one class and one module each, and this table.

| name | module | loss | KL control |
| --- | --- | --- | --- |
| apa | apa.py | squared distance to log pi_init + A / lambda | lambda |
| ppo | ppo.py | clipped ratio | penalty in the reward, fixed or adaptive |
| awr | awr.py | weighted cross entropy | lambda, through the weights |
| rloo | rloo.py | clipped ratio of whole responses, the group's others as baseline | penalty in the reward |
| custom | custom.py | of a class outside this project | its own |
| ilql | ilql.py | TD, expectile, CQL and cross entropy of Q and V heads | beta of its sampler |
"""

from __future__ import annotations

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.apa import APA
from rlhf.algorithms.awr import AWR
from rlhf.algorithms.custom import checked_class
from rlhf.algorithms.ilql import ILQL
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.rloo import RLOO
from rlhf.config import RunConfig

__all__ = ["ALGORITHMS", "Algorithm", "algorithm_of"]

ALGORITHMS: dict[str, type[Algorithm]] = {"apa": APA, "ppo": PPO, "awr": AWR, "ilql": ILQL, "rloo": RLOO}


def algorithm_of(config: RunConfig) -> Algorithm:
    """The run's algorithm, without heads."""
    algo = config.algo
    kind = ALGORITHMS.get(algo.name) or checked_class(getattr(algo, "loss"))  # noqa: B009  # of what it is not, has none
    return kind(algo, config.advantages)
