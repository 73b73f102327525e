"""Whole runs: rollout=fast has the metrics of rollout=plain, and says where it is plain itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

import rlhf.models.network as network
import rlhf.rollout as rollout
from rlhf.config.identity import run_folder
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests import small_hub
from tests.test_run import tiny, without_time

pytestmark = pytest.mark.usefixtures("torchs_switches")
FEW = ("rollout.iterations=2", "dataset.num_prompts=16")


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which sampler each batch of every run from here on goes through."""
    used: list[str] = []
    for name in ("fast_sampler", "sample_plain"):
        original = getattr(rollout, name)
        monkeypatch.setattr(rollout, name, lambda *a, _o=original, _n=name, **k: (used.append(_n), _o(*a, **k))[1])
    return used


@pytest.mark.parametrize(
    "settings",
    [
        ("apa", "model.train.mode=all"),
        ("ppo", "model.train.mode=lora", "optimization.pack_by_length=false"),
        ("awr", "seed=3"),
    ],
)
def test_the_same_seed_has_the_same_metrics_either_way(monkeypatch, tmp_path, cache, capfd, settings):
    """Plain: sampled, measured and trained by transformers' own forward pass alone."""
    used, rows, samples = spied(monkeypatch), {}, {}
    for sampling in ("fast", "plain"):
        used.clear()
        if sampling == "plain":
            monkeypatch.setattr(network, "misfit", lambda _: "asked for")
        run = tiny(tmp_path, cache, *settings, *FEW, f"rollout={sampling}")
        assert run.rollout.sampling == sampling
        assert execute(run)["status"] == "finished"
        assert set(used) == {"sample_plain" if sampling == "plain" else "fast_sampler"}
        assert ("own forward pass: asked for" in capfd.readouterr().out) == (sampling == "plain")
        rows[sampling] = [without_time(row) for row in read_rows(run_folder(run))]
        samples[sampling] = (run_folder(run) / "samples.jsonl").read_text()
    assert samples["fast"] == samples["plain"]
    assert len(rows["fast"]) == len(rows["plain"]) == 3
    for ours, theirs in zip(rows["fast"], rows["plain"], strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 5
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert rows["plain"][2]["train/kl"] != 0.0


def test_an_unknown_architecture_says_so_in_a_line_each_and_trains(monkeypatch, tmp_path, cache, capfd):
    folder = tmp_path / "gpt2"
    tokenizer = small_hub.tokenizer(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    given = ("model=pythia_125m", f"model.path={folder}", "model.sft=false", "model.train.mode=all")
    used = spied(monkeypatch)
    run = tiny(tmp_path, tmp_path / "cache", "apa", *given, *FEW)
    assert run.rollout.sampling == "fast"
    capfd.readouterr()
    assert execute(run)["status"] == "finished"
    log = _log(run_folder(run), capfd.readouterr().out)
    for what in ("rollout=plain", "measuring and training by the model's own forward pass"):
        said = [line for line in log if what in line]
        assert len(said) == 1 and said[0].startswith(f"{what}: GPT2Model is not among GPTNeoXModel, ")
    assert set(used) == {"sample_plain"}
    summary = json.loads((run_folder(run) / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert read_rows(run_folder(run))[-1]["eval/kl"] > 1e-8


def _log(folder: Path, printed: str) -> list[str]:
    """What a run said, wherever it went."""
    files = [path.read_text() for path in folder.glob("*.log")]
    return [line for text in (printed, *files) for line in text.splitlines()]
