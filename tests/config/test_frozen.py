"""The config.yaml of run folders: an edited one is told, and so is the run that a new one is near to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf.config import RunConfig
from rlhf.config.build import config_to_mapping
from rlhf.config.identity import edited, other_server, run_folder, starts_anew
from tests.config.composed import config


def written(run: RunConfig) -> Path:
    file = run_folder(run) / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(config_to_mapping(run)))
    return file


def test_a_run_with_one_other_setting_starts_anew(tmp_path):
    place = f"output_dir={tmp_path}"
    assert starts_anew([config(place)]) == ""
    folder = written(config(place)).parent
    written(config(place, "algo.lam=3", "rollout.temperature=0.5"))
    assert starts_anew([config(place)]) == ""  # it goes on
    assert starts_anew([config(place, "seed=1")]) == "" == starts_anew([config(place, "algo=ppo")])
    assert starts_anew([config(place, "rollout.iterations=2")]) == (
        f"starts anew: rollout.iterations (2 here, 24 there) differs from run {folder.name}"
    )


def test_an_edited_config_is_told(tmp_path):
    run = config(f"output_dir={tmp_path}")
    assert edited(run_folder(run), run) == ""
    file = written(run)
    assert edited(file.parent, run) == ""
    file.write_text(yaml.safe_dump(config_to_mapping(config("tracking=none", f"output_dir={tmp_path}/moved"))))
    assert edited(file.parent, run) == ""  # what changes no result may differ
    file.write_text(yaml.safe_dump(config_to_mapping(config("algo.lam=3"))))
    assert edited(file.parent, run) == "algo.lam had been edited"


@pytest.mark.parametrize("junk", ["", "[", "\x00", "a: b", "- 1", "\udcff"])
def test_junk_in_the_place_of_a_config_is_told(tmp_path, junk):
    run = config(f"output_dir={tmp_path}")
    file = written(run)
    file.write_bytes(junk.encode("utf-8", "surrogateescape"))
    assert edited(file.parent, run) == "it is no config of a run"


def test_another_reward_server_is_told(tmp_path):
    here, there = (config("reward=http", f"reward.url=http://{host}/score", f"output_dir={tmp_path}") for host in "ab")
    assert other_server(run_folder(here), here) == ""
    folder = written(here).parent
    assert folder == run_folder(there) and other_server(folder, here) == ""
    line = other_server(folder, there)
    assert "http://b/score" in line and "http://a/score" in line and "\n" not in line
