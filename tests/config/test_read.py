"""Who reads an option is stated beside it (`read_by`); here tiny runs are watched as they read their configs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlhf.config
from rlhf.config import ALGO_CONFIGS, RunConfig
from rlhf.config.identity import input_runs, run_folder, run_id
from rlhf.config.options import options
from rlhf.run import execute
from rlhf.runs.state import read_rows
from tests.config.changes import changed
from tests.test_run import tiny, without_time

pytestmark = pytest.mark.usefixtures("torchs_switches")

OF_A_RUN = ("run_folder", "sweep_folder", "input_runs", "input_stages", "forward_rows", "DatasetConfig")
"""The functions of rlhf.config that runs use. The others check, build or compare configs."""

READ_ELSEWHERE = {
    "algo.name": "it chooses the class of algo.*",
    "dataset.kl_budgets": "the analysis reports by them",
    "hardware.parallel_runs": "the launcher goes by it",
    "hardware.slurm": "the launcher goes by it",
    "model.name": "tables and W&B name the model by it",
}
READ_IN_VAIN = {
    "algo.name": "where the policy alone is evaluated",
    "advantages.whiten_over": "where nothing is whitened",
    "dataset.stop_strings": "where SFT is done for a run that refuses them",
    "dataset.template": "where the tokenizer has no chat template",
    "model.trust_remote_code": "where the weights are those of an SFT run",
    "optimization.pack_by_length": "where ilql takes its micro-batches as they come",
    "reward.baseline": "where SFT is done for a run that refuses it",
    "reward.name": "where SFT is done for a run that refuses it",
    "reward.overlap": "where scoring on this CPU would not be faster",
    "reward.path": "where the reward is no model",
    "reward_model.train.merge_adapters": "where there are none",
    "sft.seed": "where weights are loaded",
    "value.coef": "where there is no value network",
    "value.learning_rate": "where there is no value network",
    "value.network": "where ilql has none",
    "value.train": "where all parameters are trained anyhow",
}
"""Options that a run reads where it has no use for them: another value changes nothing."""

COMBINATIONS = {
    "sft": ("stage=sft",),
    "reward_model": ("stage=reward_model",),
    "reference samples": ("stage=reference_samples", "evaluation.reference_responses=2"),
    "online apa": (),
    "online apa with reference samples": ("evaluation.reference_responses=2",),
    "online ppo": ("algo=ppo", "algo.kl.controller=none", "value.network=head", "advantages.whiten=none"),
    "online rloo": ("algo=rloo",),
    "online sums": ("dataset=sums", "reward=verifiable"),
    "online, a function": ("algo=rloo", "reward=python", "reward.path=tests.scorers.made_up:lengths"),
    "offline awr": ("stage=offline", "algo=awr", "reward=sentiment", "model.train.mode=all"),
    "offline ilql": ("stage=offline", "algo=ilql"),
    "evaluate": ("stage=evaluate", "reward=sentiment", "evaluation.policy={sft}"),
    "loaded": (
        *("model=hub", "model.path={sft}", "model.train.mode=lora", "sft.train.mode=lora"),
        *("dataset=preferences", "dataset.path={pairs}", "dataset.num_prompts=null", "dataset.num_sft=null"),
        *("dataset.num_pairs=null", "dataset.max_total_length=38", "reward=sentiment"),
    ),
}


class Watch:
    """Notes the options that runs read while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: dict[str, str] | None = None
        self._sections: dict[int, tuple[str, Any]] = {}
        for kind in [*vars(rlhf.config).values(), *ALGO_CONFIGS.values()]:
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__name__.endswith("Config"):
                monkeypatch.setattr(kind, "__getattribute__", self._reader({f.name for f in dataclasses.fields(kind)}))

    def _reader(self, names: set[str]) -> Callable[[Any, str], Any]:
        def get(config: Any, name: str) -> Any:
            value = object.__getattribute__(config, name)
            if name in names:
                section = "" if isinstance(config, RunConfig) else self._sections.get(id(config), ("?", None))[0]
                path = f"{section}.{name}".lstrip(".")
                if dataclasses.is_dataclass(value):
                    self._sections[id(value)] = path, value  # which also keeps it, and its id
                elif self.read is not None and _is_a_runs(sys._getframe(1)):
                    code = sys._getframe(1).f_code
                    self.read.setdefault(path, f"{code.co_filename}:{code.co_qualname}")
            return value

        return get


def _is_a_runs(frame: Any) -> bool:
    module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname.partition(".")[0]
    return module.startswith("rlhf.") and (not module.startswith("rlhf.config") or function in OF_A_RUN)


@pytest.fixture(scope="module")
def combination(tmp_path_factory) -> Callable[[str], RunConfig]:
    folder, cache = tmp_path_factory.mktemp("watched"), tmp_path_factory.mktemp("inputs")
    asks = [f"\n\nHuman: {number}?\n\nAssistant:" for number in range(80)]
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"chosen": f"{ask} Yes.", "rejected": f"{ask} No."}) + "\n" for ask in asks))

    def run(name: str) -> RunConfig:
        places = {"pairs": str(pairs)}
        if any("{sft}" in text for text in COMBINATIONS[name]):
            sft = input_runs(tiny(folder, cache))[0]
            execute(sft)
            places["sft"] = str(run_folder(sft) / "final")
        overrides = [text.format(**places) for text in COMBINATIONS[name]]
        return tiny(folder, cache, "apa", "rollout.iterations=2", "optimization.epochs=1", *overrides)

    return run


@pytest.fixture(scope="module")
def reads_of() -> dict[tuple[str, str], dict[str, str]]:
    """What each run has read, by stage and id."""
    return {}


def watched(run: RunConfig, known: dict[tuple[str, str], dict[str, str]], watch: Watch) -> dict[str, str]:
    """What the run reads, its inputs apart."""
    key = run.stage.name, run_id(run)
    if key not in known:
        for needed in input_runs(run):
            watched(needed, known, watch)
        watch.read = known[key] = {}
        try:
            assert execute(dataclasses.replace(run, overwrite=True))["status"] == "finished"
        finally:
            watch.read = None
    return known[key]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_option_is_read_where_it_says_so_and_nowhere_else(name, combination, reads_of, monkeypatch):
    run = combination(name)
    runs = [run, *input_runs(run)]
    watch = Watch(monkeypatch)
    read = {path: place for one in reversed(runs) for path, place in watched(one, reads_of, watch).items()}
    stated = {option.path for option in options(run) if option.unread_by(runs) is None}
    assert stated - read.keys() - READ_ELSEWHERE.keys() == set(), "stated and not read"
    assert {path: read[path] for path in read.keys() - stated - READ_IN_VAIN.keys()} == {}, "read and not stated"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_is_read_in_vain_changes_nothing(name, combination, tmp_path):
    run = combination(name)
    runs = [run, *input_runs(run)]
    other = dataclasses.replace(run, output_dir=str(tmp_path))
    for option in list(options(run)):
        in_vain = option.path in READ_IN_VAIN and option.path not in ("algo.name", "dataset.template", "reward.path")
        if in_vain and option.unread_by(runs) is not None:
            other = changed(other, option)
    assert run_id(other) == run_id(run)
    rows = []
    for each in (run, other):
        assert execute(each)["status"] == "finished"
        rows.append([without_time(row) for row in read_rows(Path(run_folder(each)))])
    assert rows[0] == rows[1]
