"""Reward-KL frontier of one run and its KL efficiency, exact.

In the plane of u = sqrt(KL) and reward a run is a chain of straight segments between consecutive evaluations. KL may
fall again, so the chain may turn back. At each u the frontier stands at the best point of the chain with sqrt(KL) <= u;
"best" is judged on one half of the evaluation prompts and the gain there is read from the other half, so that noise is
not rewarded (and the gain may be negative). Both are linear in u on finitely many pieces, so the integral is a sum.
sqrt, because reward rises about linearly in it (Bai et al. 2022, Gao et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frontier:
    """Gain over u = sqrt(KL): P linear pieces, jumps allowed between them, constant after the last."""

    edges: np.ndarray  # (P + 1,) rising, from 0 to the largest sqrt(KL) of the run
    left: np.ndarray  # (P,) gain at the start of each piece
    right: np.ndarray  # (P,) gain at the end of each piece
    beyond: float  # gain at and after the last edge

    def gain(self, u: np.ndarray) -> np.ndarray:
        """Gain at each sqrt(KL) of `u`; at a jump the upper side, since the point with that KL counts."""
        u = np.asarray(u, dtype=np.float64)
        if not len(self.left):
            return np.full(u.shape, self.beyond)
        piece = np.clip(np.searchsorted(self.edges, u, side="right") - 1, 0, len(self.left) - 1)
        share = (u - self.edges[piece]) / (self.edges[piece + 1] - self.edges[piece])
        inside = self.left[piece] + share * (self.right[piece] - self.left[piece])
        return np.where(u >= self.edges[-1], self.beyond, inside)

    def integral(self, end: float) -> float:
        """Integral of the gain over u from 0 to `end`."""
        start = self.edges[:-1]
        length = np.diff(self.edges)
        width = np.clip(end - start, 0.0, length)
        at_end = self.left + (self.right - self.left) * width / length
        tail = max(0.0, end - float(self.edges[-1])) * self.beyond
        return float(np.sum(width * (self.left + at_end) / 2.0) + tail)


@dataclass(frozen=True)
class GainCurve:
    """A run's gain: the mean of the two frontiers (chosen on even prompts, scored on odd; and the other way round)."""

    frontiers: tuple[Frontier, Frontier]
    largest_kl: float  # nats; beyond it the gain is constant

    def gain(self, kl: np.ndarray | float) -> np.ndarray:
        """Best reward reached at KL <= `kl` (nats) minus the initial reward; same shape as `kl`."""
        u = np.sqrt(np.asarray(kl, dtype=np.float64))
        return (self.frontiers[0].gain(u) + self.frontiers[1].gain(u)) / 2.0

    def efficiency(self, kl_budget: float) -> float:
        """E(K) = (1 / sqrt K) * integral from 0 to sqrt K of gain(u^2) du, in units of reward."""
        end = float(np.sqrt(kl_budget))
        return sum(frontier.integral(end) for frontier in self.frontiers) / (2.0 * end)

    def reaches(self, kl_budget: float) -> bool:
        """Whether the run spent the budget; if not, part of E(K) rests on the constant continuation."""
        return self.largest_kl >= kl_budget


def gain_curve(kl: np.ndarray, reward_even: np.ndarray, reward_odd: np.ndarray) -> GainCurve:
    """The gain curve of one run from its evaluations in order, the first being the initial policy's.

    Args:
        kl: (N,) nats, finite. Rounding can make an exact KL of 0 slightly negative: taken as 0.
        reward_even, reward_odd: (N,) mean reward over each half of the evaluation prompts, finite.
    """
    kl = np.maximum(np.asarray(kl, dtype=np.float64), 0.0)
    even = np.asarray(reward_even, dtype=np.float64)
    odd = np.asarray(reward_odd, dtype=np.float64)
    assert kl.ndim == 1 and len(kl) > 0 and kl.shape == even.shape == odd.shape
    assert np.isfinite(kl).all() and np.isfinite(even).all() and np.isfinite(odd).all()
    u = np.sqrt(kl)
    frontiers = (frontier(u, even, odd - odd[0]), frontier(u, odd, even - even[0]))
    return GainCurve(frontiers=frontiers, largest_kl=float(kl.max()))


def frontier(u: np.ndarray, chosen_on: np.ndarray, gain: np.ndarray) -> Frontier:
    """`gain` at the point of the chain that is best by `chosen_on` among those at or left of each u.

    All are (N,), one per evaluation. Sweeps u from 0 upwards. Between two neighbouring evaluations' values of u the
    best either stays where it is or rides up a segment; it jumps only where an evaluation comes within reach. The
    initial policy is within reach everywhere (its KL is 0 by definition). Ties go to the point reached at lower KL.
    """
    segments = _rising_segments(u, chosen_on, gain)
    sweep = _Sweep(best=float(chosen_on[0]), held=0.0)
    stops = np.unique(np.append(u, 0.0))
    vertices = np.argsort(u, kind="stable")  # stable: of two evaluations at one u the earlier comes first
    next_vertex = next_segment = 0
    active: list[_Segment] = []
    for index, start in enumerate(stops):
        while next_vertex < len(u) and u[vertices[next_vertex]] <= start:
            vertex = vertices[next_vertex]
            sweep.jump(float(chosen_on[vertex]), float(gain[vertex]))
            next_vertex += 1
        while next_segment < len(segments) and segments[next_segment].start <= start:
            active.append(segments[next_segment])
            next_segment += 1
        # A segment whose top is no better than the best so far will never be the best.
        active = [segment for segment in active if segment.end > start and segment.chosen[1] > sweep.best]
        if index + 1 < len(stops):
            sweep.advance(float(start), float(stops[index + 1]), active)
    return sweep.frontier()


@dataclass(frozen=True)
class _Segment:
    """The chain between two evaluations, read from left to right in u."""

    start: float
    end: float
    chosen: tuple[float, float]  # at start and end, by the half that chooses; rising
    gains: tuple[float, float]  # at start and end, by the half that scores

    @property
    def slope(self) -> float:
        return (self.chosen[1] - self.chosen[0]) / (self.end - self.start)

    def at(self, u: float, ends: tuple[float, float]) -> float:
        share = (u - self.start) / (self.end - self.start)
        return ends[0] * (1.0 - share) + ends[1] * share  # in this form exact at both ends


def _rising_segments(u: np.ndarray, chosen_on: np.ndarray, gain: np.ndarray) -> list[_Segment]:
    """Segments that rise from left to right, by their left end.

    The others, upright ones included, have their best point at an evaluation that is within reach no later than any
    other point of theirs.
    """
    segments = []
    for first in range(len(u) - 1):
        a, b = (first, first + 1) if u[first] < u[first + 1] else (first + 1, first)
        if u[a] < u[b] and chosen_on[a] < chosen_on[b]:
            chosen = (float(chosen_on[a]), float(chosen_on[b]))
            segments.append(_Segment(float(u[a]), float(u[b]), chosen, (float(gain[a]), float(gain[b]))))
    return sorted(segments, key=lambda segment: segment.start)


class _Sweep:
    """State of the sweep over u: the best point so far, and the pieces of the frontier behind it."""

    def __init__(self, best: float, held: float) -> None:
        self.best = best  # by the half that chooses
        self.held = held  # the other half's gain at that point
        self.edges = [0.0]
        self.left: list[float] = []
        self.right: list[float] = []

    def jump(self, chosen: float, gain: float) -> None:
        if chosen > self.best:
            self.best, self.held = chosen, gain

    def advance(self, start: float, end: float, active: list[_Segment]) -> None:
        """From `start` to `end`, across which every segment of `active` runs and rises to above the best so far."""
        position = start
        if active:
            crossings = [s.start + (self.best - s.chosen[0]) / s.slope for s in active]
            first = min(range(len(active)), key=crossings.__getitem__)
            # No segment is above the best at `start`, but for rounding.
            crossing = max(start, crossings[first])
            if crossing < end:
                self._piece(crossing, self.held, self.held)
                position = self._ride(active[first], crossing, end, active)
        if position < end:
            self._piece(end, self.held, self.held)

    def _ride(self, segment: _Segment, position: float, end: float, active: list[_Segment]) -> float:
        """Up `segment` from `position`, changing to a steeper one where it crosses, to `end`."""
        while position < end:
            height = segment.at(position, segment.chosen)
            next_segment, stop = None, end
            for other in active:
                if other.slope > segment.slope:
                    below = max(0.0, height - other.at(position, other.chosen))
                    crossing = position + below / (other.slope - segment.slope)
                    if crossing < stop:
                        next_segment, stop = other, crossing
            self._piece(stop, segment.at(position, segment.gains), segment.at(stop, segment.gains))
            self.best, self.held = segment.at(stop, segment.chosen), segment.at(stop, segment.gains)
            position = stop
            segment = next_segment or segment
        return position

    def _piece(self, end: float, left: float, right: float) -> None:
        if end > self.edges[-1]:
            self.edges.append(end)
            self.left.append(left)
            self.right.append(right)

    def frontier(self) -> Frontier:
        return Frontier(np.array(self.edges), np.array(self.left), np.array(self.right), self.held)
