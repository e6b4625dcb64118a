"""Stuck or not, and whether to go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import node

from poise_core.config.search import AcquisitionSpec, PlateauSpec
from poise_core.evolution.history import History
from poise_core.run_directory import RunDirectory
from poise_core.search.acquisition import AcquisitionSelector
from poise_core.search.nodes import NodeRecord, shrunken_scores
from poise_core.search.plateau import Plateau, assess_plateau, expected_improvement, true_scores
from poise_core.search.shrinkage import posterior

SPEC = PlateauSpec(window=2)
LAPTOP_64 = Path(__file__).parents[2] / "docs" / "results" / "laptop-64"


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


def seeded(name: str, *seeds: float, generation: int = 0) -> NodeRecord:
    """Measured with these seeds."""
    mean = sum(seeds) / len(seeds)
    return node(
        name, mean, ("g0",) if generation else (), seeds=len(seeds), generation=generation, seed_overalls=tuple(seeds)
    )


def around(mean: float) -> tuple[float, ...]:
    """Six numbers of variance 2: 6 x (5 / 3) / 5."""
    return (mean - math.sqrt(5 / 3), mean + math.sqrt(5 / 3)) * 3


def test_the_floor_is_that_of_the_two_nodes_compared() -> None:
    """v = 2 from all three; the best now has six seeds, the best of then two, the other eight one: 2 / 6 + 2 / 2 = 4 / 3."""
    children = [seeded(f"c{g}{i}", 40.0 + i, generation=g) for g in (1, 2, 3, 4) for i in range(2)]
    nodes = [seeded("g0", 49.0, 51.0), *children, seeded("top", *around(60.0), generation=4)]
    state = assess_plateau(nodes, SPEC)
    assert state.noise_floor == pytest.approx(math.sqrt(4 / 3))
    assert not state.stalled


def test_where_the_best_is_still_the_same_node_the_floor_is_that_of_a_rival_with_as_many_seeds() -> None:
    """v = 2, six seeds: 2 x 2 / 6. A floor of zero would make every expectation worth its cost."""
    children = [seeded(f"c{g}{i}", 40.0 + i, generation=g) for g in (1, 2, 3, 4) for i in range(2)]
    state = assess_plateau([seeded("g0", *around(60.0)), *children], SPEC)
    assert (state.gain, state.stalled, state.worth) == (0.0, True, False)
    assert state.noise_floor == pytest.approx(math.sqrt(2 / 3))


def test_true_scores_spread_as_far_as_noise_leaves_unexplained() -> None:
    """One seed each, v = 4: var(x) = 16, tau^2 = 12, weight 3/4. Shrunken 41, 44, 47 vary by 9, each is unknown by 3."""
    everyone = np.ones(3, np.bool_)
    belief = posterior(np.array([40.0, 44.0, 48.0]), np.ones(3), 4.0)
    assert true_scores(belief, everyone) == pytest.approx((44.0, math.sqrt(12.0)))
    two = np.array([True, True, False])  # 41, 44 vary by 4.5
    assert true_scores(belief, two) == pytest.approx((42.5, math.sqrt(4.5 + 3.0)))


def test_a_child_without_a_score_is_paid_for_and_cannot_be_the_best() -> None:
    assert expected_improvement(10.0, 2.0, 12.0, 1, share=0.5) == pytest.approx(0.16663 / 2, abs=1e-4)
    assert expected_improvement(13.0, 0.0, 12.0, 2, share=0.5) == 0.75  # one of two is enough
    nodes = [
        seeded("g0", *around(46.0)),
        *(seeded(f"c{g}{i}", 40.0 + 4 * i, generation=g) for g in (1, 2) for i in range(2)),
    ]
    stopped = [node(f"s{g}{i}", None, ("g0",), generation=g) for g in (1, 2) for i in range(2)]
    without = assess_plateau(nodes, SPEC, parents=1).expected_gain
    assert without is not None
    assert without > 0.01
    assert assess_plateau([*nodes, *stopped], SPEC, parents=1).expected_gain == pytest.approx(without / 2)


def test_where_no_spread_is_recognisable_nothing_is_expected_and_nothing_advised_against() -> None:
    """The children vary by 1 / 3, seeds by 2: tau^2 is estimated as 0, which does not say that the children are alike."""
    nodes = [seeded("g0", *around(41.0))]
    nodes += [seeded(f"c{g}{i}", 40.5 + i, generation=g) for g in (1, 2, 3) for i in range(2)]
    state = assess_plateau(nodes, SPEC)
    assert (state.stalled, state.expected_gain, state.worth) == (True, None, True)
    assert state.describe().endswith("noise floor of 0.82.")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0.0, 0.4])
def test_the_stated_gain_is_the_realised_one_on_average(lost: float) -> None:
    """Children's true scores ~ N(50, 1.5), one seed each with as much noise; a share of them has no score.

    Realised: a further child replaces the best where its true score is above the best's estimate, and gains what it has
    over the best's true score. 400 searches of 8 generations of 3 children; a third of the gain is allowed for chance.
    """
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(200)
    noise *= 1.5 / noise.std(ddof=1)
    stated, realised = [], []
    for _ in range(400):
        truth = {"g0": 50.0 + 1.5 * rng.standard_normal()}
        nodes = [seeded("g0", *(truth["g0"] + noise - noise.mean()).tolist())]
        for generation, place in np.ndindex(8, 3):
            name = f"c{generation}{place}"
            truth[name] = 50.0 + 1.5 * rng.standard_normal()
            measured_as = truth[name] + 1.5 * rng.standard_normal()
            scored = rng.random() >= lost
            child = seeded(name, measured_as, generation=generation + 1)
            nodes.append(child if scored else node(name, None, ("g0",), generation=generation + 1))
        gain = assess_plateau(nodes, PlateauSpec(), parents=3).expected_gain
        if gain is None:
            continue
        scores = shrunken_scores(nodes)
        leader = max(scores, key=scores.__getitem__)
        further = np.where(rng.random((500, 3)) >= lost, 50.0 + 1.5 * rng.standard_normal((500, 3)), -np.inf).max(
            axis=1
        )
        stated.append(gain)
        realised.append(np.where(further > scores[leader], further - truth[leader], 0.0).mean())
    assert len(stated) > 350
    assert np.mean(stated) == pytest.approx(np.mean(realised), rel=1 / 3)


@pytest.fixture(scope="module")
def laptop_64() -> dict[int, Plateau]:
    """Generation -> what would have been said after it, of the run whose archive lies beside the page of its results."""
    run = RunDirectory.read(LAPTOP_64)
    nodes = History(run.archive, run.preset.protocol).nodes()
    search = run.current_preset.search
    return {
        generation: assess_plateau(
            [node for node in nodes if node.generation <= generation], search.plateau, parents=search.parents
        )
        for generation in range(1, search.generations + 1)
    }


def test_no_advice_against_most_generations_that_made_a_champion_candidate(laptop_64: dict[int, Plateau]) -> None:
    """They were made in generations 5, 10, 11, 13, 15 and 16; before 10 and 11 the advice was wrong, see docs/search.md."""
    assert [made for made in (5, 10, 11, 13, 15, 16) if laptop_64[made - 1].worth] == [5, 13, 15, 16]


def test_what_the_documentation_says_of_laptop_64(laptop_64: dict[int, Plateau]) -> None:
    judged = {generation: state for generation, state in laptop_64.items() if state.gain is not None}
    assert list(judged) == list(range(3, 22))
    assert [generation for generation, state in judged.items() if not state.worth] == [*range(5, 11), *range(18, 22)]
    assert [generation for generation, state in judged.items() if not state.stalled] == [3, 5, 6, 7]
    assert sum(state.expected_gain or 0.0 for state in list(judged.values())[:-1]) == pytest.approx(1.98, abs=0.01)
