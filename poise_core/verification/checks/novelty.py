"""The check `novelty`: whether a candidate's behaviour is new, and how far it is from the known algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.calls import ContractViolation
from poise_core.candidate.identity import source_digest
from poise_core.candidate.loading import Candidate, load_candidate
from poise_core.verification.drawn import Draw
from poise_core.verification.fingerprint import SAME, Observation, distance, observe, same_behaviour, sketched_distance

ARCHIVED_SHOWN = 5

DISGUISES = 3
"""How many are tried. A millionth can move a token over a threshold, once in some thousand disguises; not in three of three."""

MORE_DISGUISES = 5
"""For a file that behaves otherwise in all of those, to tell whether a millionth decides between equal numbers there."""

AS_IN_DISGUISE = 0.02
"""Largest relative difference of the gradients between the scenario and the scenario in disguise."""


def check_disguise(candidate: Candidate, observed: tuple[Observation, ...], draw: Draw, in_order: bool) -> None:
    """Check that the candidate does not know the scenario of the fingerprint by its looks.

    Args:
        candidate: the candidate.
        observed: its observations on the scenario.
        draw: where the disguises come from.
        in_order: keep the order of a group's completions, for a candidate that takes the first of several equal ones.

    Raises:
        ContractViolation: it behaves otherwise where the scenario is disguised in ways that do not matter.
    """
    seen: list[tuple[Observation, ...]] = []
    for number in range(DISGUISES + MORE_DISGUISES):
        disguise = Draw(draw.rng(f"disguise {number}").getrandbits(63))
        seen.append(observe(candidate, disguise, in_order))
        if number < DISGUISES and distance(observed, seen[-1]) <= AS_IN_DISGUISE:
            return
    apart = [min(distance([plain], [one[index]]) for one in seen) for index, plain in enumerate(observed)]
    # where disguises differ from one another, a millionth decides between equal numbers, and nothing is known by its looks
    decided = [max(distance([seen[0][index]], [one[index]]) for one in seen) for index in range(len(observed))]
    known = [far for far, among in zip(apart, decided, strict=True) if far > AS_IN_DISGUISE >= among]
    if not known and 2 * sum(far <= AS_IN_DISGUISE for far in apart) > len(apart):
        return
    raise ContractViolation(
        f"it behaves otherwise (distance {max(apart):.2g}) when the batches of the fingerprint have another order, other group "
        "ids, more padding and numbers that differ by a millionth; an algorithm does not depend on single exact numbers"
    )


@lru_cache(maxsize=1)
def known_behaviours() -> Mapping[str, tuple[str, tuple[Observation, ...]]]:
    """Map every shipped algorithm to the digest of its source and its observations, computed once per process."""
    found = {}
    for name in list_algorithms():
        candidate = load_candidate(algorithm_path(name))
        found[name] = (source_digest(candidate.source), observe(candidate))
    return found


def nearest_algorithms(observed: tuple[Observation, ...]) -> tuple[tuple[str, float], ...]:
    """Return every known algorithm with its distance, nearest first; ties are ordered by name."""
    distances = {name: distance(observed, known) for name, (_, known) in known_behaviours().items()}
    return tuple(sorted(distances.items(), key=lambda pair: (pair[1], pair[0])))


def nearest_archived(own: str, archived: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    """Return the closest archived candidates by the sketches of their fingerprints, nearest first.

    Args:
        own: the candidate's fingerprint.
        archived: fingerprint -> id.
    """
    distances = ((identifier, sketched_distance(own, other)) for other, identifier in archived.items())
    return tuple(sorted(distances, key=lambda pair: (pair[1], pair[0]))[:ARCHIVED_SHOWN])


def find_duplicate(
    own: str, nearest: tuple[tuple[str, float], ...], archived: Mapping[str, str]
) -> tuple[str | None, bool]:
    """Find an archived candidate or a known algorithm that behaves as this candidate does.

    Args:
        own: the candidate's fingerprint.
        nearest: from ``nearest_algorithms``.
        archived: fingerprint -> id of archived candidates.

    Returns:
        The id or algorithm name, or None; and whether it is in the archive.
    """
    for fingerprint, identifier in archived.items():
        if same_behaviour(own, fingerprint):
            return identifier, True
    if nearest and nearest[0][1] < SAME:
        return nearest[0][0], False
    return None, False
