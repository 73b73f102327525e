"""No slot of the launcher waits while there is a trial to start, whatever the others take."""

from __future__ import annotations

import pytest

from tests.sweeps.studies import behave, load, search, spans, states

__all__ = ["search"]


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "count"), [(5.0, 9), (20.0, 32)])
def test_long_and_short_trials_on_4_slots(search, tmp_path, seconds, count):
    # Grid order: the trials of 1 and 3 epochs take long, the others 1 s.
    behave(tmp_path, seconds=1.0, long={"1": seconds, "3": seconds})
    code, _ = search(
        f"optimization.epochs=range(1,{count + 1})", "rollout.iterations=1", sampler="grid", n_trials=count
    )
    assert (code, states(load(tmp_path))) == (0, ["COMPLETE"] * count)
    begun = [note["time"] for note in spans(tmp_path, "begin")]
    ended = [note["time"] for note in spans(tmp_path, "finished")]
    # Slots are alike: the i-th to become free is taken by the i-th start after the first four.
    idle = [start - end for end, start in zip(ended, begun[4:], strict=False)]
    assert len(idle) == count - 4 and min(idle) >= 0 and max(idle) < 2.0
    assert ended[-1] - begun[0] < seconds + 4.0


def test_studies_take_turns(search, tmp_path):
    search("algo=apa,ppo,awr", "optimization.epochs=range(1,4)", "hardware.parallel_runs=1", sampler="grid", n_trials=3)
    algos = [note["run"].partition("-")[0] for note in spans(tmp_path, "begin")]
    assert [sorted(algos[i : i + 3]) for i in range(0, 9, 3)] == [["apa", "awr", "ppo"]] * 3
