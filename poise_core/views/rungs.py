"""The ladder of a run: what each rung cost, what it decided, and whether it predicts the rung that counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise_core.archive import UNTRAINED_ARM, as_appended
from poise_core.config import LadderSpec
from poise_core.evidence.forecast import forecast_each, proxy_dynamics
from poise_core.evidence.racing import proxy_reward
from poise_core.evidence.rankings import Correlation, rank_correlation
from poise_core.evidence.run_evidence import RunEvidence


@dataclass(frozen=True)
class RungReport:
    """Costs, decisions and predictive value of the rungs of one protocol."""

    rungs: list[dict[str, Any]]  # per rung: rung, candidates, promoted, stopped, finished, tokens
    correlations: dict[str, Correlation]  # "proxy -> first", "forecast -> others" and the like, over candidates
    tokens: int  # sampled in training by all candidates, the baseline included
    tokens_without: int | None  # had every candidate of the ladder trained with all seeds; None where none did
    stopped: list[dict[str, Any]]  # rows of candidates that were stopped, with their names

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        correlations = {name: one.to_dict() for name, one in self.correlations.items()}
        stopped = [
            {key: value for key, value in as_appended(row).items() if key != "created_at"} for row in self.stopped
        ]
        return {**vars(self), "correlations": correlations, "stopped": stopped}


def rung_report(evidence: RunEvidence, ladder: LadderSpec) -> RungReport:
    """The ladder of one protocol, whether or not a candidate has reached a rung.

    The proxy of every candidate with a whole training is known, on the ladder or not, so correlations do not need the ladder
    to be switched on. "parent" is the parent's mean Overall, the free forecast
    that any other has to beat. "others" is the mean Overall of the seeds beside the first one: a value and its own mean
    would agree by themselves. "forecast" is that of ``poise_core.evidence.forecast.forecast_each``. Candidates that a rung stopped
    are missing above it, which lowers what can be seen; "Overall at the stop" is that of their policies where the proxy ended.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = evidence.rungs
    known = _known(evidence, ladder)
    whole = [row["tokens"] for row in rows if row["rung"] == "all" and row["decision"] == "finished"]
    on_ladder = {row["candidate_id"] for row in rows}
    spent = evidence.training_tokens
    below = sum(tokens for name, tokens in spent.items() if name not in on_ladder)
    return RungReport(
        rungs=[_rung(rung, [row for row in rows if row["rung"] == rung]) for rung in ("proxy", "first", "all")],
        correlations={
            "proxy -> first": rank_correlation(known.rewards, known.firsts),
            "proxy -> others": rank_correlation(known.rewards, known.others),
            "forecast -> first": rank_correlation(known.forecasts, known.firsts),
            "forecast -> others": rank_correlation(known.forecasts, known.others),
            "first -> others": rank_correlation(known.firsts, known.others),
            "parent -> others": rank_correlation(known.parents, known.others),
            "forecast -> Overall at the stop": rank_correlation(known.forecasts, known.at_stop),
        },
        tokens=sum(spent.values()),
        tokens_without=round(below + len(on_ladder) * sum(whole) / len(whole)) if whole else None,
        stopped=[
            {"name": evidence.candidates[row["candidate_id"]]["name"], **row}
            for row in rows
            if row["decision"] == "stopped"
        ],
    )


@dataclass(frozen=True)
class _Known:
    """Candidate -> percent; a value that is not known is missing or NaN."""

    rewards: dict[str, float]  # of the proxy
    forecasts: dict[str, float]  # of Overall, by the proxy's dynamics and earlier generations
    firsts: dict[str, float]  # Overall at the first seed
    others: dict[str, float]  # mean Overall at the others
    parents: dict[str, float]  # mean Overall of the parent, which costs the child nothing
    at_stop: dict[str, float]  # Overall of the policy at which the proxy ended, of those that were stopped there


def _known(evidence: RunEvidence, ladder: LadderSpec) -> _Known:
    generations = {name: row["generation"] for name, row in evidence.candidates.items() if row["arm"] != UNTRAINED_ARM}
    first = evidence.protocol.seeds[0]
    rewards, firsts, others, dynamics = {}, {}, {}, {}
    at_stop = {
        row["candidate_id"]: overall
        for row in evidence.rungs
        if row["rung"] == "proxy" and (overall := row.get("stopped_overall")) is not None
    }
    names = [name for name in dict.fromkeys((*evidence.evaluations, *at_stop)) if name in generations]
    for name in names:
        own = {one.seed: one.overall for one in evidence.evaluations.get(name, ())}
        rest = [overall for seed, overall in own.items() if seed != first]
        firsts[name] = own.get(first, math.nan)
        others[name] = sum(rest) / len(rest) if rest else math.nan
    if ladder.proxy_steps:
        rewards = dict.fromkeys(names, proxy_reward([], ladder.proxy_steps, ladder.proxy_window))
        for name, seeds in evidence.archive.trajectories(names, evidence.protocol.digest, seed=first):
            rewards[name] = proxy_reward(seeds[first], ladder.proxy_steps, ladder.proxy_window)
            if (found := proxy_dynamics(seeds[first], ladder.proxy_steps, ladder.proxy_window)) is not None:
                dynamics[name] = found
    means = {name: sum(one.overall for one in evals) / len(evals) for name, evals in evidence.evaluations.items()}
    parents = {
        name: means[parent]
        for name, row in evidence.candidates.items()
        if (parent := next(iter(row["parent_ids"]), "")) in means
    }
    return _Known(rewards, forecast_each(generations, dynamics, firsts), firsts, others, parents, at_stop)


def _rung(rung: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count = {what: sum(row["decision"] == what for row in rows) for what in ("promoted", "stopped", "finished")}
    return {"rung": rung, "candidates": len(rows), **count, "tokens": sum(row["tokens"] for row in rows)}
