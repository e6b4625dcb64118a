"""Which compositions are worth a training, by what those of the run have scored."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from poise_core.agents.roles import ProposalContext
from poise_core.config.search import PromiseSpec
from poise_core.evidence.promise import Promise
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.features import Array, encode_all

T = TypeVar("T")


def promise_of(context: ProposalContext) -> Promise | None:
    """What compositions are expected to score, learned from all that the context has; None where that is too little."""
    if not context.scored:
        return None
    return Promise.learn(
        *encode_all([one.composition for one in context.scored]),
        np.array([one.overall for one in context.scored]),
        np.array([float(one.seeds) for one in context.scored]),
    )


def most_promising(
    draws: Callable[[int], Iterator[T]], promise: Promise, spec: PromiseSpec, n: int, of: Callable[[T], Composition]
) -> tuple[list[T], Array]:
    """Many draws, the most promising first, and (m,) what they may score, percent.

    Args:
        draws: gives new ones for a number that is wanted, fewer where there are not as many.
        promise: what compositions are expected to score.
        spec: how many are drawn, and how much uncertainty counts.
        n: draws that are wanted at least.
        of: composition of a draw.
    """
    count = max(n, spec.draws)
    found = list(itertools.islice(draws(count), count))
    if not found:
        return [], np.empty(0)
    high = bounds(promise, list(map(of, found)), spec.confidence)
    order = np.argsort(-high, kind="stable")
    return [found[place] for place in order], high[order]


def bounds(promise: Promise, compositions: Sequence[Composition], confidence: float) -> Array:
    """(m,) what compositions may score: expected Overall and so many standard deviations, percent."""
    mean, deviation = promise.predict(*encode_all(compositions))
    return mean + confidence * deviation


def on_a_scale(values: Array) -> Array:
    """(m,) values within 0 to 1: 0.5, and a quarter for each of their standard deviations above the mean, cut at two of them."""
    spread = float(values.std())
    if not spread > 0.0:
        return np.full(len(values), 0.5)
    found: Array = np.clip(0.5 + (values - values.mean()) / (4.0 * spread), 0.0, 1.0)
    return found
