"""Two networks at once: the same numbers, the caller's threads and gradient mode, errors of either."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from rlhf import training_batch
from rlhf.beside import beside
from rlhf.training_batch import COLUMNS, measure
from rlhf.update import accumulate_gradients
from tests.helpers import policy_models, random_rollouts, tiny_model, value_settings
from tests.test_update import gradients, prepared, settings

pytestmark = pytest.mark.usefixtures("two_threads")


def test_both_run_at_once_with_half_the_threads_each():
    meeting = threading.Barrier(2, timeout=10.0)  # passed by neither where one waits for the other

    def work() -> tuple[str, int]:
        meeting.wait()
        return threading.current_thread().name, torch.get_num_threads()

    (one, threads), (other, others) = beside(work, work, at_once=True)
    assert one != other and threading.current_thread().name not in (one, other)
    assert threads == others == 1 and torch.get_num_threads() == 2


def test_one_after_the_other_in_this_thread_where_not_asked_for_or_on_one_thread():
    name = threading.current_thread().name
    who = lambda: threading.current_thread().name  # noqa: E731
    assert beside(who, who, at_once=False) == (name, name)
    torch.set_num_threads(1)
    assert beside(who, who, at_once=True) == (name, name)


@pytest.mark.parametrize("enabled", [False, True])
def test_the_gradient_mode_is_the_callers(enabled):
    with torch.set_grad_enabled(enabled):
        found = beside(torch.is_grad_enabled, torch.is_grad_enabled, at_once=True)
    assert found == (enabled, enabled)


def test_an_error_comes_once_both_have_ended():
    ended = threading.Event()

    def fails() -> None:
        raise ArithmeticError("the first")

    def lasts() -> None:
        ended.wait(0.2)
        ended.set()
        raise ValueError("the second")

    with pytest.raises(ArithmeticError, match="the first"):
        beside(fails, lasts, at_once=True)
    assert ended.is_set()
    with pytest.raises(ValueError, match="the second"):
        beside(lambda: None, lasts, at_once=True)


def test_nothing_runs_beside_a_models_own_forward_pass_which_may_keep_angles_from_call_to_call(own_pass):
    assert not policy_models(tiny_model(), "all").apart and not policy_models(tiny_model(), "last_k").apart


def test_which_networks_are_apart():
    assert policy_models(tiny_model(), "all").apart and policy_models(tiny_model(), "last_k").apart
    assert not policy_models(tiny_model(), "lora").apart  # one base, whose adapters are switched
    for mode in ("all", "last_k", "lora"):
        assert not policy_models(tiny_model(), mode, value_settings("head")).apart


@pytest.mark.parametrize("mode", ["all", "last_k"])
def test_gradients_are_the_same_to_the_bit_each_time_and_close_to_those_one_after_the_other(mode, monkeypatch):
    run = settings("ppo", "optimization.micro_batch_size=4")

    def found(at_once: bool) -> Tensor:
        models, _, measured, batch = prepared(run, mode=mode)
        monkeypatch.setattr(type(models), "apart", property(lambda _: at_once))
        accumulate_gradients(run, models, batch.rows(torch.arange(8)), measured.features)
        return gradients(models)

    at_once, after = found(True), found(False)
    assert torch.equal(at_once, found(True))
    assert (at_once - after).norm() < 1e-6 * after.norm()


@pytest.mark.parametrize("mode", ["all", "last_k"])
@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_halves_of_the_rollouts_are_measured_at_once_to_the_bits_of_each_part_alone(monkeypatch, mode, num_parts):
    threads = set[tuple[str, bool]]()
    measure_part = training_batch.measure_part

    def noting(*given, **named):
        threads.add((threading.current_thread().name, named["at_once"]))
        return measure_part(*given, **named)

    monkeypatch.setattr(training_batch, "measure_part", noting)
    models = policy_models(tiny_model(), mode)
    rollouts = random_rollouts([4, 2, 3, 1, 4, 2, 3, 1, 5, 5], [3, 5, 1, 2, 4, 3, 5, 1, 2, 4])
    parts = list(torch.randperm(10, generator=torch.Generator().manual_seed(0)).split(10 // num_parts))
    found = measure(models, rollouts, parts, rows_at_once=1, by_length=True)
    # A single part has its networks apart instead.
    assert {at_once for _, at_once in threads} == {num_parts == 1}
    assert len(threads) == min(num_parts, 2) and (num_parts == 1 or all("beside" in name for name, _ in threads))
    trunk = found.features.hidden
    assert (trunk is None) == (mode == "all")
    for rows in parts:
        alone = measure(models, rollouts, [rows], rows_at_once=1, by_length=True)
        for name in COLUMNS:
            assert torch.equal(getattr(found, name)[rows], getattr(alone, name)[rows])
        if trunk is not None and alone.features.hidden is not None:
            torch.testing.assert_close(trunk[rows], alone.features.hidden[rows], atol=1e-6, rtol=1e-6)
