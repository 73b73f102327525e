"""The algorithms: one module each, one pure loss each, and this table.

| name | module | loss | KL control |
| --- | --- | --- | --- |
| apa | apa.py | squared distance to log pi_init + A / lambda | lambda |
| ppo | ppo.py | clipped ratio | penalty in the reward, fixed or adaptive |
| awr | awr.py | weighted cross entropy | lambda, through the weights |
| ilql | ilql.py | TD, expectile, CQL and cross entropy of Q and V heads | beta of its sampler |

ILQL learns values in place of advantages and has an update of its own (rlhf/ilql_update.py): it is not in `ALGORITHMS`.

To add one: a dataclass in rlhf/config/algo.py, conf/algo/<name>.yaml, a module here, a line in `ALGORITHMS`, a
hand-worked case in tests/algorithms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rlhf.algorithms.apa import apa
from rlhf.algorithms.awr import awr
from rlhf.algorithms.ppo import ppo
from rlhf.batches import LossOutput, TrainingBatch

PolicyLoss = Callable[[TrainingBatch, Tensor, Any, Tensor], LossOutput]
"""(micro-batch, fresh logprobs (B, T), the algorithm's config, valid tokens of the minibatch ()) -> LossOutput."""

ALGORITHMS: dict[str, PolicyLoss] = {"apa": apa, "ppo": ppo, "awr": awr}
