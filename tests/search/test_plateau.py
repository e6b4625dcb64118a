"""Stuck or not, and whether to go on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from trees import node

from poise_core.search.acquisition import AcquisitionSelector
from poise_core.search.nodes import NodeRecord
from poise_core.search.plateau import assess_plateau, expected_improvement
from poise_core.search.spec import AcquisitionSpec, PlateauSpec

SPEC = PlateauSpec(window=2)


def measured(
    name: str, overall: float, generation: int, parents: tuple[str, ...] = ("g0",), **extra: Any
) -> NodeRecord:
    """Three seeds one point apart: v = 1, and the noise floor is sqrt(2 / 3) = 0.82."""
    seeds = (overall - 1.0, overall, overall + 1.0)
    return node(name, overall, parents if generation else (), generation=generation, seed_overalls=seeds, **extra)


def test_a_search_that_rises_is_not_stuck_and_one_that_does_not_is() -> None:
    rising = [measured(f"g{g}", 45.0 + 3.0 * g, g) for g in range(5)]
    state = assess_plateau(rising, SPEC)
    assert not state.stalled
    assert state.noise_floor == pytest.approx(math.sqrt(2 / 3))
    assert (state.gain or 0.0) > 5.0
    stuck = [*rising, *(measured(f"h{g}", 50.0, g) for g in (5, 6))]
    state = assess_plateau(stuck, SPEC)
    assert state.stalled
    assert state.gain == 0.0
    assert "which is within the noise floor of 0.82" in state.describe()


def test_nothing_is_said_before_the_window_is_over_or_without_seeds() -> None:
    young = assess_plateau([measured("g0", 45.0, 0), measured("g1", 45.0, 1)], SPEC)
    assert (young.stalled, young.worth, young.describe()) == (False, True, "")
    blind = assess_plateau([node(f"n{g}", 45.0, seeds=1, generation=g) for g in range(5)], SPEC)
    assert not blind.stalled
    assert not assess_plateau([], SPEC).stalled


def test_generations_that_only_failed_count_as_time() -> None:
    nodes = [measured("g0", 45.0, 0), measured("g1", 49.0, 1), node("f2", None, ("g1",), generation=2)]
    assert not assess_plateau(nodes, SPEC).stalled
    state = assess_plateau([*nodes, node("f3", None, ("g1",), generation=3)], SPEC)
    assert state.stalled
    assert state.expected_gain is None


def test_expected_improvement_of_one_draw_is_the_closed_form() -> None:
    """E[(X - b)+] = s (phi(z) - z (1 - Phi(z))), z = (b - m) / s = 1: 2 (0.24197 - 0.15866) = 0.16663."""
    assert expected_improvement(10.0, 2.0, 12.0, 1) == pytest.approx(0.16663, abs=1e-4)
    assert expected_improvement(10.0, 2.0, 12.0, 3) > expected_improvement(10.0, 2.0, 12.0, 1)
    assert expected_improvement(10.0, 0.0, 12.0, 3) == 0.0
    assert expected_improvement(13.0, 0.0, 12.0, 3) == 1.0


def test_hopeless_children_make_another_generation_not_worth_it() -> None:
    nodes = [measured("g0", 60.0, 0)]
    nodes += [measured(f"c{g}{i}", 40.0 + i, g) for g in (1, 2, 3) for i in range(3)]
    state = assess_plateau(nodes, SPEC, tokens=2.5e6)
    assert not state.worth
    assert state.describe().endswith(
        "raise it by 0.00 points for about 2.50 million training tokens: not worth its cost."
    )
    hopeful = [measured("g0", 42.0, 0), *nodes[1:]]
    assert assess_plateau(hopeful, SPEC).worth


def test_a_plateau_gives_the_last_place_to_an_unexplored_branch() -> None:
    nodes = [measured("g0", 50.0, 0, mechanisms={"m": "a"})]
    nodes += [measured(f"c{g}{i}", 45.0 + i, g, mechanisms={"m": "a"}) for g in (1, 2, 3) for i in range(2)]
    nodes.append(measured("odd", 30.0, 1, mechanisms={"m": "z"}))
    spec = AcquisitionSpec(pareto=0.0, diversity=0.0, potential=0.0, performance=1.0, lineage_penalty=0.0)
    chosen = AcquisitionSelector(spec, SPEC).select(nodes, 3, seed=0)
    assert chosen[2].candidate_id == "odd"
    assert "unexplored branch" in chosen[2].reason
    unmoved = AcquisitionSelector(spec, PlateauSpec(window=2, answer=False)).select(nodes, 3, seed=0)
    assert [s.candidate_id for s in unmoved[:2]] == [s.candidate_id for s in chosen[:2]]
    assert unmoved[2].candidate_id != "odd"
    assert AcquisitionSelector(spec, SPEC).select(nodes, 1, seed=0)[0].candidate_id == "g0"  # one place: none to give
