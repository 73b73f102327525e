"""reward=hh_gptj and tldr_gptj: the paper's reward models, released as bare state dicts of GPT-J and a linear head.

| | Dahoas/gptj-rm-static | CarperAI/openai_summarize_tldr_rm_checkpoint |
| --- | --- | --- |
| file | hf_ckpt.pt | pytorch_model.bin |
| keys | `transformer.*`, `v_head.weight` (1, d) | the same |
| tokenizer | GPT-2's | GPT-J's |
| text | text, <|endoftext|> | <|startoftext|> (no special token), text, <|endoftext|> |
| score at | that <|endoftext|> | the token before it |

The released code looks for the first <|endoftext|> in the tokens. Here the place is counted from the end, so that a
response which spells the token out is still scored whole. Texts that are too long lose their beginning; the released
code for the second loses their end.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from rlhf.config import RunConfig
from rlhf.data.examples import TextData
from rlhf.errors import reason
from rlhf.finite import check_loaded
from rlhf.models.hub import ModelError, OwnCode, few_of, loading, remedy
from rlhf.models.reward_model import DTYPES, check_head, classifier_class
from rlhf.scorers.classifier import TextClassifier

HEAD = "v_head.weight"

# Masks and tables that older versions of transformers saved and that are worked out today.
_BUFFERS = re.compile(r"\.attn\.(attention\.)?(bias|masked_bias|embed_positions)$|\.rotary_emb\.inv_freq$")


def load_hh_gptj(
    config: RunConfig, _: Path | None, device: torch.device, _data: TextData, *, read_before_suffix: bool = False
) -> TextClassifier:
    """Scored at the suffix's last token."""
    reward = config.reward
    assert reward.path is not None and reward.checkpoint_file is not None and reward.base is not None, "checked"
    file = checkpoint_path(reward.path, reward.checkpoint_file)
    model = fill(reward.base, read_tensors(file), reward.precision, file)
    return TextClassifier(config, model, device, read_before_suffix=read_before_suffix)


load_tldr_gptj = partial(load_hh_gptj, read_before_suffix=True)
"""Scored at the last token before the suffix, as this one was trained."""


def checkpoint_path(path: str, name: str) -> Path:
    """The file `name` of a folder or of a hub repository, from where it is fetched once."""
    if Path(path).is_dir():
        if not (Path(path) / name).is_file():
            raise ModelError(f"reward.checkpoint_file: there is no {name} in {path}")
        return Path(path) / name
    if Path(path).is_file():
        raise ModelError(f"reward.path: {path} is a file; give its folder, and its name as reward.checkpoint_file")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, name))
    except Exception as error:  # whatever the hub client raises: no such name, no network, no room
        raise ModelError(
            f"reward.path: cannot fetch {name} of {path} from the hub ({reason(error)}); {remedy(error, path)}"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A state dict without its buffers, mapped from the disk where its format allows that. No pickle is run."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever torch raises on damaged files and on other objects than tensors
        raise ModelError(
            f"reward.checkpoint_file: cannot read {file} ({reason(error)}); copy it again, whole"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"reward.checkpoint_file: {file} is no bare state dict, names of tensors alone")
    return {name: tensor for name, tensor in state.items() if not _BUFFERS.search(name)}


def fill(base: str, tensors: dict[str, Tensor], precision: str, file: Path) -> PreTrainedModel:
    """The architecture at `base` with a linear head, made of `tensors` one by one; its own weights are never read.

    Args:
        tensors: names as in the file, of which `file` is the name in errors.
    """
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    with loading("reward.base", base, "the config of ", OwnCode(option="")):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.num_labels = 1
    kind = classifier_class(config, precision)
    with torch.device("meta"):
        expected = kind(config).state_dict()
    tensors = {"score.weight" if name == HEAD else name: tensor for name, tensor in tensors.items()}
    other = {name for name in set(tensors) & set(expected) if tensors[name].shape != expected[name].shape}
    wrong = {
        "lacks {}": expected.keys() - tensors.keys(),
        "has {} too many": tensors.keys() - expected.keys(),
        "has other shapes in {}": other,
    }
    problems = [what.format(few_of(names).replace("score.weight", HEAD)) for what, names in wrong.items() if names]
    if problems:
        raise ModelError(
            f"reward.checkpoint_file: {file} {', '.join(problems)} for reward.base {base}; give its own base"
        )
    model = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=DTYPES[precision])
    check_head(model)
    check_loaded(dict(model.named_parameters()), file, "reward.checkpoint_file")
    return model.eval().requires_grad_(False)
