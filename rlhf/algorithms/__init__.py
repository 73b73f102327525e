"""The algorithms: one class and one module each, and this table.

| name | module | loss | KL control |
| --- | --- | --- | --- |
| apa | apa.py | squared distance to log pi_init + A / lambda | lambda |
| ppo | ppo.py | clipped ratio | penalty in the reward, fixed or adaptive |
| awr | awr.py | weighted cross entropy | lambda, through the weights |
| rloo | rloo.py | clipped ratio of whole responses, the group's others as baseline | penalty in the reward |
| grpo | grpo.py | clipped ratio of tokens, the group's mean as baseline | penalty in the loss or in the reward |
| p3o | p3o.py | policy gradient of pairs, the joint ratio as weight | penalty in the reward |
| its nine presets | regression.py | squared distance of log-ratios to A / lambda | lambda |
| dar | dar.py | weighted cross entropy of whole responses | lambda, through the weights |
| dpo, ipo | dpo.py | logistic or squared, of pairs | lambda |
| custom | custom.py | of a class outside this project | its own |
| ilql | ilql.py | TD, expectile, CQL and cross entropy of Q and V heads | beta of its sampler |
"""

from __future__ import annotations

from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.apa import APA
from rlhf.algorithms.awr import AWR
from rlhf.algorithms.custom import checked_class
from rlhf.algorithms.dar import DAR
from rlhf.algorithms.dpo import DPO, IPO
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.ilql import ILQL
from rlhf.algorithms.p3o import P3O
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.regression import Regression
from rlhf.algorithms.rloo import RLOO
from rlhf.config import RunConfig
from rlhf.config.algo import REGRESSIONS

__all__ = ["ALGORITHMS", "Algorithm", "algorithm_of"]

ALGORITHMS: dict[str, type[Algorithm]] = {
    "apa": APA,
    "ppo": PPO,
    "awr": AWR,
    "ilql": ILQL,
    "rloo": RLOO,
    "grpo": GRPO,
    "p3o": P3O,
    **dict.fromkeys(REGRESSIONS, Regression),
    "dar": DAR,
    "dpo": DPO,
    "ipo": IPO,
}


def algorithm_of(config: RunConfig) -> Algorithm:
    """The run's algorithm, without heads."""
    algo = config.algo
    kind = ALGORITHMS.get(algo.name) or checked_class(getattr(algo, "loss"))  # noqa: B009  # of what it is not, has none
    return kind(algo, config.advantages)
