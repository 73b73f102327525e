"""Gain over KL of one run, or of several together, and its KL efficiency, exact, prompt by prompt.

In the plane of u = sqrt(KL) and reward a run is a chain of straight segments between consecutive evaluations. KL may
fall again, so the chain may turn back. At each u the curve stands at the best point of the chain with sqrt(KL) <= u;
"best" is judged on one half of the evaluation prompts and the gain there is read from the other half, so that noise is
not rewarded (and the gain may be negative). It ends at the run's largest KL: what was not reached has no value.
The upper envelope of several runs is the same over all their chains.

Which point is best depends on the halves' means alone; the gain there is a weighted mean of two neighbouring
evaluations, the same weights for every prompt of the half. Both are linear in u on finitely many pieces, so the
integral is a sum.
sqrt, because reward rises about linearly in it (Bai et al. 2022, Gao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Path:
    """Places on the chains of evaluations over u = sqrt(KL): Q linear pieces, jumps allowed between them. Place 2.25 is
    a quarter of the way from evaluation 2 to 3."""

    edges: np.ndarray  # (Q + 1,) rising, from 0 to the largest sqrt(KL)
    left: np.ndarray  # (Q,) place at the start of each piece
    right: np.ndarray  # (Q,) place at the end of each piece
    last: float  # place at the last edge, where a point may lie upright above the last piece

    def at(self, u: np.ndarray) -> np.ndarray:
        """(M,) places at each sqrt(KL) of u; at a jump the upper side, since the point with that KL counts."""
        if not len(self.left):
            return np.full(len(u), self.last)
        piece = np.clip(np.searchsorted(self.edges, u, side="right") - 1, 0, len(self.left) - 1)
        share = (u - self.edges[piece]) / (self.edges[piece + 1] - self.edges[piece])
        inside = self.left[piece] + share * (self.right[piece] - self.left[piece])
        return np.where(u >= self.edges[-1], self.last, inside)

    def mean(self, end: float, count: int) -> np.ndarray:
        """(count,) mean weight of each evaluation over u from 0 to `end`, above 0 and at most the last edge."""
        start, length = self.edges[:-1], np.diff(self.edges)
        width = np.clip(end - start, 0.0, length)
        at_end = self.left + (self.right - self.left) * (width / length)
        return (_weights(self.left, width, count) + _weights(at_end, width, count)) / (2.0 * end)


def _weights(places: np.ndarray, amounts: np.ndarray, count: int) -> np.ndarray:
    """(count,) what each evaluation gets where two neighbours share the amount between them."""
    below = places.astype(int)
    share = places - below
    above = np.minimum(below + 1, count - 1)
    return np.bincount(below, amounts * (1.0 - share), count) + np.bincount(above, amounts * share, count)


class GainCurve:
    """A run's gain over KL, from its evaluations in order, the first being the initial policy's; or the upper envelope
    of several runs.

    Prompts in even places choose for those in odd places, and the other way round.

    Args:
        kl: (N,) nats, finite. Rounding can make an exact KL of 0 slightly negative: taken as 0.
        gains: (N, P) reward of each prompt minus the initial policy's, finite, P >= 2. Where a run kept the means of
            the two halves alone these are P = 2 "prompts".
        starts: where among the evaluations each run begins.
    """

    def __init__(self, kl: np.ndarray, gains: np.ndarray, starts: Sequence[int] = (0,)) -> None:
        kl = np.maximum(np.asarray(kl, dtype=np.float64), 0.0)
        self.gains_of_prompts = np.asarray(gains, dtype=np.float64)
        assert (
            kl.ndim == 1
            and self.gains_of_prompts.ndim == 2
            and len(kl) == len(gains) > 0
            and self.gains_of_prompts.shape[1] >= 2
        )
        assert np.isfinite(kl).all() and np.isfinite(self.gains_of_prompts).all()
        self.largest_kl = float(kl.max())
        even, odd = (self.gains_of_prompts[:, half::2].mean(axis=1) for half in (0, 1))
        u = np.sqrt(kl)
        self._efficiencies: dict[float, np.ndarray] = {}  # asked for again for each pair of settings
        # The evaluations that count for even prompts, for odd ones.
        self._paths = path(u, odd, starts), path(u, even, starts)

    def reaches(self, kl: float) -> bool:
        """Whether the run reached as much."""
        return self.largest_kl >= kl

    def gain(self, kl: float) -> np.ndarray | None:
        """(P,) each prompt's part of the best gain at KL <= `kl` (nats); their mean is the gain. None where the run
        never reached as much."""
        if not self.reaches(kl):
            return None
        places = (one.at(np.sqrt([kl])) for one in self._paths)
        return self._parts([_weights(place, np.ones(1), len(self.gains_of_prompts)) for place in places])

    def gains(self, kl: np.ndarray) -> np.ndarray:
        """The mean over prompts of `gain` at each of many KLs, all of which the run reached; same shape."""
        u = np.sqrt(np.asarray(kl, dtype=np.float64))
        means = (self.gains_of_prompts[:, half::2].mean(axis=1) for half in (0, 1))
        halves = [
            np.interp(one.at(u), np.arange(len(mean)), mean) for one, mean in zip(self._paths, means, strict=True)
        ]
        return (halves[0] + halves[1]) / 2.0

    def efficiency(self, kl_budget: float) -> np.ndarray | None:
        """(P,) each prompt's part of E(K) = (1 / sqrt K) * integral from 0 to sqrt K of gain(u^2) du, in units of
        reward; their mean is E(K). None where the run never reached the budget, which is above 0."""
        if not self.reaches(kl_budget):
            return None
        if kl_budget not in self._efficiencies:
            end, count = float(np.sqrt(kl_budget)), len(self.gains_of_prompts)
            self._efficiencies[kl_budget] = self._parts([one.mean(end, count) for one in self._paths])
        return self._efficiencies[kl_budget]

    def _parts(self, weights: list[np.ndarray]) -> np.ndarray:
        """The two halves count the same, also where one has a prompt more."""
        prompts = self.gains_of_prompts.shape[1]
        parts = np.empty(prompts)
        for half in (0, 1):
            own = self.gains_of_prompts[:, half::2]
            parts[half::2] = weights[half] @ own * (prompts / (2.0 * own.shape[1]))
        return parts


def path(u: np.ndarray, chosen_on: np.ndarray, starts: Sequence[int] = (0,)) -> Path:
    """Which place on the chains stands for the run at each u: the best by `chosen_on` at or left of it.

    Both are (N,), one per evaluation; a chain begins at each of `starts`. Sweeps u from 0 upwards. Between two
    neighbouring evaluations' values of u the best either stays where it is or rides up a segment; it jumps only where
    an evaluation comes within reach. The initial policy is within reach everywhere (its KL is 0 by definition). Ties go
    to the point reached at lower KL.
    """
    segments = _rising_segments(u, chosen_on, starts)
    sweep = _Sweep(float(chosen_on[0]))
    stops = np.unique(np.append(u, 0.0))
    vertices = np.argsort(u, kind="stable")  # stable: of two evaluations at one u the earlier comes first
    next_vertex = next_segment = 0
    active: list[_Segment] = []
    for index, start in enumerate(stops):
        while next_vertex < len(u) and u[vertices[next_vertex]] <= start:
            vertex = vertices[next_vertex]
            sweep.jump(float(chosen_on[vertex]), float(vertex))
            next_vertex += 1
        while next_segment < len(segments) and segments[next_segment].start <= start:
            active.append(segments[next_segment])
            next_segment += 1
        # A segment whose top is no better than the best so far will never be the best.
        active = [segment for segment in active if segment.end > start and segment.chosen[1] > sweep.best]
        if index + 1 < len(stops):
            sweep.advance(float(start), float(stops[index + 1]), active)
    return sweep.path()


@dataclass(frozen=True)
class _Segment:
    """The chain between two evaluations, read from left to right in u."""

    start: float
    end: float
    chosen: tuple[float, float]  # at start and end, by the half that chooses; rising
    places: tuple[int, int]  # which evaluations stand at start and end

    @property
    def slope(self) -> float:
        return (self.chosen[1] - self.chosen[0]) / (self.end - self.start)

    def at(self, u: float) -> tuple[float, float]:
        """Height and place, in a form that is exact at both ends."""
        share = (u - self.start) / (self.end - self.start)
        height = self.chosen[0] * (1.0 - share) + self.chosen[1] * share
        return height, self.places[0] * (1.0 - share) + self.places[1] * share


def _rising_segments(u: np.ndarray, chosen_on: np.ndarray, starts: Sequence[int]) -> list[_Segment]:
    """Segments that rise from left to right, by their left end.

    The others, upright ones included, have their best point at an evaluation that is within reach no later than any
    other point of theirs.
    """
    segments = []
    for first in sorted(set(range(len(u) - 1)) - {start - 1 for start in starts}):
        a, b = (first, first + 1) if u[first] < u[first + 1] else (first + 1, first)
        if u[a] < u[b] and chosen_on[a] < chosen_on[b]:
            chosen = (float(chosen_on[a]), float(chosen_on[b]))
            segments.append(_Segment(float(u[a]), float(u[b]), chosen, (a, b)))
    return sorted(segments, key=lambda segment: segment.start)


class _Sweep:
    """State of the sweep over u: the best point so far, and the pieces of the path behind it."""

    def __init__(self, best: float) -> None:
        self.best = best  # by the half that chooses
        self.place = 0.0  # of that point
        self.edges = [0.0]
        self.left: list[float] = []
        self.right: list[float] = []

    def jump(self, chosen: float, place: float) -> None:
        if chosen > self.best:
            self.best, self.place = chosen, place

    def advance(self, start: float, end: float, active: list[_Segment]) -> None:
        """From `start` to `end`, across which every segment of `active` runs and rises to above the best so far."""
        position = start
        if active:
            crossings = [s.start + (self.best - s.chosen[0]) / s.slope for s in active]
            first = min(range(len(active)), key=crossings.__getitem__)
            # No segment is above the best at `start`, but for rounding.
            crossing = max(start, crossings[first])
            if crossing < end:
                self._piece(crossing, self.place, self.place)
                position = self._ride(active[first], crossing, end, active)
        if position < end:
            self._piece(end, self.place, self.place)

    def _ride(self, segment: _Segment, position: float, end: float, active: list[_Segment]) -> float:
        """Up `segment` from `position`, changing to a steeper one where it crosses, to `end`."""
        while position < end:
            height, place = segment.at(position)
            next_segment, stop = None, end
            for other in active:
                if other.slope > segment.slope:
                    below = max(0.0, height - other.at(position)[0])
                    crossing = position + below / (other.slope - segment.slope)
                    if crossing < stop:
                        next_segment, stop = other, crossing
            self.best, self.place = segment.at(stop)
            self._piece(stop, place, self.place)
            position = stop
            segment = next_segment or segment
        return position

    def _piece(self, end: float, left: float, right: float) -> None:
        if end > self.edges[-1]:
            self.edges.append(end)
            self.left.append(left)
            self.right.append(right)

    def path(self) -> Path:
        return Path(np.array(self.edges), np.array(self.left), np.array(self.right), self.place)
