"""Policy, frozen reference and value network, as far as they share tensors.

Three training modes, one interface. Whatever is frozen and shared is computed once per rollout as `Features`; the
three networks go on from there.

| mode | shared and frozen | policy | reference | value network |
| --- | --- | --- | --- | --- |
| all | nothing | the model | a frozen copy | a copy with a head |
| last_k | embeddings, lower blocks | own last blocks | the original last blocks | own last blocks, head |
| lora | the base | adapter "policy" | adapters off | adapter "value", head |

The language head is frozen and shared in last_k and lora. What is trained is float32; what is frozen may be held in
fewer bits (`held`).
"""

from __future__ import annotations

from transformers import PreTrainedModel

from rlhf.config import TrainableConfig, ValueConfig
from rlhf.models.base import PolicyModels
from rlhf.models.features import Features, positions_of
from rlhf.models.modes import AllParameters, LastBlocks, LoRA

__all__ = ["Features", "PolicyModels", "build_models", "positions_of"]

MODES: dict[str, type[PolicyModels]] = {"all": AllParameters, "last_k": LastBlocks, "lora": LoRA}


def build_models(
    model: PreTrainedModel,
    train: TrainableConfig,
    value: ValueConfig | None,
    *,
    temperature: float,
    precision: str,
    recompute: bool = False,
) -> PolicyModels:
    """The networks of one run from its initial policy. Seed torch before: heads and adapters are random.

    Args:
        value: of the value network; None: there is none.
        recompute: compute activations again in the backward pass (hardware.gradient_checkpointing).
    """
    return MODES[train.mode](model, train, value, temperature, precision, recompute)
