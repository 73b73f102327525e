"""Sequence classifiers with one output: a folder or hub name, whole or an adapter, in the precision asked for."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import load_peft_weights
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from rlhf.errors import reason
from rlhf.finite import check_loaded
from rlhf.models.loading import ModelError, base_of_adapter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_classifier(path: str | Path, precision: str = "fp32", base: str | None = None) -> PreTrainedModel:
    """A frozen sequence classifier with one output, its weights held in `precision` but for a head called `score`.

    Args:
        path: a hub name or folder of a whole model, or a folder with a peft adapter, which is merged into its base.
        base: where an adapter's base lies; None: where the adapter says.

    Raises:
        ModelError: nothing there, damaged, weights missing, or several outputs.
    """
    adapted = (Path(path) / ADAPTER_CONFIG).is_file()
    if base is not None and not adapted:
        raise ModelError(f"reward.base: {path} is no adapter and needs no base; leave it null")
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    try:
        whole = (base or base_of_adapter(Path(path))) if adapted else path
        config = AutoConfig.from_pretrained(whole)
        if adapted:
            config.num_labels = 1  # the base may be a policy, which has no labels
        _refuse_several_outputs(path, config)
        loaded: Any = classifier_class(config, precision).from_pretrained(
            whole, config=config, dtype=DTYPES[precision], output_loading_info=True
        )
        model, report = loaded
        missing = set(report["missing_keys"])
        if adapted:
            missing -= {name.removeprefix("base_model.model.") for name in load_peft_weights(str(path), "cpu")}
            model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    except ModelError:
        raise
    except Exception as error:  # whatever safetensors, peft, the hub client or transformers raise on damaged files
        raise ModelError(f"reward.path: cannot load {path} ({reason(error)})") from error
    if missing:
        raise ModelError(f"reward.path: {path} lacks the weights {named(missing)}; give a reward model, not a policy")
    check_loaded(dict(model.named_parameters()), path, "reward.path")
    return model.eval().requires_grad_(False)


def classifier_class(config: PretrainedConfig, precision: str) -> type[PreTrainedModel]:
    """The architecture's sequence classifier; below float32 it keeps a head called `score` in float32."""
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if kind is None:
        raise ModelError(f"reward: transformers has no sequence classifier of architecture {config.model_type}")
    if precision == "fp32":
        return kind
    kept = [*(kind._keep_in_fp32_modules_strict or ()), "score"]
    return type(kind.__name__, (kind,), {"_keep_in_fp32_modules_strict": kept})


def named(names: Collection[str]) -> str:
    """A few names of many, in order."""
    few = ", ".join(sorted(names)[:5])
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"


def _refuse_several_outputs(path: str | Path, config: PretrainedConfig) -> None:
    outputs = [str(name) for name in (config.id2label or {}).values()]
    if len(outputs) != 1:
        raise ModelError(f"reward.path: {path} has {len(outputs)} outputs ({named(outputs)}); a reward model has one")
