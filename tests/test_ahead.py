"""While responses are sampled earlier ones are scored; no number moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import rlhf.stages.online as online
from rlhf.config.identity import run_id
from rlhf.data.examples import NO_COLUMNS, Columns
from rlhf.run import execute
from rlhf.scorers.http import RewardServerError
from rlhf.stages.online import EarlyScores, scores_early
from tests.config.composed import config
from tests.scorers.made_up import Server, says, scores_of, serving
from tests.test_run import outcome, tiny

CPU = torch.device("cpu")
LENGTH = scores_of(lambda prompt, response: len(prompt) + len(response) / 10)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("rlhf.scorers.http.FIRST_WAIT", 0.02)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


class Numbers:
    """Texts are numbers, and so are their scores; a text of another kind fails."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before = before

    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        self.before()
        return torch.tensor([float(prompt) + float(answer) for prompt, answer in zip(prompts, answers, strict=True)])


def test_scores_come_back_in_the_order_of_the_rows():
    early = EarlyScores(Numbers(), CPU)
    for _ in range(2):  # one iteration after the other
        early.ask(torch.tensor([3, 0]), ["30", "0"], ["3", "0"])
        early.ask(torch.tensor([2, 1]), ["20", "10"], ["2", "1"])
        assert early.take().tolist() == [0, 11, 22, 33]


def test_asking_does_not_wait_for_the_scores():
    gate = threading.Event()
    early = EarlyScores(Numbers(lambda: gate.wait(10.0)), CPU)
    early.ask(torch.tensor([0]), ["1"], ["1"])
    early.ask(torch.tensor([1]), ["2"], ["2"])
    assert not early.parts[0][1].done()
    gate.set()
    assert early.take().tolist() == [2, 4]


def test_what_the_scorer_raises_comes_where_the_scores_are_taken():
    early = EarlyScores(Numbers(), CPU)
    early.ask(torch.tensor([0]), ["1"], ["no number"])
    with pytest.raises(ValueError, match="no number"):
        early.take()
    early.ask(torch.tensor([0]), ["1"], ["1"])
    assert early.take().tolist() == [2]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("reward=http", "reward.url=http://x", "rollout.batch_size=16"), True),
        (("reward=http", "reward.url=http://x", "rollout.batch_size=64"), False),  # nothing is sampled after one batch
        (("reward=http", "reward.url=http://x", "rollout.batch_size=16", "reward.overlap=false"), False),
        (("rollout.batch_size=16",), False),  # a model on the same cores
        (("hardware=gpu", "rollout.batch_size=16"), True),
        (("hardware=gpu", "reward=sentiment", "rollout.batch_size=16"), False),
    ],
)
def test_where_scores_are_worked_out_early(overrides, expected):
    assert scores_early(config("rollout.num_responses=64", *overrides)) == expected


@pytest.mark.usefixtures("torchs_switches")
def test_a_run_scored_while_it_samples_is_the_run_scored_afterwards(tmp_path, cache, monkeypatch):
    """The server sees the first batch's responses before the second batch is sampled."""
    sampled: list[int] = []
    generate = online.generate
    with serving(Server(LENGTH)) as server:

        def noting(*arguments, as_sampled, **named):
            def note(rows: Tensor, texts: list[str]) -> None:
                as_sampled(rows, texts)
                sampled.append(len(rows))
                before = time.monotonic()
                while overlap == "true" and not any(r["responses"] == texts for r in server.requests):
                    assert time.monotonic() < before + 20, "not asked while the next batch waits"
                    time.sleep(0.01)

            return generate(*arguments, as_sampled=note, **named)

        monkeypatch.setattr(online, "generate", noting)
        runs = []
        for overlap in ("true", "false"):
            overrides = ["reward=http", f"reward.url={server.url}", "rollout.batch_size=2", f"reward.overlap={overlap}"]
            run = tiny(tmp_path, cache, "ppo", *overrides, "rollout.iterations=2")
            assert execute(run)["status"] == "finished"
            runs.append(run)
            sizes = {len(request["responses"]) for request in server.requests}
            assert (2 in sizes) == (overlap == "true"), sizes
            server.requests.clear()
    assert sampled and set(sampled) == {2}
    assert run_id(runs[0]) != run_id(runs[1]) and outcome(runs[0]) == outcome(runs[1])


@pytest.mark.usefixtures("torchs_switches")
def test_a_server_that_fails_while_more_is_sampled_ends_the_run_in_its_line(tmp_path, cache):
    with serving(Server(says("no", 400))) as server:
        overrides = ["reward=http", f"reward.url={server.url}", "rollout.batch_size=2", "reward.normalize=none"]
        with pytest.raises(RewardServerError, match=r"reward\.url"):
            execute(tiny(tmp_path, cache, "ppo", *overrides))
