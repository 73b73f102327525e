"""Cutting a decoder in two: a frozen trunk whose hidden states are computed once, and the last k blocks.

Both halves are the architecture's own base model with fewer blocks, so any decoder that takes `inputs_embeds` works.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.models.families import BLOCKS, EMBEDDING_NORM, FINAL_NORM, LEARNED_POSITIONS
from rlhf.models.hub import ModelError
from rlhf.models.layers import with_modules

KINDS = ("layer_types", "attention_layers")
"""What configs call the list of what each block's attention sees: Qwen, Mistral; GPT-Neo."""


class _NoPositions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros(*positions.shape, self.width, device=positions.device)


def attribute(base: nn.Module, names: tuple[str, ...], needed_by: str = "", remedy: str = "") -> str:
    """The one of `names` that this architecture uses.

    Args:
        needed_by: the option that needs it, with its value; by default what has asked already.
        remedy: what to do without it.

    Raises:
        ModelError: none of them; the architecture is not known here.
    """
    for name in names:
        if hasattr(base, name):
            return name
    raise ModelError(
        f"{needed_by}: {type(base).__name__} keeps its blocks or last norm elsewhere than in {', '.join(names)}; "
        f"{remedy}"
    )


def split(base: nn.Module, last_k: int, option: str = "model.train") -> tuple[nn.Module, nn.Module]:
    """The base model (no language head) as (trunk, top): top(inputs_embeds=trunk(ids)) equals base(ids) to the bit.

    Args:
        last_k: blocks in the top. The top holds the final norm, the trunk the embeddings; no tensor is copied.
        option: the section of the config that asks for it, as "model.train".

    Raises:
        ModelError: more blocks than there are, or an architecture that is not known here.
    """
    asked = f"{option}.mode=last_k", "use mode all or lora"
    blocks_name, norm_name = attribute(base, BLOCKS, *asked), attribute(base, FINAL_NORM, *asked)
    blocks = list(getattr(base, blocks_name))
    if not 0 < last_k <= len(blocks):
        raise ModelError(f"{option}.last_k: {last_k}, but the model has {len(blocks)} blocks; make it that or less")
    cut = len(blocks) - last_k
    trunk: Any = with_modules(base, **{blocks_name: nn.ModuleList(blocks[:cut]), norm_name: nn.Identity()})
    above: dict[str, nn.Module] = {blocks_name: nn.ModuleList(blocks[cut:])}
    if hasattr(base, LEARNED_POSITIONS):
        above[LEARNED_POSITIONS] = _NoPositions(getattr(base, LEARNED_POSITIONS).embedding_dim)
    if hasattr(base, EMBEDDING_NORM):
        above[EMBEDDING_NORM] = nn.Identity()
    top: Any = with_modules(base, **above)
    for name in KINDS:  # a block's mask is looked up by its place in the list
        kinds: Any = getattr(base.config, name, None)
        if kinds is None:
            continue
        for half, part in ((trunk, kinds[:cut]), (top, kinds[cut:])):
            half.config = copy.copy(half.config)
            try:
                setattr(half.config, name, part)
            except AttributeError as error:  # Mamba works them out
                raise _uncut(base, option) from error
            half.config.num_hidden_layers = len(part)
    return trunk, top


@torch.no_grad()
def check_split(base: nn.Module, trunk: nn.Module, top: nn.Module) -> None:
    """Run one short text both ways.

    Raises:
        ModelError: the halves are not the whole, as where a model scales `inputs_embeds` (Granite).
    """
    ids = torch.arange(1, 9, device=next(base.parameters()).device).unsqueeze(0)
    expected = base(input_ids=ids, use_cache=False).last_hidden_state
    halves = top(inputs_embeds=trunk(input_ids=ids, use_cache=False).last_hidden_state, use_cache=False)
    if not torch.equal(expected, halves.last_hidden_state):
        raise _uncut(base, "model.train")


def _uncut(base: nn.Module, option: str) -> ModelError:
    return ModelError(f"{option}.mode=last_k: {type(base).__name__} cannot be cut at a block; use mode all or lora")


def top_parameters(top: nn.Module) -> list[nn.Parameter]:
    """What mode last_k trains: the top's blocks and the final norm; not the embeddings, which it shares."""
    modules = (getattr(top, attribute(top, BLOCKS)), getattr(top, attribute(top, FINAL_NORM)))
    return [parameter for module in modules for parameter in module.parameters()]


def copy_top(top: nn.Module) -> nn.Module:
    """A top with blocks and norm of its own; embeddings, unused here, stay shared."""
    names = attribute(top, BLOCKS), attribute(top, FINAL_NORM)
    return with_modules(top, **{name: copy.deepcopy(getattr(top, name)) for name in names})


def joined(model: PreTrainedModel, trunk: nn.Module, top: nn.Module) -> PreTrainedModel:
    """The whole causal model with `top` in place of its last blocks and norm, for sampling and saving."""
    blocks_name, norm_name = attribute(trunk, BLOCKS), attribute(trunk, FINAL_NORM)
    blocks = nn.ModuleList([*getattr(trunk, blocks_name), *getattr(top, blocks_name)])
    base = with_modules(model.base_model, **{blocks_name: blocks, norm_name: getattr(top, norm_name)})
    policy = with_modules(model, **{model.base_model_prefix: base})
    assert isinstance(policy, PreTrainedModel)
    return policy
