"""Models that bring Python code, refused in one line or run where an option says so; and what a hub refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from transformers import AutoConfig

from analysis.errors import WinrateError
from analysis.winrate.scores import reward_model_scores
from rlhf.models.hub import CAUSAL, CLASSIFIER, ModelError, OwnCode, loading
from rlhf.models.loading import load_pretrained
from rlhf.models.reward_model import load_classifier
from tests.helpers import tiny_model
from tests.models.test_architectures import byte_pairs

MODULE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

MARK = {mark!r}
pathlib.Path(MARK).touch()


class OwnConfig(LlamaConfig):
    model_type = "of_its_own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnClassifier(LlamaForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model whose classes stand in its folder, and the file that they leave when they are run."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    model, tokenizer = tiny_model("llama"), byte_pairs()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "own.py").write_text(MODULE.format(mark=str(mark)))
    settings = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", CAUSAL: "own.OwnModel", CLASSIFIER: "own.OwnClassifier"}
    settings |= {"model_type": "of_its_own", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder, mark


def test_a_policys_own_code_is_run_only_where_it_is_allowed(brought, capsys):
    folder, mark = brought
    with pytest.raises(ModelError) as error:
        load_pretrained(folder)
    assert str(error.value) == (
        f"model.path: {folder} brings Python code of its own, which is not run; read it, then set "
        "model.trust_remote_code=true, or give a model that transformers knows"
    )
    assert not mark.exists()
    model, _ = load_pretrained(folder, own_code=OwnCode(allowed=True))
    assert mark.exists() and type(model).__name__ == "OwnModel"
    assert capsys.readouterr().out.startswith(f"warning: model.trust_remote_code: Python code that {folder} brings")


def test_a_judges_own_code_is_run_only_where_it_is_allowed(brought, capsys):
    folder, mark = brought
    with pytest.raises(WinrateError, match=r"which --trust-remote-code runs with your rights$"):
        reward_model_scores(str(folder))
    assert not mark.exists()
    with pytest.raises(WinrateError, match="cannot load"):  # it has no base model
        reward_model_scores(str(folder), trust_remote_code=True)
    assert mark.exists()
    assert f"warning: --trust-remote-code: Python code that {folder} may bring" in capsys.readouterr().err


def test_a_reward_models_own_code_is_run_only_where_it_is_allowed(brought):
    folder, mark = brought
    with pytest.raises(ModelError, match=r"^reward.path: .* then set reward.trust_remote_code=true"):
        load_classifier(folder, own_code=OwnCode(option="reward.trust_remote_code"))
    assert not mark.exists()
    with pytest.raises(ModelError, match="has 2 outputs"):  # it is a policy
        load_classifier(folder, own_code=OwnCode(allowed=True))
    assert mark.exists()


def test_a_known_architecture_that_brings_code_too_is_loaded_without_it(brought):
    folder, mark = brought
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(settings))
    assert type(load_pretrained(folder)[0]).__name__ == "LlamaForCausalLM" and not mark.exists()


def test_a_tokenizers_own_code_is_refused(brought):
    folder, mark = brought
    settings = json.loads((folder / "config.json").read_text())
    del settings["auto_map"]
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "llama"}))
    own = json.loads((folder / "tokenizer_config.json").read_text())
    own |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        ModelError, match=r"^model.path: .* brings Python code of its own, .*model.trust_remote_code=true"
    ):
        load_pretrained(folder)
    assert not mark.exists()


# --- what a hub answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "advice"),
    [
        (GatedRepoError, 403, "ask for access at https://huggingface.co/lab/name, then set HF_TOKEN"),
        (RepositoryNotFoundError, 404, "what is private needs HF_TOKEN, or hf auth login"),
        (HfHubHTTPError, 403, "what is private needs HF_TOKEN, or hf auth login"),
        (HfHubHTTPError, 500, "give a folder, or a hub name that can be reached"),
    ],
)
def test_each_refusal_of_a_hub_has_its_remedy(kind: type[HfHubHTTPError], status: int, advice: str):
    answer = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))
    with (
        pytest.raises(ModelError, match=r"^model.path: cannot load lab/name \(") as error,
        loading("model.path", "lab/name"),
    ):
        raise OSError("transformers' own words") from kind("refused", response=answer)
    assert advice in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_asked(brought, monkeypatch):
    folder, mark = brought
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run a model's code"))
    with pytest.raises(ValueError):
        AutoConfig.from_pretrained(folder)
    assert not mark.exists()
