"""A secret comes from the environment or a file, and stays there: in no file, no line, no run id."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from rlhf.config.build import ConfigError, config_to_mapping
from rlhf.config.identity import run_folder, run_id
from rlhf.scorers.http import RewardServerError
from rlhf.urls import secret_in, secret_in_url
from sweeps.experiment import run_folders
from sweeps.settings import DEFAULTS, study_settings
from sweeps.single import run_single
from sweeps.study_storage import open_storage
from tests.config.composed import checked, composed, config
from tests.scorers.made_up import Server, says, scores_of, serving
from tests.test_run import tiny

CANARY = "canary-4fa8c1d0b7e29365"
LENGTH = scores_of(lambda _, response: len(response) / 10)


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{CANARY}@host/score",
        f"http://{CANARY}@host:8000/",
        f"http://host/score?key={CANARY}",
        f"https://host/?model=a&api_key={CANARY}",
        f"https://host/?access_token={CANARY}",
        f"http://host/?q={CANARY}",
        f"http://host/#token={CANARY}",
        f"http://[host/{CANARY}@x",
        f"http://host/sk-{CANARY.replace('-', '')}",
    ],
)
def test_a_secret_in_an_address_is_refused_without_showing_it(url: str):
    with pytest.raises(ConfigError) as error:
        config("reward=http", f"reward.url={json.dumps(url)}")
    (line,) = error.value.problems
    assert line.startswith("reward.url: ") and "reward.token_env=" in line
    assert CANARY not in line and CANARY.replace("-", "") not in line


@pytest.mark.parametrize(
    "url",
    [
        "http://host:8000/score",
        "https://[::1]:80/",
        "http://host/?model=helpful&monkey=3",
        "http://host/a/b-c_d?n=12",
        "http://host/?max_tokens=9",
    ],
)
def test_a_plain_address_is_taken(url: str):
    assert secret_in_url(url) is None
    mapping = composed("reward=http")
    mapping["reward"] |= {"url": url, "server": "mine"}
    checked(mapping, {})


@pytest.mark.parametrize(
    "text",
    [
        f"export API_TOKEN={CANARY}",
        f"WANDB_API_KEY='{CANARY}' true",
        f"git clone https://me:{CANARY}@host/x.git",
        "hf_0123456789abcdefghijklmn",
        "ghp_0123456789abcdefghijklmn",
        f"export=WANDB_API_KEY={'0123456789abcdef' * 2}",
        f"export=ALL,WANDB_API_KEY={'0123456789abcdef' * 2},A=1",
        "export HTTP_PROXY=http://me:pw@proxy:80",
        f'curl -H "Authorization: Bearer {CANARY}" https://host',
        f"curl -H 'X-Api-Key: {CANARY}' https://host",
        f"wandb login --relogin {CANARY}",
        f"huggingface-cli login --token {CANARY}",
        f"tool --api-key={CANARY}",
    ],
)
def test_secrets_are_found_in_any_option(text: str):
    assert secret_in(text)
    for path in ("tracking.tags", "hardware.slurm.setup"):
        group, name = path.rsplit(".", 1)
        mapping = composed("hardware=slurm", "tracking=none")
        place = mapping
        for part in group.split("."):
            place = place[part]
        place[name] = ["module load x", text]
        with pytest.raises(ConfigError) as error:
            checked(mapping, {})
        assert any(line.startswith(f"{path}: ") for line in error.value.problems)
        assert all(CANARY not in line for line in error.value.problems)


@pytest.mark.parametrize(
    "text",
    [
        "export OMP_NUM_THREADS=1",
        "source ~/env",
        "export TOKEN=$MY_TOKEN",
        'export TOKEN="$(cat ~/.token12345)"',
        "KEY_FILE=/etc/key",
        "SSH_KEY=keys/id_ed25519",
        "a key",
        "me@host",
        "export CUDA_TOKEN=from-the-setup",
        "export TOKENIZERS_PARALLELISM=false",
        "max_new_tokens=64",
        "runs/max_tokens=512/a",
        "max_tokens=512/a",
        "runs/token=8/final",
        "runs/tokens=100B/final",
        "/data/hf_preference_data_v2",
        "export HTTP_PROXY=http://$USER:$PW@proxy:80",
        "git clone ssh://git@host/x.git",
        'curl -H "Authorization: Bearer $TOKEN" https://host?key=$KEY',
        "wandb login $WANDB_API_KEY",
        "wandb login --host https://wandb.host",
        "http://host/?model=helpful-2026-01-31-step-2000",
    ],
)
def test_what_is_no_secret_is_taken(text: str):
    assert secret_in(text) is None and secret_in(text, shell=True) is None


def test_a_short_password_is_found_where_a_shell_reads_it():
    mapping = composed("hardware=slurm", "tracking=none")
    mapping["hardware"]["slurm"]["setup"] = ["export DB_PASSWORD=hunter22"]
    with pytest.raises(ConfigError, match=r"hardware.slurm.setup: ") as error:
        checked(mapping, {})
    assert "hunter22" not in str(error.value)


def test_a_secret_in_a_wrong_place_is_not_shown():
    mapping = composed("reward=http")
    mapping["reward"] |= {"batch_size": f"http://me:{CANARY}@host/", "scale": f"TOKEN={CANARY}"}
    with pytest.raises(ConfigError, match="a text with a secret is not") as error:
        checked(mapping, {})
    assert len(error.value.problems) == 2 and CANARY not in str(error.value)


def test_an_address_is_no_part_of_a_run_but_the_name_of_its_server_is():
    here, there = (config("reward=http", f"reward.url=http://{place}") for place in ("a:1/x", "b:2/y"))
    named = config("reward=http", "reward.url=http://a:1/x", "reward.server=helpful")
    tokens = config("reward=http", "reward.url=http://a:1/x", "reward.token_env=MY_TOKEN", "reward.retries=1")
    assert run_id(here) == run_id(there) == run_id(tokens) != run_id(named)
    with pytest.raises(ConfigError, match=r"reward.server=NAME"):
        run_folders([here, there])
    assert len(run_folders([here, dataclasses.replace(named)])) == 2


def test_a_token_is_given_by_one_of_two_places():
    with pytest.raises(ConfigError, match=r"reward.token_file: the token comes from reward.token_env"):
        config("reward=http", "reward.url=http://a", "reward.token_env=A", "reward.token_file=b")


def everything_written(*folders: Path) -> bytes:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


@pytest.mark.parametrize("place", ["environment", "file"])
@pytest.mark.usefixtures("torchs_switches")
def test_no_file_and_no_line_of_a_run_holds_its_token(tmp_path, cache, monkeypatch, capfd, place):
    monkeypatch.setattr("rlhf.scorers.http.FIRST_WAIT", 0.02)
    monkeypatch.setenv("MY_TOKEN", CANARY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 24 + CANARY.replace("-", "")[:16])
    monkeypatch.setenv("http_proxy", f"http://me:{CANARY}@127.0.0.1:9")
    (tmp_path / "secret").write_text(f"{CANARY}\n")
    token = "reward.token_env=MY_TOKEN" if place == "environment" else f"reward.token_file={tmp_path / 'secret'}"
    answers = {"environment": [], "file": []}
    back = says(f"<p>you sent {CANARY}</p>", 500)
    with serving(Server(LENGTH, [back])) as server:
        run = tiny(
            tmp_path / "runs", cache, "apa", "rollout.iterations=1", "reward=http", f"reward.url={server.url}", token,
            "tracking.wandb=offline" if place == "environment" else "tracking.wandb=off",
        )  # fmt: skip
        run_single(run)
        answers[place] = [headers.get("Authorization") for headers in server.headers]
        assert set(answers[place]) == {f"Bearer {CANARY}"}
        server.always = says(json.dumps({"scores": CANARY}))
        broken = dataclasses.replace(run, seed=7)
        with pytest.raises(RewardServerError) as error:
            run_single(broken)
    written = everything_written(tmp_path / "runs", cache)
    said = capfd.readouterr()
    told = said.out + said.err + str(error.value) + repr(error.value) + run_folder(run).name
    for secret in (CANARY, CANARY.replace("-", "")[:16]):
        assert secret.encode() not in written and secret not in told
    assert CANARY.encode() not in pickle.dumps(config_to_mapping(run)) + pickle.dumps(error.value)


@pytest.mark.parametrize("content", [None, "", " \n", "two words", "a\nb", "\u00e9", b"\xff\xfe\x00"])
def test_what_is_no_token_is_one_line_that_does_not_show_it(tmp_path, content):
    from rlhf.scorers.http import _token

    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    run = config("reward=http", "reward.url=http://a", f"reward.token_file={file}")
    with pytest.raises(RewardServerError, match=r"^reward\.token_file=.*secret: ") as error:
        _token(run.reward)
    assert "\n" not in str(error.value) and (
        not content or not str(content).strip() or str(content) not in str(error.value)
    )


def test_a_token_that_is_missing_says_what_to_type(monkeypatch):
    from rlhf.scorers.http import _token

    monkeypatch.delenv("MY_TOKEN", raising=False)
    run = config("reward=http", "reward.url=http://a", "reward.token_env=MY_TOKEN")
    with pytest.raises(RewardServerError, match=r"reward.token_env=MY_TOKEN: holds no token; export MY_TOKEN="):
        _token(run.reward)


def studies(**given: object) -> object:
    return study_settings({**DEFAULTS, **given})


def test_a_databases_password_comes_from_the_environment(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"hydra.sweeper.storage: .*env:VARIABLE") as error:
        studies(storage=f"mysql://me:{CANARY}@host/db")
    assert CANARY not in str(error.value)
    for plain in ("mysql://me@host/db", "sqlite:///a.db", "a.journal"):
        studies(storage=plain)
    with pytest.raises(ConfigError, match="the environment has no database URL of that name"):
        open_storage(studies(storage="env:STUDIES"), tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("STUDIES", f"sqlite:///{tmp_path}/studies.db")
    open_storage(studies(storage="env:STUDIES"), tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "studies.db").exists()
    for url in (f"mysql://me:{CANARY}@127.0.0.1:1/db", f"nothing://me:{CANARY}@127.0.0.1:1/db", f"://{CANARY}"):
        monkeypatch.setenv("STUDIES", url)
        with pytest.raises(ConfigError) as error:
            open_storage(studies(storage="env:STUDIES"), tmp_path)  # type: ignore[arg-type]
        assert CANARY not in str(error.value)
