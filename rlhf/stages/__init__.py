"""The stages, in the order in which a policy goes through them, and this table.

| name | in | out |
| --- | --- | --- |
| sft | demonstrations | the initial policy |
| reward_model | preference pairs, the initial policy | a score |
| reference_samples | held-out prompts, the initial policy, the score | scores of its responses |
| online | prompts, the initial policy, the score | the trained policy |
| offline | the pairs' answers, the initial policy, the score | the trained policy |
| evaluate | held-out prompts, any policy, the score | its reward and KL |
"""

from __future__ import annotations

from collections.abc import Callable

from rlhf.stages.context import RunContext
from rlhf.stages.evaluate import run_evaluate
from rlhf.stages.offline import run_offline
from rlhf.stages.online import run_online
from rlhf.stages.reference_samples import run_reference_samples
from rlhf.stages.reward_model import run_reward_model
from rlhf.stages.sft import run_sft

STAGES: dict[str, Callable[[RunContext], dict[str, float]]] = {
    "sft": run_sft,
    "reward_model": run_reward_model,
    "reference_samples": run_reference_samples,
    "online": run_online,
    "offline": run_offline,
    "evaluate": run_evaluate,
}
