"""Which mechanisms pay across all candidates of a run: a regression of what candidates gained on what they have.

With x_cm = 1 where candidate c has mechanism m in its table ``MECHANISMS``, and b the baseline,

    delta_c = sum_m beta_m (x_cm - x_bm) + misfit_c + noise_c

beta_m is the credit of m: what Overall gains by having it, all else as it was. There is no intercept, since a candidate with the
baseline's mechanisms has its score. Candidates are not drawn by lot (children of good parents share mechanisms), so the credits of
mechanisms that mostly stand together cannot be told apart: such pairs are named, and an ablation (``poise_core.evidence.ablation``)
tells them apart for one candidate.

Estimation: ridge regression as the posterior of beta_m ~ N(0, tau^2) (Hoerl and Kennard 1970; the Bayesian reading is in Bishop,
Pattern Recognition and Machine Learning, sec. 3.3). The noise of deltas is that of their intervals; they share the baseline, which
correlates them by one half. tau and the standard deviation of the misfit (numbers, interactions) maximize the marginal likelihood
over a grid (empirical Bayes, sec. 3.5 there). Intervals are the posterior's 95 %.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from poise_core.candidate.switches import Switches
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import Interval
from poise_core.evidence.run_evidence import RunEvidence

Array = npt.NDArray[np.float64]

CONFOUNDED = 0.8
"""Cosine of two mechanisms' columns above which their credits cannot be told apart."""

FEWEST = 4
"""Scored candidates below which nothing is estimated."""

_SCALES = np.geomspace(0.1, 30.0, 16)  # of tau and of the misfit, percent points
_TWO_SIDED = float(ndtri(0.975))


@dataclass(frozen=True)
class MechanismCredit:
    """What one mechanism is worth, by all candidates of a run."""

    name: str
    credit: Interval  # percent points; ``seeds`` is the number of candidates behind it
    having: int  # scored candidates that have it
    lacking: int
    in_baseline: bool

    @property
    def verdict(self) -> str:
        """``pays``, ``costs`` or ``not distinguishable``."""
        if not self.credit.excludes_zero:
            return "not distinguishable"
        return "pays" if self.credit.low > 0.0 else "costs"


@dataclass(frozen=True)
class Confounded:
    """Two mechanisms that mostly come and go together."""

    pair: tuple[str, str]
    together: int  # scored candidates in which both differ from the baseline
    apart: int  # those in which one of them does
    opposed: bool  # one comes where the other goes

    @property
    def sentence(self) -> str:
        """In words."""
        first, second = self.pair
        how = "one comes where the other goes" if self.opposed else "they come and go together"
        always = "always" if not self.apart else f"in {self.together} of {self.together + self.apart} candidates"
        return f"{first} and {second}: {how} {always}"


@dataclass(frozen=True)
class Credit:
    """The credits of a run's mechanisms."""

    mechanisms: tuple[MechanismCredit, ...]  # the highest estimate first
    confounded: tuple[Confounded, ...]
    never_varied: tuple[str, ...]  # every candidate has them as the baseline has
    candidates: int  # scored ones that it rests on
    left_out: int = 0  # made, and without a score: refused, failed, stopped or unfinished
    misfit: float = 0.0  # standard deviation of what mechanisms do not explain, percent points
    bare: int = 0  # scored with one seed before there was a noise floor: no interval

    @property
    def sentence(self) -> str:
        """The result in one line."""
        if not self.mechanisms:
            if self.candidates >= FEWEST:
                return f"all {self.candidates} scored candidates have the baseline's mechanisms: there is nothing to credit"
            bare = f", and {self.bare} without an interval," if self.bare else ""
            return f"{self.candidates} scored candidates{bare} are too few to credit mechanisms; {FEWEST} are needed"
        parts = []
        for verdict in ("pays", "costs"):
            found = [one for one in self.mechanisms if one.verdict == verdict]
            if found:
                listed = ", ".join(f"{one.name} {format_interval(one.credit, signed=True)}" for one in found)
                parts.append(f"{verdict.rstrip('s') if len(found) > 1 else verdict}: {listed}")
        return "; ".join(parts) or f"no mechanism's credit is told apart from zero over {self.candidates} candidates"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "says": self.sentence,
            "candidates": self.candidates,
            "left_out": self.left_out,
            "misfit": self.misfit,
            "never_varied": list(self.never_varied),
            "mechanisms": [
                {
                    "name": one.name,
                    "credit": one.credit.estimate,
                    "low": one.credit.low,
                    "high": one.credit.high,
                    "having": one.having,
                    "lacking": one.lacking,
                    "in_baseline": one.in_baseline,
                    "verdict": one.verdict,
                }
                for one in self.mechanisms
            ],
            "confounded": [{"pair": list(one.pair), "says": one.sentence} for one in self.confounded],
        }


def credit(
    gains: Mapping[str, tuple[Collection[str], Interval]], baseline: Collection[str], left_out: int = 0
) -> Credit:
    """Credit mechanisms with what candidates gained.

    Args:
        gains: candidate -> its mechanisms, and its paired delta to the baseline; those without finite limits are left out.
        baseline: mechanisms of the baseline.
        left_out: candidates without a score, for the report.
    """
    usable = {
        name: one for name, one in sorted(gains.items()) if math.isfinite(one[1].low) and one[1].high > one[1].low
    }
    names = sorted({mechanism for has, _ in usable.values() for mechanism in has} | set(baseline))
    has = np.array([[float(name in found) for name in names] for found, _ in usable.values()])
    has = has.reshape(len(usable), len(names))
    design = has - np.array([float(name in baseline) for name in names])
    varied = np.flatnonzero(np.abs(design).sum(axis=0)) if usable else np.array([], dtype=int)
    never = tuple(name for i, name in enumerate(names) if i not in set(varied.tolist()))
    if len(usable) < FEWEST or not len(varied):
        return Credit((), (), never, len(usable), left_out, bare=len(gains) - len(usable))
    design, has = design[:, varied], has[:, varied]
    kept = [names[i] for i in varied]
    gained = np.array([delta.estimate for _, delta in usable.values()])
    deviations = np.array([(delta.high - delta.low) / (2.0 * _TWO_SIDED) for _, delta in usable.values()])
    mean, spread, misfit = _posterior(design, gained, deviations)
    rows = [
        MechanismCredit(
            name,
            Interval(
                float(mean[i]),
                float(mean[i] - _TWO_SIDED * spread[i]),
                float(mean[i] + _TWO_SIDED * spread[i]),
                int(np.abs(design[:, i]).sum()),
            ),
            int(has[:, i].sum()),
            int(len(has) - has[:, i].sum()),
            name in baseline,
        )
        for i, name in enumerate(kept)
    ]
    rows.sort(key=lambda one: (-one.credit.estimate, one.name))
    return Credit(tuple(rows), tuple(_confounded(kept, design)), never, len(usable), left_out, misfit)


def _posterior(design: Array, gained: Array, deviations: Array) -> tuple[Array, Array, float]:
    """Mean and standard deviation of every credit, and the misfit, at the tau and misfit of the highest evidence.

    The noise N of the gains is diagonal but for the baseline that they share, and credits are few. So everything follows from
    X' N^-1 X = Q diag(l) Q' and b = X' N^-1 y, one eigendecomposition for each misfit, and no matrix has candidates on both sides:

        log |N + tau^2 X X'|                 = log |N| + sum log(1 + tau^2 l)
        y' (N + tau^2 X X')^-1 y             = y' N^-1 y - sum (Q' b)^2 / (l + tau^-2)
        covariance and mean of the posterior = Q diag(1 / (l + tau^-2)) Q', and the same times b

    (Sherman-Morrison for N, the matrix determinant lemma and Woodbury for the rest.)

    Args:
        design: (candidates, mechanisms), -1, 0 or 1.
        gained: (candidates,) percent points.
        deviations: (candidates,) standard errors of the same.
    """
    fits = [_Fit.of(design, gained, deviations, float(misfit)) for misfit in (0.0, *_SCALES)]
    best: tuple[float, float, _Fit] = (-math.inf, float(_SCALES[0]), fits[0])
    for tau, fit in itertools.product(_SCALES, fits):
        likelihood = fit.likelihood(float(tau))
        if likelihood > best[0] + 1e-9:
            best = (likelihood, float(tau), fit)
    _, tau, fit = best
    variances = 1.0 / (fit.values + tau**-2)
    mean, variance = fit.vectors @ (variances * fit.projected), fit.vectors**2 @ variances
    # equal columns have equal credits, to the last digit
    same = np.unique(design, axis=1, return_inverse=True)[1].ravel()
    mean, variance = ((np.bincount(same, one) / np.bincount(same))[same] for one in (mean, variance))
    return mean, np.sqrt(variance), fit.misfit


@dataclass(frozen=True)
class _Fit:
    """What the data say under one misfit, whatever tau is; m mechanisms."""

    misfit: float  # percent points
    values: Array  # (m,) l, none below zero
    vectors: Array  # (m, m) Q, one in each column
    projected: Array  # (m,) Q' b
    fixed: float  # log |N| + y' N^-1 y

    @classmethod
    def of(cls, design: Array, gained: Array, deviations: Array, misfit: float) -> _Fit:
        own = 0.5 * deviations**2 + misfit**2  # (candidates,) N = diag(own) + deviations deviations' / 2
        shared = 0.5 / (1.0 + 0.5 * float(deviations @ (deviations / own)))
        along = deviations / own
        level, seen = float(along @ gained), along @ design
        weighted = design / own[:, None]
        values, vectors = np.linalg.eigh(design.T @ weighted - shared * np.outer(seen, seen))
        projected = vectors.T @ (gained @ weighted - shared * level * seen)
        determinant = float(np.log(own).sum()) - math.log(2.0 * shared)
        fixed = determinant + float(gained @ (gained / own)) - shared * level**2
        return cls(misfit, np.maximum(values, 0.0), vectors, projected, fixed)

    def likelihood(self, tau: float) -> float:
        """Log of the marginal likelihood, but for a constant."""
        explained = float((self.projected**2 / (self.values + tau**-2)).sum())
        return -0.5 * (self.fixed + float(np.log1p(tau**2 * self.values).sum()) - explained)


def _confounded(names: Sequence[str], design: Array) -> list[Confounded]:
    """Pairs of columns whose cosine is beyond ``CONFOUNDED``, the closest first."""
    sizes = np.linalg.norm(design, axis=0)
    cosines = (design.T @ design) / np.outer(sizes, sizes)
    found = []
    for i, j in itertools.combinations(range(len(names)), 2):
        if abs(cosines[i, j]) >= CONFOUNDED:
            both = int(np.sum((design[:, i] != 0) & (design[:, j] != 0)))
            either = int(np.sum((design[:, i] != 0) | (design[:, j] != 0)))
            one = Confounded((names[i], names[j]), both, either - both, bool(cosines[i, j] < 0))
            found.append((-abs(float(cosines[i, j])), one))
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].pair))]


TOLD = 6
"""Mechanisms without a clear credit that ``credit_lines`` names at either end."""


def credit_lines(found: Credit) -> list[str]:
    """For a prompt: what pays and what costs, the likeliest of the rest, and what cannot be told apart."""
    clear = [one for one in found.mechanisms if one.verdict != "not distinguishable"]
    rest = [one for one in found.mechanisms if one.verdict == "not distinguishable"]
    ends = rest if len(rest) <= 2 * TOLD else [*rest[:TOLD], *rest[-TOLD:]]
    lines = [
        f"{one.name} {one.verdict} {format_interval(one.credit, signed=True)}, {one.having} have it" for one in clear
    ]
    if ends:
        open_ones = ", ".join(f"{one.name} {format_interval(one.credit, signed=True)}" for one in ends)
        lines.append(f"not told apart from zero: {open_ones}")
    return lines + [f"cannot be told apart: {one.sentence}" for one in found.confounded[:TOLD]]


@lru_cache(maxsize=20_000)  # pages and prompts ask for all of a run again and again
def mechanisms_of(source: str) -> tuple[str, ...]:
    """Names in the table ``MECHANISMS`` of a candidate's file; none where it cannot be read."""
    try:
        return tuple(Switches.of(source).mechanisms)
    except ValueError:
        return ()


def run_credit(evidence: RunEvidence) -> Credit:
    """Of a run, by every scored candidate of its evolution."""
    base = evidence.baseline
    if base is None:
        return Credit((), (), (), 0)
    arm = evidence.candidates[base]["arm"]
    made = [row for name, row in evidence.candidates.items() if row["arm"] == arm and name != base]
    gains = {}
    for row in made:
        delta = evidence.delta(row["candidate_id"], base)
        if delta is not None:
            gains[row["candidate_id"]] = (mechanisms_of(row["source"]), delta)
    return credit(gains, mechanisms_of(evidence.candidates[base]["source"]), len(made) - len(gains))
