"""Numbers that are not finite: found cheaply, never saved, never believed when they are read back."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.algorithms.ilql_heads import HEADS, ILQLHeads, load_heads
from rlhf.answers import scored_once
from rlhf.config.identity import input_runs, run_folder
from rlhf.finite import NotFinite, check_loaded, check_metrics, not_finite
from rlhf.models.loading import ModelError
from rlhf.models.reward_model import NORMALISATION, load_reward_model
from rlhf.models.saving import save_model
from rlhf.run import execute
from rlhf.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from rlhf.runs.folder import RunFolder
from tests.helpers import tiny_model
from tests.test_run import tiny

pytestmark = pytest.mark.usefixtures("torchs_switches")
ONE = ("rollout.iterations=1", "optimization.epochs=1", "optimization.minibatch_size=8")


def test_no_folder_of_the_users_own_is_to_be_deleted(tmp_path):
    bad = {"w": torch.tensor([float("nan")])}
    own, cached = (tmp_path / "inputs" / name for name in ("models", "sft-s0-0123abcd"))
    for folder in (own, cached):
        folder.mkdir(parents=True)
        with pytest.raises(NotFinite, match=r"^model.path: .*give other weights$"):
            check_loaded(bad, folder / "policy", "model.path")
    (cached / "config.yaml").touch()
    with pytest.raises(NotFinite, match=f"delete {cached} and"):
        check_loaded(bad, cached / "policy", "model.path")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_bad_number_is_found_wherever_it_is(bad: float, dtype: torch.dtype):
    tensors = {"whole": torch.ones(3, 2), "ids": torch.arange(4), "none": torch.zeros(0)}
    assert not_finite(tensors) is None
    assert not_finite({**tensors, "odd": torch.tensor([[1.0, bad]], dtype=dtype)}) == "odd"


def test_large_numbers_are_finite():
    """Their norm is not."""
    assert not_finite({"a": torch.full((4,), 3e38), "b": torch.full((4,), 6e4, dtype=torch.float16)}) is None
    assert not_finite({}) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_an_evaluation_that_is_no_number_is_refused(value):
    check_metrics({"eval/reward": 0.5, "train/loss": value}, "less")
    with pytest.raises(NotFinite, match=r"eval/kl is .*; try less"):
        check_metrics({"eval/reward": 0.5, "eval/kl": value}, "less")


def refused(run, match: str) -> Path:
    """The folder of a run that ends in one line, without anything that could be taken for a result."""
    with pytest.raises(NotFinite, match=match) as error:
        execute(run)
    *_, folder = (run_folder(one) for one in [*input_runs(run), run] if (run_folder(one) / "summary.json").exists())
    assert "\n" not in str(error.value)
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    assert not (folder / "final").exists()
    for row in (folder / "metrics.jsonl").read_text().splitlines():
        assert all(value is not None for name, value in json.loads(row).items() if name.startswith("eval/"))
    for file in folder.glob("checkpoints/*/*.safetensors"):
        assert not_finite(load_file(file)) is None
    return folder


@pytest.mark.parametrize("option", ["optimization.learning_rate", "value.learning_rate"])
def test_weights_that_the_last_step_blew_up_are_no_result(tmp_path, cache, option):
    refused(tiny(tmp_path, cache, "apa", *ONE, f"{option}=1e38"), rf"not finite .*smaller .*{option}")


@pytest.mark.parametrize("stage", ["sft", "reward_model"])
def test_a_stage_that_blows_up_leaves_nothing_in_the_cache(tmp_path, cache, stage):
    run = tiny(
        tmp_path, cache if stage == "reward_model" else tmp_path / "cache", "apa",
        f"stage={stage}", f"{stage}.learning_rate=1e38", f"{stage}.steps=1", f"{stage}.eval_every=1",
    )  # fmt: skip
    refused(run, rf"weights are not finite after optimizer step 1 .*a smaller {stage}.learning_rate")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A cache with a finished SFT policy and reward model."""
    cache = tmp_path_factory.mktemp("inputs")
    run = tiny(tmp_path_factory.mktemp("runs"), cache, "apa", *ONE)
    assert execute(run)["status"] == "finished"
    return cache


@pytest.fixture
def poisoned(inputs, tmp_path) -> Path:
    shutil.copytree(inputs, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("stage", [0, 1])
def test_a_poisoned_cache_is_refused_by_name_with_what_to_type(poisoned, tmp_path, stage):
    run = tiny(tmp_path / "runs", poisoned, "apa", *ONE)
    needed = run_folder(input_runs(run)[stage])
    file = needed / "final" / "model.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[0]].view(-1)[3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(NotFinite) as error:
        execute(run)
    assert str(needed / "final") in str(error.value) and f"delete {needed} and type" in str(error.value)
    shutil.rmtree(needed)
    if stage == 0:  # the reward model was made of it
        shutil.rmtree(run_folder(input_runs(run)[1]))
    assert execute(tiny(tmp_path / "again", poisoned, "apa", *ONE))["status"] == "finished"


@pytest.mark.parametrize("content", ['{"mean": NaN, "std": 1.0}', '{"mean": 0.0, "std": 0.0}', "[]", "{}", "\0"])
def test_a_reward_model_is_not_normalised_by_what_is_no_number(poisoned, tmp_path, content):
    run = tiny(tmp_path, poisoned, "apa")
    final = run_folder(input_runs(run)[1]) / "final"
    (final / NORMALISATION).write_text(content)
    with pytest.raises(ModelError, match=rf"{final} \({NORMALISATION} is missing or damaged"):
        load_reward_model(final, max_prompt_tokens=8, max_new_tokens=8)


def test_heads_and_models_that_are_not_finite_are_not_saved(tmp_path):
    heads = ILQLHeads(4, 5, two_qs=True, init_std=0.1, device=torch.device("cpu"))
    heads.save(tmp_path)
    with torch.no_grad():
        heads.v[0].bias[1] = float("inf")
    before = (tmp_path / HEADS).read_bytes()
    with pytest.raises(NotFinite):
        heads.save(tmp_path)
    assert (tmp_path / HEADS).read_bytes() == before
    save_file({name: tensor.contiguous() for name, tensor in heads.state_dict().items()}, tmp_path / HEADS)
    with pytest.raises(NotFinite, match=r"evaluation.policy"):
        load_heads(str(tmp_path), 4, 5, torch.device("cpu"))
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(NotFinite):
        save_model(model, SimpleNamespace(eos_token_id=1, pad_token_id=0, bos_token_id=None), tmp_path / "final")  # type: ignore[arg-type]
    assert not (tmp_path / "final").exists()


class Numbers:
    """Answers whose rollouts are their numbers."""

    def __len__(self) -> int:
        return 300

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return index


def test_cached_scores_that_are_not_finite_are_made_again_and_named(tmp_path, capsys):
    path = tmp_path / "scores.txt"

    def scored() -> torch.Tensor:
        return scored_once(path, Numbers(), lambda rows: rows.float())  # type: ignore[arg-type]

    expected = scored()
    assert capsys.readouterr().out == ""
    numbers = json.dumps([float("nan")] * 300)
    path.write_text(f"{zlib.crc32(numbers.encode())} {numbers}\n")
    assert torch.equal(scored(), expected)
    assert f"{path}: damaged (it holds scores that are not finite)" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path, cache, monkeypatch):
    from tests.test_run import signal_at

    run = tiny(tmp_path, cache, "apa")
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        assert execute(run)["status"] == "interrupted"
    folder = run_folder(run)
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    name = next(name for name in checkpoint.tensors if name.endswith("exp_avg"))
    checkpoint.tensors[name].view(-1)[0] = float("nan")
    state = {key: value for key, value in checkpoint.state.items() if not key.endswith("_sha256")}
    save_checkpoint(folder, state["step"], checkpoint.tensors, state)
    with pytest.raises(CheckpointError, match=rf"the checkpoint's {name} is not finite; overwrite=true"):
        execute(run)
    saved = (tmp_path / "again").rglob("*.safetensors")
    with RunFolder(tmp_path / "again") as again:
        with pytest.raises(NotFinite):
            again.save(3, {"a": torch.tensor([float("nan")])}, {})
        with pytest.raises(NotFinite, match="controller's coef"):
            again.save(3, {}, {"controller": {"coef": float("inf")}})
    assert not list(saved)
