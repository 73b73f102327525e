"""rollout=vllm against a small server of the same protocol: what is asked, what is found out, and how runs end."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import rlhf.sampling.vllm as vllm
from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder, run_id
from rlhf.config.packages import check_inputs
from rlhf.models.saving import save_for_server
from rlhf.run import execute
from rlhf.runs.state import read_rows, read_summary
from rlhf.sampling.vllm import NOTHING, Checksums, own_logprobs
from rlhf.sampling.vllm_process import ServerProcess
from rlhf.vllm_client import LARGEST_SEED, RolloutServerError, VllmClient
from tests.config.composed import config
from tests.helpers import model_of, nudge, policy_models, tiny_model
from tests.sampling.fake_vllm import FakeVllm, serving
from tests.scorers.made_up import byte_tokenizer
from tests.test_run import ROOT, tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")
SHORT = ("rollout=vllm", "rollout.iterations=2", "checkpoint.checkpoint_every=1", "optimization.learning_rate=1e-2")


@pytest.fixture
def run_of(tmp_path: Path, cache: Path) -> Callable[..., RunConfig]:
    return lambda *overrides: tiny(tmp_path, cache, "apa", *SHORT, *overrides)


@pytest.fixture(scope="module")
def policy(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SFT policy that the runs start from."""
    sft = input_runs(tiny(tmp_path_factory.mktemp("sft"), cache))[0]
    execute(sft)
    return run_folder(sft) / "final"


def at(fake: FakeVllm) -> str:
    return f"rollout.url={fake.url}"


def test_rollouts_come_from_the_server_with_the_policys_weights(run_of, policy):
    with serving(FakeVllm(policy)) as fake:
        run = run_of(at(fake), "rollout.temperature=0.8")
        assert execute(run)["status"] == "finished"
    rows = read_rows(run_folder(run))
    assert all(row["perf/sampler_logprob_gap"] < 1e-5 for row in rows[1:])
    assert rows[1]["train/kl"] == 0.0 and rows[-1]["eval/kl"] > 1e-4
    assert len(fake.loads) == len(set(fake.loads)) == 2
    assert len(fake.asked) == 16 and len({request["seed"] for request in fake.asked}) == 16
    eos = AutoModelForCausalLM.from_pretrained(policy).config.eos_token_id
    for request in fake.asked:
        assert 0 <= request["seed"] < LARGEST_SEED and request["temperature"] == 0.8
        assert (request["top_p"], request["top_k"], request["max_tokens"]) == (1.0, 0, 8)
        assert eos in request["stop_token_ids"] and all(type(token) is int for token in request["prompt"])
    assert not (run_folder(run) / "vllm_weights").exists()


def test_the_same_run_asks_for_the_same_draws(run_of, policy):
    seeds = []
    for place in ("one", "other"):
        with serving(FakeVllm(policy)) as fake:
            execute(run_of(at(fake), f"sweep_name={place}", "rollout.iterations=1"))
            seeds.append(sorted(request["seed"] for request in fake.asked))
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize(
    "ill",
    [{"stale_from": 2}, {"stale_from": 2, "checks": False}, {"keeps": "mlp.dense_4h_to_h", "checks": False}],
    ids=["by checksum", "by logprobs", "one matrix"],
)
def test_stale_weights_end_the_run_before_it_learns_from_them(run_of, policy, ill):
    with serving(FakeVllm(policy, **ill)) as fake:
        run = run_of(at(fake))
        with pytest.raises(RolloutServerError, match=r"rollout\.url.*(checksum|logprobs)"):
            execute(run)
    assert [row["iteration"] for row in read_rows(run_folder(run))] == [0, 1]
    assert len(fake.loads) == 3 and len(fake.asked) == 8  # tried once more, and nothing sampled by them


def test_weights_that_were_not_taken_are_loaded_again(run_of, policy):
    with serving(FakeVllm(policy, stale_from=2, stale_to=3)) as fake:
        assert execute(run_of(at(fake)))["status"] == "finished"
    assert len(fake.loads) == 3


def test_a_server_that_dies_is_a_failed_run_that_another_server_resumes(run_of, policy):
    with serving(FakeVllm(policy, lives_for=11)) as fake:
        run = run_of(at(fake))
        with pytest.raises(RolloutServerError) as raised:
            execute(run)
    assert "\n" not in str(raised.value) and fake.url in str(raised.value)
    assert read_summary(run_folder(run))["status"] == "failed"
    with serving(FakeVllm(policy)) as other:
        again = run_of(at(other))
        assert run_id(again) == run_id(run) and execute(again)["status"] == "finished"
    assert len(other.asked) == 8  # the first iteration stands
    assert [row["iteration"] for row in read_rows(run_folder(run))] == [0, 1, 2]


def test_what_cannot_serve_is_told_before_anything_is_computed(run_of, policy, tmp_path):
    longest = run_of().dataset.max_total_length
    with serving(FakeVllm(policy, max_model_len=longest - 1)) as fake, pytest.raises(ConfigError, match=str(longest)):
        check_inputs([run_of(at(fake))])
    with pytest.raises(ConfigError, match=r"rollout\.url"):  # nobody there any more
        check_inputs([run_of(at(fake))])
    with pytest.raises(ConfigError, match=r"rollout\.command"):
        check_inputs([run_of(f"rollout.command={tmp_path / 'vllm'}")])
    for option, words in {"rollout.url": "rollout.url=localhost:8000", "rollout.sampling": "stage=evaluate"}.items():
        with pytest.raises(ConfigError, match=option):
            run_of(words)


def test_a_server_of_another_model_is_told(run_of, policy, tmp_path):
    size = AutoModelForCausalLM.from_pretrained(policy).config.vocab_size
    for vocabulary, said in ((size - 1, "vocabulary"), (size, "nats per token")):
        other = AutoModelForCausalLM.from_config(tiny_model().config)
        other.resize_token_embeddings(vocabulary)
        other.save_pretrained(tmp_path / "other")
        wrong = pytest.raises(RolloutServerError, match=said)
        with serving(FakeVllm(tmp_path / "other", stale_from=1)) as fake, wrong:  # it takes no weights
            execute(run_of(at(fake)))
        assert not fake.asked


def test_logprobs_at_another_temperature_are_found_out(run_of, policy):
    wrong = pytest.raises(RolloutServerError, match="processed_logprobs")
    with serving(FakeVllm(policy, raw_logprobs=True)) as fake, wrong:
        execute(run_of(at(fake), "rollout.temperature=0.5"))


@pytest.mark.parametrize("mode", ["all", "last_k", "lora"])
def test_the_folder_holds_the_policy_as_it_is(tmp_path, mode):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    models = policy_models(model_of(LlamaConfig(**size, vocab_size=264, tie_word_embeddings=True)), mode)
    nudge(models.policy_parameters)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    save_for_server(models, byte_tokenizer(), tmp_path / "policy")
    with serving(FakeVllm(tmp_path / "policy")) as fake:
        theirs = VllmClient(fake.url, 10.0).logprobs("policy", tokens)
    assert theirs == pytest.approx(own_logprobs(models, tokens).tolist(), abs=1e-4)
    assert "lm_head.weight" in load_file(tmp_path / "policy" / "model.safetensors")
    assert models.sampler.config.tie_word_embeddings


def test_checksums_count_where_they_prove_something(tmp_path):
    """`same` is held as it is, `padded` in another form, `packed` as a hash of nothing."""

    def sha(tensor: torch.Tensor) -> str:
        return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

    def folder(step: int) -> tuple[Path, dict[str, str]]:
        tensors = {name: torch.full((2, 3), float(step)) for name in ("same", "padded", "packed")}
        (tmp_path / str(step)).mkdir(exist_ok=True)
        save_file(tensors, tmp_path / str(step) / "model.safetensors")
        padded = torch.cat([tensors["padded"], torch.zeros(1, 3)])
        held = {"same": sha(tensors["same"]), "padded": sha(padded), "packed": NOTHING, "fused": "f"}
        return tmp_path / str(step), {f"dp0:tp0:{name}": value for name, value in held.items()}

    checksums = Checksums()
    (one, held_one), (two, held_two) = folder(1), folder(2)
    assert checksums.compare(one, held_one) == ""
    checksums.keep()
    assert checksums.compare(two, held_two) == ""
    for stale in ("same", "padded"):
        assert stale in checksums.compare(two, {**held_two, f"dp0:tp0:{stale}": held_one[f"dp0:tp0:{stale}"]})
    assert checksums.compare(two, dict.fromkeys(held_two, NOTHING)) == ""


def own_server(folder: Path) -> str:
    """A program that is called as `vllm` is."""
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m tests.sampling.fake_vllm "$@"\n')
    program.chmod(0o755)
    return str(program)


def is_over(group: int, within: float = 30.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_the_runs_own_server_starts_and_ends_with_it(run_of, tmp_path, monkeypatch):
    started: list[Any] = []
    monkeypatch.setattr(vllm, "ServerProcess", lambda *given: started.append(ServerProcess(*given)) or started[-1])
    run = run_of(f"rollout.command={own_server(tmp_path)}", "rollout.arguments=[--enforce-eager]")
    assert execute(run)["status"] == "finished"
    assert len(started) == 1 and is_over(started[0].group)
    assert "--enforce-eager" in (run_folder(run) / "vllm.log").read_text()


PARENT = """
import sys, time
from pathlib import Path
from rlhf.sampling.vllm_process import ServerProcess
server = ServerProcess(["sh", "-c", "sleep 1000 & sleep 1000"], Path(sys.argv[1]), {})
print(server.group, flush=True)
time.sleep(1000)
"""


def test_a_run_that_is_killed_leaves_no_server(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert is_over(group)


def test_a_server_that_ends_says_how(run_of, tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho no device >&2\nexit 3\n")
    program.chmod(0o755)
    run = run_of(f"rollout.command={program}")
    with pytest.raises(RolloutServerError, match=r"code 3.*vllm\.log"):
        execute(run)
    assert (run_folder(run) / "vllm.log").read_text() == "no device\n"


def test_existing_runs_keep_their_ids_and_inputs_know_no_server():
    ours, servers = config("algo=apa"), config("algo=apa", "rollout=vllm")
    assert run_id(ours) != run_id(servers)
    assert [run_id(run) for run in input_runs(ours)] == [run_id(run) for run in input_runs(servers)]
    assert run_id(servers) == run_id(config("algo=apa", "rollout=vllm", "rollout.url=http://elsewhere:1"))


@pytest.mark.slow
def test_ranks_ask_the_same_server(run_of, policy):
    with serving(FakeVllm(policy)) as fake:
        assert execute(run_of(at(fake), "hardware.ranks=2"))["status"] == "finished"
    assert len(fake.loads) == 2 and len({request["seed"] for request in fake.asked}) == 16
