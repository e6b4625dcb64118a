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
    context: ProposalContext,
    spec: PromiseSpec | None,
    draws: Callable[[int], Iterator[T]],
    n: int,
    of: Callable[[T], Composition],
) -> list[T] | None:
    """Many draws, the most promising first; None where nothing is known of what is promising.

    Args:
        context: with what the run has scored.
        spec: how much is made of it; None: nothing.
        draws: gives new ones for a number that is wanted, fewer where there are not as many.
        n: draws that are wanted at least.
        of: composition of a draw.
    """
    if spec is None or (promise := promise_of(context)) is None:
        return None
    count = max(n, spec.draws)
    drawn = list(itertools.islice(draws(count), count))
    if not drawn:
        return []
    high = bounds(promise, [of(one) for one in drawn], spec.confidence)
    return [drawn[place] for place in np.argsort(-high, kind="stable")]


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
