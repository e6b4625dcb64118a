"""Statistics of a panel of known algorithms, which show whether the testbed can distinguish them, and their page.

These are pure functions of evaluations; ``poise calibrate`` trains the panel and calls ``summarize`` and ``render``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import Interval, overall_interval, paired_delta
from poise_core.testbed.panel import Rates

Array = npt.NDArray[np.float64]

EXPECTED_LOW = ("sa", "dcbe", "reinforce_group_baseline", "rloo")
"""Published collapses, and algorithms that ignore how far inner epochs have moved the policy."""

TIER_ERROR = 0.05
"""Over all pairs of the panel."""

POWER_Z = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
"""For a two-sided test at 5 % with 80 % power."""


@dataclass(frozen=True)
class PanelRow:
    """The statistics of one algorithm of the panel."""

    name: str
    overall: Interval
    delta: Interval  # to the baseline, paired by seed and problem
    seed_std: float
    report_overall: float
    completion_length: float
    format_valid: float
    benchmarks: dict[str, float]
    tier: int
    rates: Rates | None = None  # what it scored at each learning rate; None where one was tried


@dataclass(frozen=True)
class Summary:
    """The statistics of the panel under one base policy."""

    policy: str
    rows: tuple[PanelRow, ...]  # best first; without the untrained policy
    untrained: float  # Overall of the base policy
    baseline: str
    baseline_overall: float
    baseline_std: float
    pooled_seed_std: float
    between_std: float
    between_share: float
    seeds_for_two_points: int
    split_correlation: float
    failed: tuple[tuple[str, str], ...]  # (name, what happened)

    @property
    def gain(self) -> float:
        """Points that the baseline gains over the untrained policy."""
        return self.baseline_overall - self.untrained

    @property
    def headroom(self) -> float:
        """Points between the baseline and 100."""
        return 100.0 - self.baseline_overall


def summarize(
    policy: str,
    protocol: Protocol,
    search: Mapping[str, Sequence[SeedEvaluation]],
    report: Mapping[str, Sequence[SeedEvaluation]],
    untrained: SeedEvaluation,
    baseline: str,
    failed: Sequence[tuple[str, str]] = (),
    rates: Mapping[str, Rates] | None = None,
) -> Summary:
    """Summarize a panel.

    Args:
        policy: name of the base policy.
        protocol: the protocol of all evaluations.
        search: algorithm -> its evaluations on the search split, at least two seeds each.
        report: the same for the report split.
        untrained: the base policy on the search split.
        baseline: name of the algorithm that deltas refer to.
        failed: algorithms that did not finish, with the reason.
        rates: algorithm -> its scores at each learning rate, where several were tried.
    """
    overalls = {name: np.array([e.overall for e in evals]) for name, evals in search.items()}
    means = {name: float(values.mean()) for name, values in overalls.items()}
    order = sorted(means, key=lambda name: -means[name])
    tiers = _tiers(order, overalls)
    rows = tuple(_row(name, protocol, search, report, baseline, tiers[name], (rates or {}).get(name)) for name in order)
    within = float(np.mean([values.var(ddof=1) for values in overalls.values()]))
    seeds = min(len(values) for values in overalls.values())
    # the variance of the means is that between algorithms plus the seed variance divided by the number of seeds
    between = max(0.0, float(np.var(list(means.values()), ddof=1)) - within / seeds)
    differences = [overalls[name] - overalls[baseline] for name in order if name != baseline]
    paired_variance = float(np.median([difference.var(ddof=1) for difference in differences]))
    searched = [means[name] for name in order]
    reported = [float(np.mean([e.overall for e in report[name]])) for name in order]
    return Summary(
        policy=policy,
        rows=rows,
        untrained=untrained.overall,
        baseline=baseline,
        baseline_overall=means[baseline],
        baseline_std=float(overalls[baseline].std(ddof=1)),
        pooled_seed_std=math.sqrt(within),
        between_std=math.sqrt(between),
        between_share=between / (between + within) if between + within > 0 else 0.0,
        seeds_for_two_points=max(2, math.ceil(paired_variance * (POWER_Z / 2.0) ** 2)),
        split_correlation=float(stats.spearmanr(searched, reported).statistic),
        failed=tuple(failed),
    )


def rank_correlation(one: Summary, other: Summary) -> float:
    """Return the Spearman correlation of two summaries' Overall over the algorithms that both have."""
    theirs = {row.name: row.overall.estimate for row in other.rows}
    shared = [row for row in one.rows if row.name in theirs]
    return float(
        stats.spearmanr([row.overall.estimate for row in shared], [theirs[row.name] for row in shared]).statistic
    )


def _tiers(order: Sequence[str], overalls: Mapping[str, Array]) -> dict[str, int]:
    """Return the tier of each algorithm; a new tier begins with the first algorithm significantly below the tier's best.

    Significance is the Games-Howell test at 5 % over all pairs of the panel, which needs no equal variances: an algorithm that is
    far less stable than the rest is told apart by its own noise, and lends none of it to the others.
    """
    tiers: dict[str, int] = {}
    tier, best = 1, order[0]
    for name in order:
        if games_howell(overalls[best], overalls[name], len(order)) < TIER_ERROR:
            tier, best = tier + 1, name
        tiers[name] = tier
    return tiers


def games_howell(one: Array, other: Array, groups: int) -> float:
    """p-value of a difference of two of ``groups`` means with unequal variances (Games and Howell 1976, J. Educ. Stat. 1, 113).

        q = sqrt(2) |mean_1 - mean_2| / sqrt(v_1 / n_1 + v_2 / n_2),  p = P(Q > q)

    with Q the studentized range of ``groups`` means and Welch's degrees of freedom. v divides by n - 1. Where neither varies,
    p is 0 for unlike means and 1 for equal ones.
    """
    parts = [float(values.var(ddof=1)) / len(values) for values in (one, other)]
    gap = abs(float(one.mean()) - float(other.mean()))
    if sum(parts) == 0.0:
        return 0.0 if gap > 0 else 1.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    return float(stats.studentized_range.sf(math.sqrt(2.0) * gap / math.sqrt(sum(parts)), groups, freedom))


def _row(
    name: str,
    protocol: Protocol,
    search: Mapping[str, Sequence[SeedEvaluation]],
    report: Mapping[str, Sequence[SeedEvaluation]],
    baseline: str,
    tier: int,
    rates: Rates | None,
) -> PanelRow:
    evals = search[name]
    return PanelRow(
        name=name,
        overall=overall_interval(evals, protocol),
        delta=paired_delta(evals, search[baseline], protocol),
        seed_std=float(np.std([e.overall for e in evals], ddof=1)),
        report_overall=float(np.mean([e.overall for e in report[name]])),
        completion_length=float(np.mean([e.completion_length for e in evals])),
        format_valid=float(np.mean([e.format_valid for e in evals])),
        benchmarks={
            spec.name: float(np.mean([e.benchmarks[i].score for e in evals]))
            for i, spec in enumerate(protocol.benchmarks)
        },
        tier=tier,
        rates=rates,
    )


def requirements(summaries: Sequence[Summary]) -> list[tuple[str, str, bool]]:
    """Return each requirement of the testbed, the measured value of the first summary, and whether it is met."""
    first = summaries[0]
    lowest = max(row.tier for row in first.rows)
    checks = [
        ("baseline gains at least 8 points over the base policy", f"{first.gain:+.1f}", first.gain >= 8),
        ("at least 15 points of headroom left", f"{first.headroom:.1f}", first.headroom >= 15),
        (
            "seed standard deviation of the baseline's Overall at most 2",
            f"{first.baseline_std:.2f}",
            first.baseline_std <= 2,
        ),
        (
            "between-algorithm standard deviation at least twice the seed standard deviation pooled over algorithms",
            f"{first.between_std:.2f} against {first.pooled_seed_std:.2f}",
            first.between_std >= 2 * first.pooled_seed_std,
        ),
        ("at least three tiers that differ significantly", f"{lowest}", lowest >= 3),
        (
            "a published failure (SA, DCBE) or an uncorrected algorithm (no ratio, off-policy) in the lowest tier",
            ", ".join(row.name for row in first.rows if row.tier == lowest),
            any(row.name in EXPECTED_LOW and row.tier == lowest for row in first.rows),
        ),
        (
            "rank correlation between splits at least 0.8",
            f"{first.split_correlation:.2f}",
            first.split_correlation >= 0.8,
        ),
    ]
    rates = {row.name: row.rates for row in first.rows if row.rates is not None}
    if rates:
        open_ended = [name for name, found in rates.items() if not found.bracketed]
        value = f"{len(rates) - len(open_ended)} of {len(rates)}" + (
            f"; not {', '.join(open_ended)}" if open_ended else ""
        )
        checks.append(("a lower and a higher learning rate are worse for every algorithm", value, not open_ended))
    return checks


def render(summaries: Sequence[Summary], protocols: Sequence[Protocol], command: str) -> str:
    """Render the measured part of ``docs/testbed.md``."""
    first = summaries[0]
    lines = [
        f"Made by `{command}`: {len(first.rows)} algorithms, intervals at 95 %.",
        "",
        "| required | measured | |",
        "|---|---|---|",
        *(f"| {what} | {value} | {'yes' if good else '**no**'} |" for what, value, good in requirements(summaries)),
        "",
    ]
    for summary, protocol in zip(summaries, protocols, strict=True):
        lines += _render_summary(summary, protocol)
    for other in summaries[1:]:
        lines.append(
            f"Rank correlation (Spearman) of Overall between `{first.policy}` and `{other.policy}`: "
            f"{rank_correlation(first, other):.2f}."
        )
    return "\n".join(lines) + "\n"


def _render_summary(summary: Summary, protocol: Protocol) -> list[str]:
    names = [spec.name for spec in protocol.benchmarks]
    lines = [
        f"### Base policy `{summary.policy}` (protocol `{protocol.digest}`)",
        "",
        f"{summary.rows[0].overall.seeds} seeds. Untrained: Overall {summary.untrained:.1f}. Baseline {summary.baseline}: "
        f"{summary.baseline_overall:.1f}, seed standard deviation {summary.baseline_std:.2f}. Seed standard deviation pooled "
        f"over algorithms: {summary.pooled_seed_std:.2f}; between algorithms: {summary.between_std:.2f}, which is "
        f"{100 * summary.between_share:.0f} % of the variance. Seeds needed to detect +2 points with 80 % power (two-sided "
        f"5 %, median paired variance): {summary.seeds_for_two_points}. Rank correlation between the search and the report "
        f"split: {summary.split_correlation:.2f}.",
        "",
        f"| tier | algorithm | Overall | delta to {summary.baseline} | seed std | report split | length | valid | "
        + " | ".join(names)
        + " |",
        "|---|---|---|---|---|---|---|---|" + "---|" * len(names),
    ]
    for row in summary.rows:
        cells = [
            str(row.tier),
            row.name,
            format_interval(row.overall),
            "" if row.name == summary.baseline else _delta(row.delta),
            f"{row.seed_std:.2f}",
            f"{row.report_overall:.1f}",
            f"{row.completion_length:.1f}",
            f"{100 * row.format_valid:.0f} %",
            *(f"{row.benchmarks[name]:.1f}" for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| | {name} | failed: {reason} |" + " |" * (5 + len(names)) for name, reason in summary.failed]
    return [*lines, "", *_render_rates(summary, protocol.training.learning_rate)]


def _render_rates(summary: Summary, learning_rate: float) -> list[str]:
    """The scores of each algorithm at each learning rate, the best one in bold; nothing where one rate was tried."""
    tried = {row.name: row.rates for row in summary.rows if row.rates is not None}
    if not tried:
        return []
    factors = sorted({factor for found in tried.values() for factor in found.tried})
    seeds = max(len(overalls) for found in tried.values() for overalls in found.overalls.values())
    lines = [
        f"Overall at each learning rate, mean of {seeds} seeds which are not those above; in bold the rate of the table above. "
        "Half or twice a rate was tried as long as the lowest or the highest was the best.",
        "",
        "| algorithm | " + " | ".join(f"{learning_rate * factor:.2e}" for factor in factors) + " |",
        "|---|" + "---|" * len(factors),
    ]
    for name, found in tried.items():
        cells = []
        for factor in factors:
            value = f"{np.mean(found.overalls[factor]):.1f}" if factor in found.overalls else ""
            value = value or ("failed" if factor in found.tried else "")
            cells.append(f"**{value}**" if factor == found.best else value)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _delta(delta: Interval) -> str:
    text = format_interval(delta, signed=True)
    return text if delta.excludes_zero else f"{text} not distinguishable"
