"""What loading a model from a folder or the hub needs: errors in one line, and leave for code that comes with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from transformers import PretrainedConfig, dynamic_module_utils
from transformers.utils.hub import cached_file

from rlhf.distributed import rank
from rlhf.errors import UserError, reason
from rlhf.terminal import say

# Where no argument says it, as inside a model's own code, transformers refuses instead of asking and waiting.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


class ModelError(UserError, ValueError):
    """A model that cannot be loaded; the message is one line that names the option and what to do."""


@dataclass(frozen=True)
class OwnCode:
    """Whether Python code that comes with a model is run, and the option that says so; nobody is ever asked."""

    allowed: bool = False
    option: str = "model.trust_remote_code"
    """Empty where no option lets it run."""

    def warn(self, path: str | Path, revision: str = "main") -> None:
        """Say it where a model's own code is about to run."""
        if self.allowed and rank() == 0:
            settings, _ = PretrainedConfig.get_config_dict(str(path), revision=revision)
            if settings.get("auto_map"):
                say(f"warning: {self.option}: Python code that {path} brings runs with your rights")

    def refusal(self, path: str | Path, option: str) -> ModelError:
        """
        Args:
            option: what named the model, as "model.path".
        """
        to_do = f"read it, then set {self.option}=true, or give" if self.option else "give"
        return ModelError(
            f"{option}: {path} brings Python code of its own, which is not run; {to_do} a model that transformers knows"
        )

    def was_refused(self, error: Exception, path: str | Path) -> bool:
        """Whether loading failed since the model brings code that is not run: transformers then raises ValueError, as
        it does for little else."""
        return not self.allowed and isinstance(error, ValueError) and _brings_code(path)


NOT_RUN = OwnCode()


@contextlib.contextmanager
def loading(option: str, path: str | Path, what: str = "", own_code: OwnCode = NOT_RUN) -> Iterator[None]:
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
        if own_code.was_refused(error, path):
            raise own_code.refusal(path, option) from error
        raise ModelError(f"{option}: cannot load {what}{path} ({reason(error)}); {remedy(error, path)}") from error


def _brings_code(path: str | Path) -> bool:
    """Whether a model's configuration or tokenizer names classes in files of its own."""
    for name in ("config.json", "tokenizer_config.json"):
        with contextlib.suppress(OSError, ValueError):  # as where no such file is
            file = cached_file(str(path), name)
            if json.loads(Path(str(file)).read_text(encoding="utf-8")).get("auto_map"):
                return True
    return False


def few_of(names: Collection[str]) -> str:
    """A few names of many, in order."""
    few = ", ".join(sorted(names)[:5])
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"


def remedy(error: BaseException, path: str | Path) -> str:
    """What to do about a folder or hub name that could not be loaded."""
    if Path(path).is_dir():
        return "see that the folder is whole, or give another"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return f"ask for access at https://huggingface.co/{path}, then set HF_TOKEN or type hf auth login"
        refused = isinstance(cause, HfHubHTTPError) and getattr(cause.response, "status_code", None) in (401, 403)
        if refused or isinstance(cause, RepositoryNotFoundError):
            return "give a folder or a hub name as owner/name; what is private needs HF_TOKEN, or hf auth login"
        cause = cause.__cause__ or cause.__context__
    return "give a folder, or a hub name that can be reached"
