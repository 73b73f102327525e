"""What loading a model from a folder or the hub needs: errors in one line, and leave for code that comes with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    dynamic_module_utils,
)
from transformers.utils.hub import cached_file

from rlhf.distributed import rank
from rlhf.errors import UserError, reason
from rlhf.terminal import say

# Where no argument says it, as inside a model's own code, transformers refuses instead of asking and waiting.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

CAUSAL, CLASSIFIER, TOKENIZER = "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer"


class ModelError(UserError, ValueError):
    """A model that cannot be loaded; the message is one line that names the option and what to do."""


@contextlib.contextmanager
def loading(option: str, path: str | Path, what: str = "") -> Iterator[None]:
    """Turn whatever safetensors, peft, the hub client or transformers raise into one line.

    Args:
        option: what named the model, as "model.path".
        path: the folder or hub name that is loaded.
        what: of the model, where it is a part; as "the tokenizer at ".

    Raises:
        ModelError: the body raised anything.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{option}: cannot load {what}{path} ({reason(error)}); {remedy(error, path)}") from error


def few_of(names: Collection[str]) -> str:
    """A few names of many, in order."""
    few = ", ".join(sorted(names)[:5])
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"


def remedy(error: BaseException, path: str | Path) -> str:
    """What to do about a folder or hub name that could not be loaded."""
    if Path(path).is_dir():
        return "see that the folder is whole, or give another"
    causes, cause = [], error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    hub = [cause for cause in causes if isinstance(cause, HfHubHTTPError)]
    if any(isinstance(cause, GatedRepoError) for cause in hub):
        return f"ask for access at https://huggingface.co/{path}, then set HF_TOKEN or type hf auth login"
    refused = any(getattr(cause.response, "status_code", None) in (401, 403) for cause in hub)
    if refused or any(isinstance(cause, RepositoryNotFoundError) for cause in hub):
        return "give a folder or a hub name as owner/name; what is private needs HF_TOKEN, or hf auth login"
    return "give a folder, or a hub name that can be reached"


@dataclass(frozen=True)
class OwnCode:
    """Whether Python code that comes with a model is run, and the option that says so; nobody is ever asked."""

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
        classes = MODEL_FOR_CAUSAL_LM_MAPPING if kind == CAUSAL else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        has_class = known and CONFIG_MAPPING[model_type] in classes
        if self.allowed and brought:
            if rank() == 0:
                say(f"warning: {self.option}: Python code that {path} brings runs with your rights")
        elif ("AutoConfig" in brought and not known) or (kind in brought and not has_class):
            raise self._refusal(path, option)

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
            raise self._refusal(path, option)

    def _refusal(self, path: str | Path, option: str) -> ModelError:
        return ModelError(
            f"{option}: {path} brings Python code of its own, which is not run; read it, then set {self.option}=true, "
            "or give a model that transformers knows"
        )


NOT_RUN = OwnCode()
