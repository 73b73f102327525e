"""Sequence classifiers with one output: a folder or hub name, whole or an adapter, in the precision asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from rlhf.finite import check_loaded
from rlhf.models.adapters import adapter_at, merged, refuse_quantised
from rlhf.models.errors import ModelError, loading, named
from rlhf.models.names import KEPT_IN_FLOAT32
from rlhf.models.own_code import CLASSIFIER, NOT_RUN, OwnCode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_classifier(
    path: str | Path,
    precision: str = "fp32",
    base: str | None = None,
    own_code: OwnCode = NOT_RUN,
    option: str = "reward.path",
) -> PreTrainedModel:
    """A frozen sequence classifier with one output, its weights held in `precision` but for a head called `score`.

    Args:
        path: a folder or hub name of a whole model, or of a peft adapter, which is merged into its base.
        base: where an adapter's base lies; None: where the adapter says.
        option: what named the model, for errors.

    Raises:
        ModelError: nothing there, damaged, weights missing, several outputs, or code of its own that is not allowed.
    """
    adapter = adapter_at(path, option, base)
    if base is not None and adapter is None:
        raise ModelError(f"reward.base: {path} is no adapter and needs no base; leave it null")
    if adapter is not None and adapter.config.task_type == "CAUSAL_LM":
        raise ModelError(f"{option}: {path} is an adapter for CAUSAL_LM; give a reward model, not a policy")
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    whole, revision = (path, "main") if adapter is None else (adapter.base, adapter.revision)
    with loading(option, whole, "" if adapter is None else f"the base of the adapter {path}, "):
        own_code.check(whole, CLASSIFIER, option, revision)
        config = AutoConfig.from_pretrained(whole, trust_remote_code=own_code.allowed, revision=revision)
        if adapter is not None:
            refuse_quantised(config, adapter, option)
            config.num_labels = 1  # the base may be a policy, which has no labels
        _refuse_several_outputs(path, config, option)
        kind = classifier_class(config, precision, whole if own_code.allowed else None)
        loaded: Any = kind.from_pretrained(
            whole, config=config, dtype=DTYPES[precision], revision=revision, output_loading_info=True
        )
        model, report = loaded
        missing = set(report["missing_keys"])
    if adapter is not None:
        with loading(option, path):
            model, brought = merged(model, adapter, option)
        missing -= brought
    if missing:
        raise ModelError(f"{option}: {path} lacks the weights {named(missing)}; give a reward model, not a policy")
    check_head(model)
    check_loaded(dict(model.named_parameters()), path, "reward.path")
    return model.eval().requires_grad_(False)


def classifier_class(
    config: PretrainedConfig, precision: str, own_code_at: str | Path | None = None
) -> type[PreTrainedModel]:
    """The architecture's sequence classifier; below float32 it keeps a head called `score` in float32.

    Args:
        own_code_at: folder or hub name whose own code is run where it brings a classifier; None: none is.
    """
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    brought = (getattr(config, "auto_map", None) or {}).get(CLASSIFIER)
    if own_code_at is not None and brought:
        kind = get_class_from_dynamic_module(brought, str(own_code_at))
    if kind is None:
        raise ModelError(
            f"reward.name: transformers has no sequence classifier of architecture {config.model_type}; give one of "
            "another as reward.path, or a reward without one (reward=http)"
        )
    if precision == "fp32":
        return kind
    kept = [*(getattr(kind, KEPT_IN_FLOAT32, None) or ()), "score"]
    return type(kind.__name__, (kind,), {KEPT_IN_FLOAT32: kept})


def check_head(model: PreTrainedModel) -> None:
    """
    Raises:
        ModelError: the head called `score` was rounded to fewer bits when it was loaded.
    """
    head = getattr(model, "score", None)
    if isinstance(head, nn.Module) and any(parameter.dtype != torch.float32 for parameter in head.parameters()):
        raise ModelError(
            f"reward.precision: transformers {transformers.__version__} does not keep a reward model's head in float32 "
            "when it loads the rest in fewer bits; use reward.precision=fp32"
        )


def _refuse_several_outputs(path: str | Path, config: PretrainedConfig, option: str) -> None:
    outputs = [str(name) for name in (config.id2label or {}).values()]
    if len(outputs) != 1:
        raise ModelError(f"{option}: {path} has {len(outputs)} outputs ({named(outputs)}); a reward model has one")
