"""Two networks at once: the same numbers, the caller's threads and gradient mode, errors of either."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from torch import Tensor

from rlhf import training_batch
from rlhf.algorithms import algorithm_of
from rlhf.models import PolicyModels
from rlhf.models.policy import run_concurrently
from rlhf.training_batch import measure
from rlhf.update import accumulate_gradients
from tests.helpers import policy_models, random_rollouts, tiny_model, value_settings
from tests.test_update import gradients, prepared, settings

pytestmark = pytest.mark.usefixtures("two_threads")


def test_both_run_at_once_with_half_the_threads_each():
    meeting = threading.Barrier(2, timeout=10.0)  # passed by neither where one waits for the other

    def work() -> tuple[str, int]:
        meeting.wait()
        return threading.current_thread().name, torch.get_num_threads()

    (one, threads), (other, others) = run_concurrently(work, work)
    assert one != other and threading.current_thread().name not in (one, other)
    assert threads == others == 1 and torch.get_num_threads() == 2


def test_an_error_comes_once_both_have_ended():
    ended = threading.Event()

    def fails() -> None:
        raise ArithmeticError("the first")

    def lasts() -> None:
        ended.wait(0.2)
        ended.set()
        raise ValueError("the second")

    with pytest.raises(ArithmeticError, match="the first"):
        run_concurrently(fails, lasts)
    assert ended.is_set()
    with pytest.raises(ValueError, match="the second"):
        run_concurrently(lambda: None, lasts)


def test_networks_run_at_once_where_they_share_nothing_that_one_of_them_changes():
    assert (
        policy_models(tiny_model(), "all").runs_concurrently and policy_models(tiny_model(), "last_k").runs_concurrently
    )
    assert not policy_models(tiny_model(), "lora").runs_concurrently  # one base, whose adapters are switched
    for mode in ("all", "last_k", "lora"):
        assert not policy_models(tiny_model(), mode, value_settings("head")).runs_concurrently
        assert not policy_models(tiny_model(), mode, critic=False).runs_concurrently


def one_after_the_other(models: PolicyModels, first, second):
    return first(), second()


@pytest.mark.parametrize("mode", ["all", "last_k"])
def test_gradients_are_the_same_to_the_bit_each_time_and_close_to_those_one_after_the_other(mode, monkeypatch):
    run = settings("ppo", "optimization.micro_batch_size=4")

    def gradients_now() -> Tensor:
        models, _, measured, batch = prepared(run, mode=mode)
        accumulate_gradients(run, algorithm_of(run), models, batch.rows(torch.arange(8)), measured.features)
        return gradients(models)

    first, second = gradients_now(), gradients_now()
    monkeypatch.setattr(PolicyModels, "run_both", one_after_the_other)
    after = gradients_now()
    assert torch.equal(first, second)
    assert (first - after).norm() < 1e-6 * after.norm()


@pytest.mark.parametrize("mode", ["all", "last_k"])
@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_halves_of_the_rollouts_are_measured_at_once_to_the_bits_of_each_part_alone(monkeypatch, mode, num_parts):
    threads = set[str]()
    measure_part = training_batch.measure_part
    halves = min(num_parts, 2)
    at_once, calls = threading.Barrier(halves), itertools.count()

    def noting(*given, **options):
        threads.add(threading.current_thread().name)
        if next(calls) < halves:
            at_once.wait(60)  # for the other half, which does not wait for this one
        return measure_part(*given, **options)

    monkeypatch.setattr(training_batch, "measure_part", noting)
    models = policy_models(tiny_model(), mode)
    rollouts = random_rollouts([4, 2, 3, 1, 4, 2, 3, 1, 5, 5], [3, 5, 1, 2, 4, 3, 5, 1, 2, 4])
    parts = list(torch.randperm(10, generator=torch.Generator().manual_seed(0)).split(10 // num_parts))
    measured = measure(models, rollouts, parts, rows_per_pass=1, by_length=True)
    assert len(threads) == halves and threading.current_thread().name not in threads
    trunk = measured.features.hidden
    assert (trunk is None) == (mode == "all")
    for rows in parts:
        alone = measure(models, rollouts, [rows], rows_per_pass=1, by_length=True)
        for name, column in measured.columns.items():
            assert torch.equal(column[rows], alone.columns[name][rows])
        if trunk is not None and alone.features.hidden is not None:
            torch.testing.assert_close(trunk[rows], alone.features.hidden[rows], atol=1e-6, rtol=1e-6)


def test_nothing_runs_at_once_with_a_models_own_forward_pass_which_may_keep_angles_from_call_to_call(fallback_reason):
    assert not policy_models(tiny_model(), "all").runs_concurrently
    assert not policy_models(tiny_model(), "last_k").runs_concurrently
