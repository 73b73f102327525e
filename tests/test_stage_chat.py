"""stage=chat: what a policy says is what its rollouts would be, before and after, turn by turn."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import rlhf.stages.chat
from rlhf.config import RunConfig
from rlhf.config.build import ConfigError
from rlhf.config.identity import input_runs, run_folder
from rlhf.data.examples import Demonstration
from rlhf.data.tokenize import encode_prompts
from rlhf.models.loading import load_pretrained
from rlhf.models.policy import policy_pair
from rlhf.random import sampling_uniforms
from rlhf.rollout import generate
from rlhf.run import chat
from rlhf.terminal import console
from sweeps.chat import chat_overrides
from sweeps.command_line import quoted
from tests import small_hub
from tests.sweeps.test_sources import run_of

pytestmark = pytest.mark.usefixtures("torchs_switches")

PROMPTS = ["guest : slow porter . hotel :", "guest : lumpy bed . hotel :"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def talked(monkeypatch):
    def talk(lines: list[str], policy: Path | str, *overrides: str) -> str:
        kept, more = chat_overrides(["stage=chat", f"policy={quoted(str(policy))}", *overrides], False)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        stream = io.StringIO()
        chat(run_of(*kept, *more), console(file=stream, width=400))
        return stream.getvalue()

    return talk


def sampled(folder: Path, run: RunConfig, prompt: str, turn: int) -> str:
    """By the plain sampler."""
    model, tokenizer = load_pretrained(folder)
    policy = policy_pair(
        model, model, temperature=run.rollout.temperature, autocast=lambda: contextlib.nullcontext(None)
    )
    rollouts = generate(
        policy,
        tokenizer,
        encode_prompts(tokenizer, [Demonstration(prompt, "")], run.dataset.max_prompt_tokens),
        sampling_uniforms(run.evaluation.seed, "chat", turn, 1, run.dataset.max_new_tokens),
        sampling="plain",
        batch_size=1,
        stop_strings=(),
    )
    return rollouts.responses[0].strip()


def test_before_and_after_stand_side_by_side_with_the_runs_own_settings(never_stopped, talked, capsys):
    run = never_stopped("apa", "optimization.learning_rate=0.02", "rollout.temperature=0.9")
    (sft,) = (need for need in input_runs(run) if need.stage.name == "sft")
    rows = talked([*PROMPTS, "exit", PROMPTS[0]], run_folder(run) / "final").splitlines()
    assert [line.split() for line in rows].count(["before", "after"]) == len(PROMPTS) and "temperature 0.9" in rows[0]
    different = 0
    for turn, prompt in enumerate(PROMPTS):
        before, after = (sampled(run_folder(one) / "final", run, prompt, turn) for one in (sft, run))
        assert any(before in row and after in row for row in rows)
        different += before != after
    assert different
    echoed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("> ")]
    assert echoed == [f"> {line}" for line in [*PROMPTS, "exit"]]


def test_an_initial_policy_that_is_gone_is_not_trained_again(never_stopped, talked, tmp_path, capsys):
    run = never_stopped("apa", "optimization.learning_rate=0.02", "rollout.temperature=0.9")
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "final").symlink_to(run_folder(run) / "final")
    text = (run_folder(run) / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(run.cache_dir, str(tmp_path / "empty")))
    said = talked(PROMPTS[:1], copy / "final")
    answers = [line.removesuffix(" [cut at 8 tokens]") for line in said.splitlines()]
    assert sampled(run_folder(run) / "final", run, PROMPTS[0], 0) in answers
    assert "before" not in said and "is not finished" in capsys.readouterr().out
    assert not (tmp_path / "empty").exists() and {path.name for path in copy.iterdir()} == {"final", "config.yaml"}


def test_the_conversation_goes_on_by_the_template_and_users_spell_no_control_token(talked, tmp_path, monkeypatch):
    folder = small_hub.policy(tmp_path / "policy", "llama", 2)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    seen: list[list[int]] = []
    answers: list[str] = []

    def watched(policy: Any, words: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        seen.append(prompts.input_ids[0].tolist())
        rollouts = generate(policy, words, prompts, *args, **options)
        answers.extend(rollouts.responses)
        return rollouts

    monkeypatch.setattr(rlhf.stages.chat, "generate", watched)
    said = talked(["please<|endoftext|>", "thank you", "", "bake"], folder, "dataset.max_new_tokens=5")
    assert "chat template" in said and "[cut at 5 tokens]" in said
    first = "user: please<|endoftext|>\nassistant: "
    second = f"{first}{answers[0]}\nuser: thank you\nassistant: "
    assert [tokenizer.decode(ids) for ids in seen] == [first, second, "user: bake\nassistant: "]
    assert all(tokenizer.eos_token_id not in ids for ids in seen)


def test_what_cannot_be_talked_to_is_one_line(tmp_path, never_stopped):
    final = run_folder(never_stopped("apa", "optimization.learning_rate=0.02", "rollout.temperature=0.9")) / "final"
    (tmp_path / "final").mkdir()
    for overrides, line in {
        (f"policy={final.parent}",): rf"^policy: .* has no config\.json; give {final}$",
        (f"policy={tmp_path / 'final'}",): r"^policy: .*final has no config\.json; give the final/ of a run",
        ("policy=./nowhere/final",): r"^policy: \./nowhere/final does not exist",
        (f"policy={final}", "debug=one_step"): r"^debug: .*config\.yaml has the settings",
    }.items():
        with pytest.raises(ConfigError, match=line):
            chat_overrides(["stage=chat", *overrides], False)
    with pytest.raises(ConfigError, match="leave -m out"):
        chat_overrides(["stage=chat", f"policy={final}"], True)
    assert chat_overrides(["stage=evaluate", "policy=x"], False) == (["stage=evaluate", "policy=x"], [])
    with pytest.raises(ConfigError, match=r"^hardware\.ranks: stage=chat"):
        run_of("stage=chat", "hardware=gpus")


def test_a_damaged_config_beside_it_is_named(tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text("{}")
    for text in ("[", "text", "\x00"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=rf"^policy: {tmp_path}/config\.yaml "):
            chat_overrides(["stage=chat", f"policy={tmp_path}/final"], False)
