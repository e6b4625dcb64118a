"""The savings of the ladder, replayed on recorded full evaluations.

``python -m studies.ladder_cost RUN_DIR [--out PAGE]``. A run whose candidates were all trained and scored with all
seeds shows what every ladder would have measured and decided. Each ladder is replayed many times, with a random four fifths of
the candidates and the seeds in random order, of which the first ``--search-seeds`` are the search's. The selected candidate has
the best shrunken estimate (``poise_core.search.nodes.shrunken_scores``), as in the search. Regret is measured with the seeds
that the search did not use, which avoids selection bias; if none is left, with all seeds, which the page then states.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from poise_core.archive import EVOLUTION_ARM
from poise_core.config import LadderSpec
from poise_core.config.protocol import FrozenModel
from poise_core.evidence.forecast import Dynamics, Forecast, forecast_each
from poise_core.evidence.format import counted_seeds, format_limits
from poise_core.evidence.intervals import Interval
from poise_core.evidence.rankings import rank_correlation
from poise_core.evidence.stopping import Measurement, Referee
from poise_core.evolution import CandidateRef, Evolution
from poise_core.files import write_atomically
from poise_core.run_directory import RunDirectory
from poise_core.search.nodes import NodeRecord, shrunken_scores
from studies.record import first_children

THRESHOLDS = (
    (0.05, 0.0, 0.10, 0.0),
    (0.05, 0.0, 0.50, 0.0),
    (0.0, 0.10, 0.10, 0.0),
    (0.0, 0.0, 0.50, 0.0),
    (0.0, 0.0, 0.50, 0.25),
    (0.0, 0.10, 0.50, 0.25),
    (0.0, 0.25, 0.50, 0.25),
    (0.0, 0.25, 0.50, 0.50),
    (0.0, 0.50, 0.50, 0.50),
    (0.0, 0.50, 0.75, 0.75),
)
"""Below which a child ends at the proxy by reward and by forecast, after one seed, and behind the leader. The second is that of the
run in ``docs/results/laptop-64``, the third the default of ``ladder:``, the seventh that of the headline, the eighth
that of the preset ``laptop-64``."""

_KEYS = "proxy_stop_below", "forecast_stop_below", "first_stop_below", "leader_stop_below"

SHARE = 0.8

SECOND_STAGE = 0.2
"""Of the candidates, those that get all seeds after one seed of everybody."""

FEATURE_SETS: dict[str, Callable[[Dynamics, float], Dynamics]] = {
    "the proxy's four (in use)": lambda dynamics, _: dynamics,
    "the four and the parent's mean Overall": lambda dynamics, parent: (*dynamics, parent),
    "KL and the parent's mean Overall": lambda dynamics, parent: (dynamics[-1], parent),
    "KL": lambda dynamics, _: dynamics[-1:],
    "the parent's mean Overall, no training at all": lambda _, parent: (parent,),
}
"""Name -> what a forecast may read, from the proxy's dynamics (KL last) and the parent's mean Overall."""


@dataclass(frozen=True)
class Recorded:
    """One candidate with everything measured of it."""

    name: str
    generation: int
    parent: str | None
    overalls: Mapping[int, float]  # seed -> percent
    rewards: Mapping[int, float]  # seed -> the proxy's, percent
    dynamics: Mapping[int, Dynamics | None]  # seed -> the proxy's
    proxy_tokens: Mapping[int, int]
    tokens: Mapping[int, int]  # of the whole training

    def measured(self, scored: Iterable[int], proxied: Iterable[int] = ()) -> Measurement:
        """What a search knows of it.

        Args:
            scored: the seeds that it was evaluated with.
            proxied: those that it was trained with, at least as far as the proxy; the same where not given.
        """
        scored, proxied = tuple(scored), tuple(proxied) or tuple(scored)
        return Measurement(
            {seed: self.overalls[seed] for seed in scored},
            {seed: self.rewards[seed] for seed in proxied},
            {seed: found for seed, found in self.dynamics.items() if found is not None},
        )


Spent = tuple[dict[str, tuple[int, ...]], int]
"""Seeds that each candidate is scored with, and training tokens without the baseline's."""


class Recording(FrozenModel):
    """What replays need of a run; small enough to lie beside the page."""

    name: str
    baseline: str
    ladder: LadderSpec
    candidates: dict[str, Recorded]

    @classmethod
    def of_run(cls, run: RunDirectory, children: int | None = None) -> Recording:
        """See ``read_run``."""
        ladder = run.current_preset.ladder
        baseline, candidates = read_run(run, ladder, children)
        return cls(name=run.path.name, baseline=baseline, ladder=ladder, candidates=candidates)


@dataclass
class Replay:
    """One way to spend over all replays."""

    name: str
    tokens: list[float] = field(default_factory=list)  # per replay
    regrets: list[float] = field(default_factory=list)  # percent points
    ratios: list[float] = field(default_factory=list)  # tokens of evaluate-everything over these
    excess: list[float] = field(default_factory=list)  # regret over that of evaluate-everything


def read_run(run: RunDirectory, ladder: LadderSpec, children: int | None = None) -> tuple[str, dict[str, Recorded]]:
    """The baseline's id and all candidates that have every seed of the run, scored and trained to the end.

    Args:
        run: where they were recorded.
        ladder: says what a proxy is.
        children: only so many, the first that were made. Where a ladder decided who has all seeds, later ones were chosen by score.

    Raises:
        ValueError: there is no baseline with a score.
    """
    archive, protocol, trials = run.archive, run.preset.protocol, Evolution(run).trials
    seeds = run.preset.protocol.seeds[: run.current_preset.search.seeds_per_candidate]
    evaluations = archive.evaluations(protocol=protocol.digest)
    failed = {row["candidate_id"] for row in archive.rows("failures", protocol=protocol.digest)}
    recorded = {}
    baseline = None
    for row in [*archive.rows("candidates", arm=EVOLUTION_ARM, generation=0), *first_children(archive, children)]:
        name = row["candidate_id"]
        overalls = {one.seed: one.overall for one in evaluations.get(name, []) if math.isfinite(one.overall)}
        steps = archive.trajectory(name, protocol.digest)
        # the archive keeps of a stopped one the steps that it was stopped at; it was trained on since then
        for seed in seeds:
            if 0 < len(steps.get(seed, [])) < protocol.training.steps:
                steps[seed] = trials.unfinished_trajectory(CandidateRef.of_row(row), seed)[0]
        whole = {seed: rows for seed, rows in steps.items() if len(rows) == protocol.training.steps}
        if name in failed or not set(seeds) <= overalls.keys() & whole.keys():
            continue
        if not row["parent_ids"]:
            baseline = baseline or name
        measured = Measurement.of({seed: whole[seed] for seed in seeds}, {s: overalls[s] for s in seeds}, ladder)
        proxy = Measurement.of({seed: whole[seed][: ladder.proxy_steps] for seed in seeds}, {}, ladder)
        recorded[name] = Recorded(
            name,
            row["generation"],
            row["parent_ids"][0] if row["parent_ids"] else None,
            measured.overalls,
            measured.rewards,
            {seed: measured.dynamics.get(seed) for seed in seeds},
            proxy.tokens,
            measured.tokens,
        )
    if baseline is None:
        raise ValueError(f"{run.path}: no baseline that was trained and scored with all seeds")
    return baseline, recorded


def run_ladder(
    candidates: Sequence[Recorded], baseline: Recorded, seeds: Sequence[int], ladder: LadderSpec
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Seeds that each candidate is scored with, none where it ends at the proxy, and training tokens without the baseline's."""
    kept: dict[str, tuple[int, ...]] = {baseline.name: tuple(seeds)}
    every = {one.name: one for one in [baseline, *candidates]}
    first, spent = seeds[0], 0
    proxied: dict[str, tuple[int, ...]] = {baseline.name: tuple(seeds)}
    for generation in sorted({one.generation for one in candidates}):
        known = {name: every[name].measured(kept.get(name, ()), own) for name, own in proxied.items()}
        referee = Referee.learn(ladder, seeds, [baseline.name], known)
        new: dict[str, tuple[int, ...]] = {}
        for one in (one for one in candidates if one.generation == generation):
            against = [name for name in dict.fromkeys((one.parent or baseline.name, baseline.name)) if kept.get(name)]
            measured = one.measured([first])
            if referee.decide(measured, "proxy", against).stop:
                new[one.name], spent = (), spent + one.proxy_tokens[first]
                continue
            stop = referee.decide(measured, "first", against).stop
            new[one.name] = (first,) if stop else tuple(seeds)
            spent += sum(one.tokens[seed] for seed in new[one.name])
        kept |= new
        proxied |= {name: own or (first,) for name, own in new.items()}
    return kept, spent


def select(recorded: Mapping[str, Recorded], kept: Mapping[str, Sequence[int]]) -> str:
    """The best shrunken estimate among those with a score."""
    nodes = []
    for name, seeds in kept.items():
        own = tuple(recorded[name].overalls[seed] for seed in seeds)
        if own:
            mean = statistics.fmean(own)
            overall = Interval(mean, -math.inf, math.inf, len(own))
            nodes.append(NodeRecord(name, name, overall=overall, seed_overalls=own))
    scores = shrunken_scores(nodes)
    return max(sorted(scores), key=lambda name: scores[name])


def spend_evenly(candidates: Sequence[Recorded], baseline: Recorded, seeds: Sequence[int], count: int) -> Spent:
    """Everybody with the first ``count`` seeds; what is kept, and training tokens without the baseline's."""
    kept = {one.name: tuple(seeds[:count]) for one in candidates}
    return {baseline.name: tuple(seeds)} | kept, sum(one.tokens[s] for one in candidates for s in seeds[:count])


def spend_in_two_stages(candidates: Sequence[Recorded], baseline: Recorded, seeds: Sequence[int]) -> Spent:
    """Everybody with one seed, then the best fifth with all. It needs all children at once, so a search that builds on its
    children cannot spend this way; it is what the ladder's savings have to be held against."""
    ranked = sorted(candidates, key=lambda one: (-one.overalls[seeds[0]], one.name))
    best = {one.name for one in ranked[: max(1, round(SECOND_STAGE * len(ranked)))]}
    kept = {one.name: tuple(seeds) if one.name in best else (seeds[0],) for one in candidates}
    return {baseline.name: tuple(seeds)} | kept, sum(one.tokens[s] for one in candidates for s in kept[one.name])


def replay(
    recorded: Mapping[str, Recorded], baseline: str, search_seeds: int, ladder: LadderSpec, replays: int, seed: int = 0
) -> list[Replay]:
    """Evaluate-everything first, then the ways that need no ladder, then every ladder of ``THRESHOLDS``."""
    rng = np.random.default_rng(seed)
    everything = Replay("everything, all seeds")
    ladders = [
        (
            ladder.model_copy(update=dict(zip(_KEYS, one, strict=True))),
            Replay("ladder " + ", ".join(f"{x:g}" for x in one)),
        )
        for one in THRESHOLDS
    ]
    plain: dict[str, Callable[[Sequence[Recorded], Recorded, Sequence[int]], Spent]] = {
        **{
            f"everything, {counted_seeds(count)}": partial(spend_evenly, count=count)
            for count in range(1, min(search_seeds, len(recorded[baseline].overalls)))
        },
        "one seed for all, then all seeds for the best fifth": spend_in_two_stages,
    }
    simple = [(spend, Replay(name)) for name, spend in plain.items()]
    others = [one for name, one in recorded.items() if name != baseline]
    numbers = sorted(recorded[baseline].overalls)
    for _ in range(replays):
        order = [int(one) for one in rng.permutation(numbers)]
        chosen = sorted(rng.choice(len(others), max(2, round(SHARE * len(others))), replace=False).tolist())
        some = [others[index] for index in chosen]
        seeds, judges = order[:search_seeds], order[search_seeds:] or order
        truth = {one.name: statistics.fmean(one.overalls[s] for s in judges) for one in [recorded[baseline], *some]}
        best = max(truth.values())
        full = {name: tuple(seeds) for name in truth}
        cost = float(sum(one.tokens[s] for one in some for s in seeds))
        regret = best - truth[select(recorded, full)]
        everything.tokens.append(cost)
        everything.regrets.append(regret)
        ways = [(spend(some, recorded[baseline], seeds), out) for spend, out in simple]
        ways += [(run_ladder(some, recorded[baseline], seeds, spec), out) for spec, out in ladders]
        for (kept, spent), out in ways:
            found = best - truth[select(recorded, kept)]
            out.tokens.append(float(spent))
            out.regrets.append(found)
            out.ratios.append(cost / spent)
            out.excess.append(found - regret)
    return [everything, *(out for _, out in simple), *(out for _, out in ladders)]


def render(name: str, recorded: Mapping[str, Recorded], baseline: str) -> list[str]:
    """What a run has recorded, and which rung predicts."""
    numbers = sorted(recorded[baseline].overalls)
    first = numbers[0]
    proxies = {key: one.rewards[first] for key, one in recorded.items()}
    firsts = {key: one.overalls[first] for key, one in recorded.items()}
    rest = {
        key: statistics.fmean(one.overalls[s] for s in numbers[1:]) if numbers[1:] else math.nan
        for key, one in recorded.items()
    }
    means = {key: statistics.fmean(one.overalls.values()) for key, one in recorded.items()}
    parents = {key: means[one.parent] for key, one in recorded.items() if one.parent in means}
    forecasts = forecast_each(
        {key: one.generation for key, one in recorded.items()},
        {key: found for key, one in recorded.items() if (found := one.dynamics[first]) is not None},
        firsts,
    )
    return [
        f"## {name}",
        "",
        f"{len(recorded)} candidates with {len(numbers)} seeds. Rank correlation with Overall at the same and at the other seeds:",
        "",
        "| | same seed | other seeds |",
        "|---|---|---|",
        *(
            f"| {what} | {rank_correlation(own, firsts).sentence() if own is not firsts else ''} | "
            f"{rank_correlation(own, rest).sentence()} |"
            for what, own in (
                ("reward of the proxy", proxies),
                ("forecast by the proxy's dynamics, from earlier generations", forecasts),
                ("mean Overall of the parent, which costs nothing", parents),
                ("Overall of one seed", firsts),
            )
        ),
        "",
    ]


def render_features(recorded: Mapping[str, Recorded], baseline: str) -> list[str]:
    """What a forecast gains by reading other things: its error, and how it ranks, over the choices of the judging seed."""
    numbers = sorted(recorded[baseline].overalls)
    means = {name: statistics.fmean(one.overalls.values()) for name, one in recorded.items()}
    parents = {name: means.get(one.parent or "", means[baseline]) for name, one in recorded.items()}
    generations = {name: one.generation for name, one in recorded.items()}
    lines = [
        "## What the forecast reads",
        "",
        "Error of a forecast of Overall at the seed that children are judged by, and its rank correlation with the mean of the "
        f"other seeds. Means over the {len(numbers)} choices of that seed, which share candidates.",
        "",
        "| reads | error, leaving one out | error, from earlier generations | rank correlation, from earlier generations |",
        "|---|---|---|---|",
    ]
    for name, chosen in FEATURE_SETS.items():
        left, ahead, ranks = [], [], []
        for first in numbers:
            known = {
                key: chosen(found, parents[key])
                for key, one in recorded.items()
                if (found := one.dynamics[first]) is not None
            }
            firsts = {key: one.overalls[first] for key, one in recorded.items()}
            forecast = Forecast.learn(known, firsts)
            if forecast is None:
                continue
            left.append(forecast.noise.variance)
            said = forecast_each(generations, known, firsts)
            rest = {key: (sum(one.overalls.values()) - firsts[key]) for key, one in recorded.items()}
            ahead += [statistics.fmean((said[key] - firsts[key]) ** 2 for key in said)] if said else []
            ranks.append(rank_correlation(said, rest).rho)
        cells = [
            f"{math.sqrt(statistics.fmean(left)):.2f}" if left else "",
            f"{math.sqrt(statistics.fmean(ahead)):.2f}" if ahead else "",
            f"{statistics.fmean(ranks):.2f}" if ranks else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def render_replays(rows: Sequence[Replay], seeds: int, search_seeds: int) -> list[str]:
    """What one search would have saved and lost."""
    judged = (
        "the other seeds"
        if seeds > search_seeds
        else "**all seeds, those of the search included: everything then has none by construction, and a ladder rather too much**"
    )
    lines = [
        f"### A search with {search_seeds} seeds",
        "",
        f"Regret is judged by {judged}. {len(rows[0].tokens)} replays.",
        "",
        "| way | training tokens, thousands | times less than everything | top-1 regret, points | more regret than everything |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {_range(row.tokens, '.0f', 1e-3)} | {_range(row.ratios, '.1f')} | {_range(row.regrets, '.2f')} | "
        f"{_range(row.excess, '+.2f')} |"
        for row in rows
    ]
    return [*lines, ""]


def _range(values: Sequence[float], form: str, scale: float = 1.0) -> str:
    if not values:
        return ""
    low, high = np.quantile(values, [0.025, 0.975]) * scale
    return format_limits(statistics.fmean(values) * scale, low, high, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """Replay what was recorded, and write it and the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.ladder_cost", description=__doc__)
    parser.add_argument("source", type=Path, help="a run directory, or the JSON file of an earlier call")
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[3])
    parser.add_argument("--replays", type=int, default=500)
    parser.add_argument("--children", type=int, help="the first so many that were made, as in studies.record")
    parser.add_argument("--out", type=Path, default=Path("docs/results/ladder_cost.md"))
    given = parser.parse_args(arguments)
    command = f"python -m studies.ladder_cost {given.source.name}"
    if given.children is not None:
        command += f" --children {given.children}"
    command += f" --search-seeds {' '.join(map(str, given.search_seeds))} --replays {given.replays}"
    data = given.out.with_suffix(".json")
    if given.source.suffix == ".json":
        recording = Recording.model_validate_json(given.source.read_bytes())
    else:
        recording = Recording.of_run(RunDirectory.read(given.source), given.children)
    baseline, candidates = recording.baseline, recording.candidates
    lines = ["# What the ladder saves", "", f"Made by `{command}`; [what was recorded]({data.name}) makes it, too.", ""]
    lines += [" ".join(_METHOD.split()), "", *render(recording.name, candidates, baseline)]
    lines += render_features(candidates, baseline)
    seeds = len(candidates[baseline].overalls)
    for count in dict.fromkeys(min(one, seeds) for one in given.search_seeds):
        rows = replay(candidates, baseline, count, recording.ladder, given.replays)
        lines += render_replays(rows, seeds, count)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, "\n".join(lines))
    write_atomically(data, recording.model_dump_json(indent=1) + "\n")
    print("\n".join(lines))


_METHOD = """Recorded full evaluations are replayed: what a ladder would have stopped is left out of the selection and of the
bill. Each replay takes four fifths of the candidates and puts the seeds in a random order; numbers are means with
the 2.5 % and 97.5 % quantiles over replays, which share candidates, so they are narrower than those of fresh runs
would be. The numbers of a ladder are the probabilities below which a child ends (0: not asked): of being better
than parent and baseline by the proxy's reward, by the Overall that its dynamics forecast, after one seed; of
being better than the best of earlier generations after one seed. A parent that the ladder would have stopped
still has its children, as recorded, and is then no reference. The rows without a ladder are what its savings have
to be held against: fewer seeds for everybody, and one seed for everybody before all seeds for the best fifth,
which no search that builds on its children can do. Differences of regret of a tenth are noise: this is one
recording. Tokens are completion tokens sampled in training, the baseline's left out of both sides."""


if __name__ == "__main__":
    main()
