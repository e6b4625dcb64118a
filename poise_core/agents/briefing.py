"""What every role is told beside the candidate at hand: the task, the archive as a table, and how its forecasts came out.

Pure functions from small values to text. ``poise_core.evolution.briefs`` reads the values from a run, and only such as its archive
tells of earlier generations, so that a recorded run asks the same again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from poise_core.config.protocol import Protocol
from poise_core.evidence.format import short_interval
from poise_core.evidence.intervals import Interval
from poise_core.evidence.noise import SeedNoise

ARCHIVE_TOKENS, IDEAS_TOKENS = 2500, 900
"""Budgets, in estimated tokens, of the table of the archive and of the list of ideas that nobody took up."""

CHANGE_WORDS = 15
"""Of a change in the table, at most; fewer where the table would not fit into its budget."""

_CHARACTERS_PER_TOKEN = 3.0
_BINS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.01))


@dataclass(frozen=True)
class TaskCard:
    """What is trained and how it is scored, from the protocol and from what was measured before this generation."""

    protocol: Protocol
    seeds: int  # of the protocol's, that every candidate trains with
    problems: Mapping[str, str] = field(default_factory=dict)  # kind of problem -> description, no items
    form: str = ""  # what a completion must look like
    untrained: Mapping[str, float] = field(default_factory=dict)  # Overall and benchmarks, percent
    baseline: Mapping[str, Interval] = field(default_factory=dict)  # the same of the baseline
    baseline_name: str = ""
    baseline_runs: Mapping[str, float] = field(default_factory=dict)  # run metric -> mean over its seeds
    noise: Mapping[str, SeedNoise] = field(default_factory=dict)  # Overall, benchmarks, run metrics: of one seed
    measured: int = 0  # candidates that the noise was learned from
    generation: int = 1
    generations: int = 1
    children_left: int = 0  # this generation's included
    calls_left: str = ""  # of the budgets of language models, at the beginning of this generation
    sizes: Mapping[str, int] = field(default_factory=dict)  # problems of benchmarks that take all of their source

    def text(self) -> str:
        """The card, about 700 tokens."""
        protocol, training = self.protocol, self.protocol.training
        updates = training.minibatches * training.inner_epochs
        lines = [f"Policy that is trained: {protocol.policy}."]
        if self.problems:
            share = protocol.environment.mixture
            total = sum(share.values())
            lines.append(
                "Training prompts: "
                + "; ".join(
                    f"{share[kind] / total:.0%} {kind}: {told}" for kind, told in self.problems.items() if kind in share
                )
                + f"; {protocol.environment.train_problems} of them."
            )
        lines += [self.form] if self.form else []
        lines += [
            f"Training: {training.steps} steps; per step {training.prompts_per_step} prompts with group size "
            f"{training.group_size} = {training.batch_size} completions; {training.minibatches} minibatches x "
            f"{training.inner_epochs} passes = {updates} optimizer updates per batch; learning rate "
            f"{training.learning_rate:g}, warm-up {training.warmup_steps} steps, weight decay {training.weight_decay:g}; "
            f"gradient norm clipped at {training.max_grad_norm:g}; sampled at temperature {training.temperature:g}; "
            f"length limit {training.max_completion_length} tokens{self._other_limit()}.",
            "Overall = "
            + " + ".join(f"{one.weight:g} {one.name}" for one in protocol.benchmarks)
            + " (percent, higher is better).",
            self._noise_source(),
            "benchmark | problems of | metric | weight | size | untrained | "
            f"baseline {self.baseline_name or 'not measured yet'} | seed SD",
        ]
        lines.append(" | ".join(["Overall", "", "", "1", "", *self._scores("Overall")]))
        for one in protocol.benchmarks:
            drawn = f", {one.samples} completions each at temperature 1" if one.metric == "pass" else ", greedy"
            if one.max_completion_length:
                drawn += f", at most {one.max_completion_length} tokens"
            kinds = "+".join(one.kinds) or (one.source.title if one.source else "the training's source")
            lines.append(
                " | ".join(
                    [
                        one.name,
                        kinds,
                        one.metric_name + drawn,
                        f"{one.weight:g}",
                        f"{one.problems or self.sizes.get(one.name) or 'all'}",
                        *self._scores(one.name),
                    ]
                )
            )
        runs = [
            f"{name} {self.baseline_runs[name]:.3g} (SD {noise.std:.2g})"
            for name, noise in self.noise.items()
            if name in self.baseline_runs
        ]
        if runs:
            lines.append("Baseline's training metrics, with the SD of one seed: " + ", ".join(runs) + ".")
        lines.append(
            f"Budget: generation {self.generation} of {self.generations}; {self.children_left} children are left to "
            f"train, this generation's included; each trains with {self.seeds} seed{'s' if self.seeds != 1 else ''}."
            + (f" {self.calls_left}" if self.calls_left else "")
        )
        return "\n".join(lines)

    def _other_limit(self) -> str:
        limit = self.protocol.evaluation_length
        return f", of benchmarks {limit}" if limit != self.protocol.training.max_completion_length else ""

    def _noise_source(self) -> str:
        with_guess = f"learned from {self.measured} candidates" if self.measured > 1 else "so far mostly a guess"
        return f"Seed SD: standard deviation of one training seed, percent points, {with_guess}."

    def _scores(self, name: str) -> list[str]:
        untrained, baseline, noise = self.untrained.get(name), self.baseline.get(name), self.noise.get(name)
        return [
            "?" if untrained is None else f"{untrained:.1f}",
            "?" if baseline is None else short_interval(baseline, signed=False),
            "?" if noise is None else f"{noise.std:.2g}",
        ]


@dataclass(frozen=True)
class Line:
    """One candidate, or one idea without a file, as the table shows it."""

    name: str
    change: str  # in words
    fate: str  # evaluated, stopped at ..., failed: KIND, refused: KIND, not taken
    delta: Interval | None = None  # of Overall to the baseline, points
    telling: tuple[str, ...] = ()  # two metrics that moved most, as text
    reason: str = ""  # why it ended without a score
    parent: str = ""
    diagnoses: tuple[str, ...] = ()  # codes

    @property
    def measured(self) -> bool:
        """Whether it has a score."""
        return self.delta is not None

    def text(self, words: int) -> str:
        """The line with its change in at most so many words."""
        delta = short_interval(self.delta) if self.delta else "-"
        last = self.fate if not self.reason else f"{self.fate}, {self.reason}"
        return "|".join([self.name, first_words(self.change, words), delta, ", ".join(self.telling) or "-", last])


def first_words(text: str, count: int) -> str:
    """The first words of a text, on one line, with dots where there were more."""
    words = text.split()
    return " ".join(words[:count]) + (" ..." if len(words) > count else "")


def table_order(lines: Sequence[Line]) -> list[Line]:
    """Candidates, best and most instructive first: two of the best, then one that ended without a score or lost most."""
    scored = sorted(
        (one for one in lines if one.delta is not None),
        key=lambda one: (-(one.delta.estimate if one.delta else 0.0), one.name),
    )
    unscored = [one for one in reversed(lines) if one.delta is None and one.fate != "not taken"]
    ordered: list[Line] = []
    while scored or unscored:
        ordered += scored[:2]
        scored = scored[2:]
        if unscored:
            ordered.append(unscored.pop(0))
        elif scored:
            ordered.append(scored.pop())
    return ordered


def archive_table(lines: Sequence[Line], tokens: int = ARCHIVE_TOKENS) -> str:
    """One line per candidate within a budget: all of them, their changes in as many words (at most 15) as that allows.

    Where even one word each is too much, the last ones are left out and counted.

    Args:
        lines: in the order in which they came to exist.
        tokens: estimated as prompts are, at three characters each.
    """
    ordered = table_order(lines)
    if not ordered:
        return ""
    head = "name|change|Overall against the baseline, points [95 %]|moved most|fate"

    def fits(text: str) -> bool:
        return len(text) <= tokens * _CHARACTERS_PER_TOKEN

    return _largest(lambda words: [one.text(words) for one in ordered], head, fits)


def open_ideas(lines: Sequence[Line], tokens: int = IDEAS_TOKENS) -> str:
    """Ideas that nobody took up, the latest first, each with its change, within a budget; empty where there is none."""
    ideas = [one for one in reversed(lines) if one.fate == "not taken"]
    if not ideas:
        return ""

    def fits(text: str) -> bool:
        return len(text) <= tokens * _CHARACTERS_PER_TOKEN

    head = "Nobody has implemented these; take one up under its name's sense if the evidence speaks for it."
    return _largest(lambda words: [f"{one.name}: {first_words(one.change, words)}" for one in ideas], head, fits)


def _largest(render: Callable[[int], list[str]], head: str, fits: Callable[[str], bool]) -> str:
    rows: list[str] = []
    for words in range(CHANGE_WORDS, 2, -1):
        rows = render(words)
        if fits("\n".join([head, *rows])):
            return "\n".join([head, *rows])
    kept = len(rows)
    while kept and not fits("\n".join([head, *rows[:kept], f"and {len(rows) - kept} more"])):
        kept -= 1
    return "\n".join([head, *rows[:kept], f"and {len(rows) - kept} more"])


@dataclass(frozen=True)
class Calibration:
    """Forecasts of earlier proposals beside what measurements say of them.

    A forecast p of a claim whose chance by the measurement is c is scored by the expected Brier score, c (1 - p)^2 + (1 - c) p^2
    (Brier 1950), so that a claim that stays open counts as what it is.
    """

    pairs: tuple[tuple[float, float], ...]  # (foretold probability, chance by the measurement)

    @property
    def brier(self) -> float:
        """Mean over the pairs; NaN without any."""
        scores = [chance * (1 - said) ** 2 + (1 - chance) * said**2 for said, chance in self.pairs]
        return sum(scores) / len(scores) if scores else math.nan

    def bins(self) -> list[tuple[str, int, float, float]]:
        """Per fifth of the scale: its name, how many, mean foretold, mean come true."""
        found = []
        for low, high in _BINS:
            inside = [(said, chance) for said, chance in self.pairs if low <= said < high]
            if inside:
                said, true = (sum(column) / len(inside) for column in zip(*inside, strict=True))
                found.append((f"{low:.0%} to {min(high, 1.0):.0%}", len(inside), said, true))
        return found

    def text(self) -> str:
        """For a prompt and for a page; empty without a scored forecast."""
        if not self.pairs:
            return ""
        count = len(self.pairs)
        lines = [
            f"{count} forecast{'s' if count > 1 else ''} of proposals scored so far: Brier score {self.brier:.3f} (0 is "
            "perfect, 0.25 is what saying 50 % of everything gets)."
        ]
        lines += [
            f"said {name} ({number} times, mean {said:.0%}): came true in {true:.0%}"
            for name, number, said, true in self.bins()
        ]
        return "\n".join(lines)
