"""Policy, frozen reference and value network, as far as they share tensors.

Three training modes, one interface. Whatever is frozen and shared is computed once per rollout as `Features`; the
three networks go on from there.

| mode | shared and frozen | policy | reference | value network |
| --- | --- | --- | --- | --- |
| all | nothing | the model | a frozen copy | a copy with a head |
| last_k | embeddings, lower blocks | own last blocks | the original last blocks | own last blocks, head |
| lora | the base | adapter "policy" | adapters off | adapter "value", head |

The language head is frozen and shared in last_k and lora. What is trained is float32; what is frozen may lie in memory
in fewer bits (`layers`).
"""

from rlhf.models.features import Features, positions_of
from rlhf.models.modes import build_models
from rlhf.models.policy import PolicyModels

__all__ = ["Features", "PolicyModels", "build_models", "positions_of"]
