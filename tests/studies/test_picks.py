"""Picks among recorded compositions: what chance is expected to find, and that whoever knows more finds more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up_tables import compositions_that_pay

from studies.picks import BEST, FIRST, WAYS, best, by_main_effects, by_trees, picks, table

CELLS = compositions_that_pay(150)


def test_nothing_is_picked_twice_and_all_ways_begin_alike() -> None:
    found = {name: picks(CELLS, way, np.random.default_rng(3), 24) for name, way in WAYS.items()}
    for rows in found.values():
        assert len(set(rows.tolist())) == len(rows) == 24
        assert rows[:FIRST].tolist() == found["at random"][:FIRST].tolist()
    again = picks(CELLS, by_trees(1.0), np.random.default_rng(3), 24)
    assert again.tolist() == found["trees and a standard deviation (in use)"].tolist()
    assert sorted(picks(CELLS, by_main_effects, np.random.default_rng(0), 150)) == list(range(150))


def test_chance_finds_what_the_order_statistic_says() -> None:
    """The highest of k out of n, without replacement: E = sum over ranks r of v_r C(r - 1, k - 1) / C(n, k)."""
    values, k = np.sort(CELLS.overall), 20
    chances = [math.comb(rank, k - 1) / math.comb(150, k) for rank in range(150)]
    expected = float(values @ chances)
    found = [best(CELLS, picks(CELLS, None, np.random.default_rng([1, n]), k))[1] for n in range(400)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 20)
    top = np.argsort(-CELLS.overall)[:BEST]
    assert best(CELLS, top) == (pytest.approx(values[-BEST:].mean()), values[-1])


def test_who_knows_what_pays_finds_more() -> None:
    def mean(way: object) -> float:
        return float(np.mean([best(CELLS, picks(CELLS, way, np.random.default_rng([2, n]), 36))[0] for n in range(8)]))  # type: ignore[arg-type]

    chance, trees = mean(None), mean(by_trees(1.0))
    assert trees > chance + 1.0
    assert mean(lambda cells, known, rows: cells.overall[rows]) > trees


def test_the_table_has_a_row_for_every_way() -> None:
    lines = table(CELLS, 2).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in WAYS]
    assert all(line.count("[") == 2 for line in lines[2:])
