"""Adapters as peft saves them, from folders and from a hub: with more tokens than their base, of every kind of LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import scan_cache_dir
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, PreTrainedModel

from rlhf.models.loading import ModelError, load_pretrained
from rlhf.models.reward_model import load_classifier
from rlhf.models.saving import save_policy
from rlhf.random import generator
from tests.helpers import EOS, PAD, VOCAB, model_of, nudge, policy_models, tiny_model, trainable
from tests.models.test_architectures import byte_pairs

IDS = torch.tensor([[5, 7, 2, 11, 3]])
CHAT = ["<|user|>", "<|assistant|>", "<|end|>"]


def moved_by_training(model: torch.nn.Module) -> None:
    draws = generator(0, "adapter")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws) * 0.1)


def base_in(folder: Path, architecture: str = "llama") -> tuple[PreTrainedModel, int]:
    """A base and its tokenizer, whose vocabulary it fills."""
    tokenizer = byte_pairs()
    model = tiny_model(architecture)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder), len(tokenizer)


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


KINDS = {
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {"target_modules": "all-linear", "alpha_pattern": {"q_proj": 9}, "rank_pattern": {"v_proj": 1}},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lora_is_what_peft_computes(tmp_path: Path, kind: str):
    base, _ = base_in(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM", **KINDS[kind]))
    moved_by_training(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    model, _ = load_pretrained(tmp_path / "adapter")  # which has no tokenizer: its base has
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # Qwen2 here ties its embeddings
@pytest.mark.parametrize("how", ["modules_to_save", "targets", "saved along", "head alone"])
def test_an_adapter_that_added_chat_tokens(tmp_path: Path, architecture: str, how: str):
    """Embeddings are widened before peft loads into them, to what the adapter was trained on, padded or not."""
    base, vocabulary = base_in(tmp_path / "base", architecture)
    tokenizer = byte_pairs()
    tokenizer.add_special_tokens({"additional_special_tokens": CHAT})
    base.resize_token_embeddings(vocabulary + 8, mean_resizing=False)  # more than there are tokens
    settings = {
        "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        "targets": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        "saved along": {"target_modules": ["q_proj"]},
        "head alone": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    }[how]
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=3, task_type="CAUSAL_LM", **settings))
    moved_by_training(adapted)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 7, vocabulary + 2, 11, vocabulary]])
    expected = logits(adapted, ids)[..., : len(tokenizer)]
    model, loaded = load_pretrained(tmp_path / "adapter")
    assert loaded.convert_tokens_to_ids(CHAT[-1]) == vocabulary + 2
    assert model.config.vocab_size == vocabulary + 3 == len(loaded)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "whole")  # tied or not, it is the same when it is read again
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(again, ids), expected, atol=1e-5, rtol=1e-5)


def test_a_reward_models_adapter_with_more_tokens(tmp_path: Path):
    _, vocabulary = base_in(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    model.config.pad_token_id = PAD
    model.resize_token_embeddings(vocabulary + 3, mean_resizing=False)
    adapted = get_peft_model(
        model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["embed_tokens"])
    )
    moved_by_training(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 7, vocabulary + 2, 11, vocabulary]])
    loaded = load_classifier(tmp_path / "adapter")
    loaded.config.pad_token_id = PAD
    torch.testing.assert_close(logits(loaded, ids), logits(adapted, ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"adapter is an adapter for SEQ_CLS; a policy's is for CAUSAL_LM$"):
        load_pretrained(tmp_path / "adapter")


def in_hub_cache(cache: Path, name: str, folder: Path) -> None:
    """As the hub client keeps a repository that it has downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub client's cache, without a network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def lora_in(folder: Path, base: Path, **changes: object) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    moved_by_training(adapted)
    adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert isinstance(adapted, PeftModel)
    return adapted


def test_an_adapter_and_its_base_from_the_hub(tmp_path: Path, hub: Path):
    base_in(tmp_path / "base")
    adapted = lora_in(tmp_path / "adapter", tmp_path / "base", base_model_name_or_path="owner/base")
    in_hub_cache(hub, "owner/base", tmp_path / "base")
    in_hub_cache(hub, "owner/adapter", tmp_path / "adapter")
    assert len(scan_cache_dir(hub).repos) == 2
    model, _ = load_pretrained("owner/adapter")
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-5, rtol=1e-5)
    assert model.name_or_path == ""
    with pytest.raises(ModelError, match=r"^reward.path: .*; give a reward model, not a policy$"):
        load_classifier("owner/adapter")
    for name in ("owner/none", "owner/none at all"):
        with pytest.raises(
            ModelError, match=r"^model.path: .*owner/none.*; give a folder, or a hub name that can be reached$"
        ):
            load_pretrained(name)


def test_a_relative_base_is_looked_for_beside_the_adapter_and_in_the_working_folder(tmp_path: Path, monkeypatch):
    base_in(tmp_path / "work" / "base")
    lora_in(tmp_path / "work" / "adapter", tmp_path / "work" / "base", base_model_name_or_path="../base")
    expected = logits(load_pretrained(tmp_path / "work" / "adapter")[0])
    file = tmp_path / "work" / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace('"../base"', '"./base"'))
    monkeypatch.chdir(tmp_path / "work")
    assert torch.equal(logits(load_pretrained("adapter")[0]), expected)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"it is an adapter of ./base, which is not there; correct base_model_name"):
        load_pretrained(tmp_path / "work" / "adapter")


def test_the_tokenizer_that_is_named_is_used(tmp_path: Path):
    base_in(tmp_path / "base")
    lora_in(tmp_path / "adapter", tmp_path / "base")
    tokenizer = byte_pairs()
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(tmp_path / "words")
    assert "word" in load_pretrained(tmp_path / "adapter", tokenizer=str(tmp_path / "words"))[1].get_vocab()
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"^model.path: no tokenizer at .*base .*; set model.tokenizer to the folder"):
        load_pretrained(tmp_path / "adapter")


def without_weights(folder: Path, _: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def half(folder: Path, _: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def no_json(folder: Path, _: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def of_an_adapter(folder: Path, base: Path) -> None:
    lora_in(base.parent / "between", base)
    lora_in(folder, base, base_model_name_or_path=str(base.parent / "between"))


def prompt(folder: Path, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    shutil.rmtree(folder)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(folder)


def quantised_base(_: Path, base: Path) -> None:
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(settings))


def without(ending: str) -> Callable[[Path, Path], None]:
    """One tensor of an adapter of the embeddings is missing."""

    def damage(folder: Path, base: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["embed_tokens"]))
        adapted.save_pretrained(folder, save_embedding_layers=False)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith(ending))
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)

    return damage


def says(**changes: object) -> Callable[[Path, Path], None]:
    """Its config has other settings than its weights were saved with."""

    def damage(folder: Path, base: Path) -> None:
        lora_in(folder, base, **changes)

    return damage


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (without_weights, "lacks adapter_model.safetensors; copy it whole"),
        (half, "cannot load"),
        (no_json, "cannot load"),
        (of_an_adapter, "which is an adapter itself; merge that one"),
        (says(target_modules=["q_proj", "k_proj"]), "lacks model.layers.0.self_attn.k_proj.lora_A.weight, "),
        (says(layers_to_transform=[0]), "it has model.layers.1.self_attn.q_proj.lora_A.weight, "),
        (without("lora_embedding_A"), "lacks model.embed_tokens.lora_embedding_A"),
        (without("lora_embedding_B"), "lacks model.embed_tokens.lora_embedding_B"),
        (says(base_model_name_or_path=None), "names no base; give its folder or hub name as base_model_name_or_path"),
        (prompt, "not one of weights; give LoRA"),
        (quantised_base, "whose weights are quantised; name the whole model"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path, Path], None], problem: str
):
    base_in(tmp_path / "base")
    lora_in(tmp_path / "adapter", tmp_path / "base")
    damage(tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(ModelError) as error:
        load_pretrained(tmp_path / "adapter", option="evaluation.policy")
    assert str(error.value).startswith("evaluation.policy: ") and "\n" not in str(error.value)
    assert problem in str(error.value) and str(tmp_path / "adapter") in str(error.value)


def test_gpt2_is_adapted_by_name_and_saved_as_peft_reads_it(tmp_path: Path):
    """Its linear layers are Conv1D, whose weights lie the other way round."""
    shape = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=PAD)
    shape.eos_token_id, shape.bos_token_id = EOS, EOS
    model_of(shape).save_pretrained(tmp_path / "base")
    for merge in (False, True):
        train = trainable("lora", merge_adapters=merge)
        train.lora_targets = ["c_attn", "mlp.c_proj"]
        models = policy_models(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "lora", train=train)
        nudge(models.policy_parameters)
        assert len(models.policy_parameters) == 8
        expected = logits(models.sampler)
        save_policy(models, byte_pairs(), tmp_path / f"final {merge}", "full")
        assert (tmp_path / f"final {merge}" / "adapter_config.json").exists() is not merge
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / ("final True" if merge else "base"))
        if not merge:
            loaded = PeftModel.from_pretrained(loaded, tmp_path / "final False")
        torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    train = trainable("lora")
    train.lora_targets = ["query"]
    told = "query is no linear layer in the model's blocks; they have c_attn, c_fc, c_proj"
    with pytest.raises(ModelError, match=f"^model.train.lora_targets: {told}$"):
        policy_models(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "lora", train=train)
