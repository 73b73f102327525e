"""SFT and the reward model: losses and calibration by hand; adapters, packing, recomputation, held weights in runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rlhf.config import RunConfig
from rlhf.config.identity import input_runs, run_folder
from rlhf.models.loading import ModelError, load_pretrained
from rlhf.models.reward_model import load_reward_model
from rlhf.run import execute
from rlhf.stages.reward_model import preference_loss, preference_metrics
from tests.helpers import plain_logprobs
from tests.test_run import tiny, without_time

pytestmark = pytest.mark.usefixtures("torchs_switches")
LORA = ("sft.train.mode=lora", "reward_model.train.mode=lora")


def test_the_preference_loss_by_hand():
    """-log sigmoid(2 - 1 - m) - log sigmoid(0 - 1 - m), and c ((2 + 1)^2 + (0 + 1)^2)."""
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    assert float(preference_loss(chosen, rejected, 0.0, 0.0)) == pytest.approx(softplus(-1) + softplus(1))
    assert float(preference_loss(chosen, rejected, 0.0, 1.0)) == pytest.approx(math.log(2) + softplus(2))
    assert float(preference_loss(chosen, rejected, 0.1, 1.0)) == pytest.approx(math.log(2) + softplus(2) + 0.1 * 10)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_calibration_by_hand():
    """p = 0.9, 0.92 and 0.06 in the bins [0.9, 0.95); 0.6 and a tie in others.

    [0.9, 0.95): right 1, 1, 0; confidences 0.9, 0.92, 0.94: a gap of |2 - 2.76| = 0.76. 0.62: |1 - 0.62| = 0.38. The
    tie: half right at a confidence of a half. Together 1.14 over five pairs.
    """
    p = [0.9, 0.92, 0.06, 0.62, 0.5]
    found = preference_metrics(torch.tensor([logit(x) + 3 for x in p], dtype=torch.float64), torch.full((5,), 3.0))
    assert found["eval/accuracy"] == pytest.approx(3 / 5)
    assert found["eval/calibration_error"] == pytest.approx(1.14 / 5)
    assert found["eval/brier"] == pytest.approx((0.1**2 + 0.08**2 + 0.94**2 + 0.38**2 + 0.5**2) / 5)
    sure = preference_metrics(torch.tensor([100.0, 100.0]), torch.tensor([0.0, 0.0]))
    assert sure == {"eval/accuracy": 1.0, "eval/calibration_error": 0.0, "eval/brier": 0.0}
    wrong = preference_metrics(torch.tensor([0.0]), torch.tensor([100.0]))
    assert (wrong["eval/calibration_error"], wrong["eval/brier"]) == pytest.approx((1.0, 1.0))


@pytest.fixture(scope="module")
def base(tmp_path_factory, cache) -> Path:
    """A pretrained folder: what the SFT stage leaves of random weights."""
    run = tiny(tmp_path_factory.mktemp("base"), cache)
    needed = input_runs(run)[0]
    execute(needed)
    return run_folder(needed) / "final"


@pytest.fixture
def made(base, tmp_path) -> Callable[..., RunConfig]:
    """A finished run of a stage that starts from `base`."""

    def run(stage: str, *overrides: str, name: str = "a") -> RunConfig:
        given = ("model.name=mine", "model.source=pretrained", f"model.path={base}", f"stage={stage}", *overrides)
        config = tiny(tmp_path / name, tmp_path / "cache", "apa", *given)
        assert execute(config)["status"] == "finished"
        return config

    return run


def rows(run: RunConfig) -> list[dict]:
    return [without_time(json.loads(x)) for x in (run_folder(run) / "metrics.jsonl").read_text().splitlines()]


def final(run: RunConfig) -> Path:
    return run_folder(run) / "final"


def test_sft_leaves_an_adapter_that_is_the_merged_policy(made, base):
    merged, apart = made("sft", *LORA), made("sft", *LORA, "sft.train.merge_adapters=false")
    assert rows(merged) == rows(apart)
    assert not (final(merged) / "adapter_config.json").exists() and not (final(apart) / "model.safetensors").exists()
    assert json.loads((final(apart) / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    (one, tokenizer), (two, again) = load_pretrained(final(merged)), load_pretrained(final(apart))
    assert tokenizer.get_vocab() == again.get_vocab()
    texts = [3, 4, 5], [6, 7, 8, 9]
    torch.testing.assert_close(plain_logprobs(one, *texts), plain_logprobs(two, *texts), rtol=1e-5, atol=1e-5)
    initial, _ = load_pretrained(base)
    assert (plain_logprobs(one, *texts) - plain_logprobs(initial, *texts)).abs().max() > 1e-4


def test_a_reward_model_leaves_an_adapter_as_peft_writes_it(made, tmp_path):
    options = (*LORA, "reward_model.train.merge_adapters=false", "sft.train.merge_adapters=false")
    merged, apart = made("reward_model", *LORA), made("reward_model", *options)
    limits = {"max_prompt_tokens": 22, "max_new_tokens": 8}
    prompts, answers = ["the first", "another one"], ["is good", "is it"]
    one, two = (load_reward_model(final(run), **limits).score(prompts, answers) for run in (merged, apart))
    assert (one - one[0]).abs().max() > 1e-4
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    place = json.loads((final(apart) / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert place == str(run_folder(apart) / "initial")  # the policy is an adapter itself
    plain = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1)
    kind = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear", modules_to_save=["score"])
    get_peft_model(plain, kind).save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    own, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (final(apart), tmp_path / "peft"))
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in theirs.items()}
    settings = [json.loads((f / "adapter_config.json").read_text()) for f in (final(apart), tmp_path / "peft")]
    for name in ("task_type", "r", "lora_alpha", "peft_type", "base_model_name_or_path"):
        assert settings[0][name] == settings[1][name], name
    assert settings[0]["modules_to_save"] == ["score"] and "score" in settings[1]["modules_to_save"]


def test_rl_starts_from_adapters_and_leaves_whole_weights_on_request(made):
    apart = [f"{stage}.train.merge_adapters=false" for stage in ("sft", "reward_model")]
    run = made("online", *LORA, *apart, "model.train.mode=lora", "model.train.merge_adapters=true")
    assert rows(run)[0]["eval/kl"] == 0.0
    assert (final(run) / "model.safetensors").exists() and not (final(run) / "adapter_config.json").exists()


def test_an_adapter_of_random_weights_is_refused_before_it_is_trained(tmp_path):
    options = ("stage=sft", "sft.train.mode=lora", "sft.train.merge_adapters=false")
    run = tiny(tmp_path / "a", tmp_path / "cache", "apa", *options)
    with pytest.raises(ModelError, match=r"^sft\.train\.merge_adapters: false, but the model it adapts lies nowhere"):
        execute(run)
    assert not (run_folder(run) / "metrics.jsonl").exists() or not rows(run)


def test_packing_changes_no_number_of_a_run(made):
    padded, packed = made("sft"), made("sft", "sft.packing=true")
    for before, after in zip(rows(padded), rows(packed), strict=True):
        assert set(before) == set(after)
        for name, value in before.items():
            assert after[name] == pytest.approx(value, rel=2e-4), name


def test_recomputed_activations_change_no_number_of_a_run(made):
    options = [f"{section}.train.mode=lora" for section in ("model", "sft", "reward_model")]
    runs = [made("online", *options, f"hardware.gradient_checkpointing={on}", name=on) for on in ("false", "true")]
    for kept, again in zip(*([run, *input_runs(run)] for run in runs), strict=True):
        assert rows(kept) == rows(again) and len(rows(kept)) > 2


@pytest.mark.parametrize(("mode", "precision"), [("last_k", "fp32"), ("lora", "bf16")])
def test_held_weights_go_through_every_stage(made, mode, precision):
    options = [f"{section}.train.mode={mode}" for section in ("model", "sft", "reward_model")]
    options += [f"{section}.train.last_k=1" for section in ("sft", "reward_model")]
    run = made("online", *options, "model.frozen_weights=bfloat16", f"hardware.precision={precision}")
    assert rows(run)[0]["eval/kl"] == pytest.approx(0.0, abs=1e-6) and rows(run)[-1]["eval/kl"] > 0
    if mode == "last_k":
        kept = {name: tensor.dtype for name, tensor in load_file(final(run) / "model.safetensors").items()}
        assert kept["gpt_neox.embed_in.weight"] == torch.bfloat16
        assert kept["gpt_neox.layers.1.attention.dense.weight"] == torch.float32
