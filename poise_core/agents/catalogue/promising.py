"""Which compositions are worth a training, by what those of the run have scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from poise_core.agents.catalogue.compositions import read_composition
from poise_core.agents.roles import ProposalContext
from poise_core.evidence.promise import Promise
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.features import Array, encode


def promise_of(context: ProposalContext) -> Promise | None:
    """What compositions are expected to score, learned from all that the context has; None where that is too little."""
    found = [(composition, one) for one in context.scored if (composition := read_composition(one.composition))]
    if not found:
        return None
    coded = [encode(composition) for composition, _ in found]
    return Promise.learn(
        np.array([codes for codes, _ in coded]),
        np.array([numbers for _, numbers in coded]),
        np.array([one.overall for _, one in found]),
        np.array([float(one.seeds) for _, one in found]),
    )


def bounds(promise: Promise, compositions: Sequence[Composition], confidence: float) -> Array:
    """(m,) what compositions may score: expected Overall and so many standard deviations, percent."""
    coded = [encode(one) for one in compositions]
    mean, deviation = promise.predict(
        np.array([codes for codes, _ in coded]), np.array([numbers for _, numbers in coded])
    )
    return mean + confidence * deviation


def on_a_scale(values: Array) -> Array:
    """(m,) values within 0 to 1: 0.5, and a quarter for each of their standard deviations above the mean, cut at two of them."""
    spread = float(values.std())
    if not spread > 0.0:
        return np.full(len(values), 0.5)
    found: Array = np.clip(0.5 + (values - values.mean()) / (4.0 * spread), 0.0, 1.0)
    return found
