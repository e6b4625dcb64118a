"""The search for the baseline's own numbers: along one axis after the other, on a log scale, until the optimum is bracketed.

A point is one choice of all numbers. From the best point the neighbours on one axis are measured; where one is better it becomes
the best and the axis goes on in that direction, however far, until both neighbours are worse. Then comes the next axis, and again
from the first one, until a whole pass moves nothing: then the optimum has a worse neighbour on both sides of every axis. Seeds are
halved away (successive halving with two steps): a neighbour that is clearly worse after one seed gets no more, and in the end the
points in front get twice the seeds, since the first of many is in front partly by luck.

Which points are measured follows from the scores alone, so a search that is begun again takes the same way and reads back what is
measured. What the optimum scores on the seeds that chose it is optimistic; whoever uses it measures it again with fresh ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[int, ...]
"""A place on every axis, in their order."""

Scores = Mapping[int, float]
"""Seed -> Overall, percent."""

CLEAR = 4.0
"""Points of Overall at one seed by which a neighbour is clearly worse: three standard deviations of a difference between two
trainings whose seed deviation is 0.9, that of GRPO on the first testbed, and 2.4 where it is 1.2, as on the present one."""

FRONT = 3
"""Points that get twice the seeds in the end, as far as they are within ``CLEAR`` of the best."""

_PASSES = 20


@dataclass(frozen=True)
class Axis:
    """One number on a log scale; place 0 is ``anchor``, every second place is ``ratio`` further, odd ones lie between."""

    name: str
    anchor: float
    ratio: float = 2.0
    lowest: int | None = None  # the last place downwards, where there is one
    off: bool = False  # whether the value of the last place is 0, the number switched off
    whole: bool = False  # places are the values themselves, whole numbers
    fine: bool = False  # whether the search ends on odd places too

    def value(self, place: int) -> float:
        """The number at a place, to three digits."""
        if self.off and place == self.lowest:
            return 0.0
        return float(place) if self.whole else float(f"{self.anchor * self.ratio ** (place / 2):.3g}")

    def neighbours(self, place: int, step: int) -> list[int]:
        """The places on both sides, as far as there are any."""
        found = [place - step, place + step]
        if self.off and self.lowest is not None and self.lowest < place < self.lowest + 2 * step:
            found[0] = self.lowest  # the smallest value above zero: below it is zero
        return [one for one in found if self.lowest is None or one >= self.lowest]

    @property
    def steps(self) -> tuple[int, ...]:
        """Distances of the neighbours that are compared, the widest first."""
        if self.whole:
            return (1,)
        return (2, 1) if self.fine else (2,)


class Spent(Exception):
    """The budget does not allow the next measurement."""


@dataclass
class Search:
    """A search over axes; ``run`` carries it out, and may be called again after ``budget`` has been raised."""

    axes: Sequence[Axis]
    start: Point
    measure: Callable[[Sequence[tuple[Point, tuple[int, ...]]]], Mapping[Point, Scores | str]]
    seeds: Sequence[int]  # of a point; the front of the field gets as many again
    more_seeds: Sequence[int]
    budget: int  # trainings
    scores: dict[Point, dict[int, float]] = field(default_factory=dict)
    failed: dict[Point, str] = field(default_factory=dict)
    trainings: int = 0

    def run(self) -> Point:
        """The optimum, as far as the budget went; ``open_sides`` says where it is not bracketed.

        Raises:
            Spent: the budget is too small for the start.
            ValueError: the start failed in training.
        """
        self._measure([self.start], self.seeds)
        if self.start in self.failed:
            raise ValueError(f"the training of the present numbers failed: {self.failed[self.start]}")
        best = self.start
        try:
            for _ in range(_PASSES):
                settled = self._pass(best)
                if settled != best:
                    best = settled
                    continue
                front = self._front(best)
                self._measure(front, [*self.seeds, *self.more_seeds])
                ahead = self._better(best, front)
                if ahead == best:
                    break
                best = ahead
        except Spent:
            return self._better(best, list(self.scores))
        return best

    def open_sides(self, best: Point) -> tuple[str, ...]:
        """Where the optimum has no worse neighbour, in words: ``kl_coef above 0.1``; empty where it is bracketed everywhere.

        The last place of an axis, such as zero, needs no neighbour below it.
        """
        found = []
        for number, axis in enumerate(self.axes):
            worse = [p[number] for p in self.line(best, number) if self._worse(p, best)]
            place = best[number]
            below = axis.lowest == place or any(one < place for one in worse)
            above = any(one > place for one in worse)
            sides = (("below", below), ("above", above))
            found += [f"{axis.name} {side} {axis.value(place):g}" for side, bracketed in sides if not bracketed]
        return tuple(found)

    def line(self, best: Point, number: int) -> list[Point]:
        """The measured points that differ from the optimum on one axis alone, with the optimum, in order."""
        return sorted(p for p in {*self.scores, *self.failed} if _others(p, number) == _others(best, number))

    def _pass(self, best: Point) -> Point:
        for number, axis in enumerate(self.axes):
            for step in axis.steps:
                while True:
                    places = axis.neighbours(best[number], step)
                    ahead = self._race(best, [(*best[:number], place, *best[number + 1 :]) for place in places])
                    if ahead == best:
                        break
                    best = ahead
        return best

    def _race(self, best: Point, neighbours: Sequence[Point]) -> Point:
        self._measure(neighbours, self.seeds[:1])
        first = self.seeds[0]
        left = [
            point
            for point in neighbours
            if point not in self.failed and self.scores[point][first] > self.scores[best][first] - CLEAR
        ]
        self._measure(left, self.seeds)
        return self._better(best, left)

    def _front(self, best: Point) -> list[Point]:
        """The best point and those next to it in score, of those that all seeds were measured of."""
        whole = [p for p in self.scores if p not in self.failed and set(self.seeds) <= self.scores[p].keys()]
        near = sorted(
            (p for p in whole if self._lead(p, best) > -CLEAR), key=lambda p: (-self._lead(p, best), p != best, p)
        )
        return [best, *(p for p in near if p != best)][:FRONT]

    def _better(self, best: Point, others: Sequence[Point]) -> Point:
        """The point with the largest lead, where any has one: over the seeds that it shares with the best.

        A best that has failed since, with further seeds, gives way to the largest lead even where that is below zero.
        """
        leads = {
            p: self._lead(p, best) for p in others if p not in self.failed and set(self.seeds) <= self.scores[p].keys()
        }
        ahead = max(leads, key=lambda p: (leads[p], p), default=best)
        return ahead if best in self.failed or leads.get(ahead, 0.0) > 0.0 else best

    def _worse(self, point: Point, best: Point) -> bool:
        """Whether it is known to be no better than the best: with all its seeds, or clearly so, or because it failed."""
        if point == best or point in self.failed:
            return point != best
        return set(self.seeds) <= self.scores[point].keys() or self._lead(point, best) <= -CLEAR

    def _lead(self, point: Point, best: Point) -> float:
        mine, theirs = self.scores[point], self.scores[best]
        return statistics.fmean(mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys())

    def _measure(self, points: Sequence[Point], seeds: Sequence[int]) -> None:
        """Measure what is not measured yet of these points; a failure is final.

        Raises:
            Spent: the budget does not allow it.
        """
        wanted = {
            point: tuple(seed for seed in seeds if seed not in self.scores.get(point, {}))
            for point in points
            if point not in self.failed
        }
        requests = [(point, missing) for point, missing in wanted.items() if missing]
        cost = sum(len(missing) for _, missing in requests)
        if not requests:
            return
        if self.trainings + cost > self.budget:
            raise Spent(f"{self.trainings} of {self.budget} trainings are done and the next step needs {cost}")
        self.trainings += cost
        for point, outcome in self.measure(requests).items():
            if isinstance(outcome, str):
                self.failed[point] = outcome
            else:
                self.scores.setdefault(point, {}).update(outcome)


def _others(point: Point, number: int) -> Point:
    return (*point[:number], *point[number + 1 :])
