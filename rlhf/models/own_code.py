"""Models that bring Python code of their own: refused unless an option allows it; nobody is ever asked."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    dynamic_module_utils,
)
from transformers.utils.hub import cached_file

from rlhf.distributed import rank
from rlhf.models.errors import ModelError
from rlhf.terminal import say

# Where no argument says it, as inside a model's own code, transformers refuses instead of asking and waiting.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

CAUSAL, CLASSIFIER, TOKENIZER = "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer"
_KNOWN: dict[str, Any] = {
    CAUSAL: MODEL_FOR_CAUSAL_LM_MAPPING,
    CLASSIFIER: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}


@dataclass(frozen=True)
class OwnCode:
    """Whether code that comes with a model is run, and the option that says so."""

    allowed: bool = False
    option: str = "model.trust_remote_code"

    def check(self, path: str | Path, kind: str, option: str, revision: str = "main") -> None:
        """Refuse a model that transformers itself has no classes for; say it where its own code is run.

        Args:
            kind: CAUSAL or CLASSIFIER.
            option: what named the model, as "model.path".

        Raises:
            ModelError: it needs its own code, and that is not allowed.
        """
        settings, _ = PretrainedConfig.get_config_dict(str(path), revision=revision)
        brought, model_type = settings.get("auto_map") or {}, str(settings.get("model_type"))
        known = model_type in CONFIG_MAPPING
        has_class = known and CONFIG_MAPPING[model_type] in _KNOWN[kind]
        if self.allowed and brought:
            self._say(path)
        elif ("AutoConfig" in brought and not known) or (kind in brought and not has_class):
            raise self.refusal(path, option)

    def check_tokenizer(self, path: str | Path, option: str) -> None:
        """After a tokenizer could not be loaded: refuse code of its own, if that was the reason.

        Raises:
            ModelError: it brings code, which is not allowed.
        """
        if self.allowed:
            return
        brought = None
        with contextlib.suppress(OSError, ValueError):  # as where no such file is
            file = cached_file(str(path), "tokenizer_config.json")
            brought = json.loads(Path(str(file)).read_text(encoding="utf-8")).get("auto_map")
        if brought and (TOKENIZER in brought or isinstance(brought, list)):
            raise self.refusal(path, option)

    def refusal(self, path: str | Path, option: str) -> ModelError:
        return ModelError(
            f"{option}: {path} brings Python code of its own, which is not run; read it, then {self.remedy}, "
            "or give a model that transformers knows"
        )

    @property
    def remedy(self) -> str:
        return f"add {self.option}" if self.option.startswith("--") else f"set {self.option}=true"

    def _say(self, path: str | Path) -> None:
        if rank() == 0:
            say(f"warning: {self.option}: Python code that {path} brings runs with your rights")


NOT_RUN = OwnCode()
