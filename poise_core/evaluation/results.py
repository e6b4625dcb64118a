"""The results of an evaluation: one ``SeedEvaluation`` per trained policy, with the counts of every problem.

Counts are kept beside scores, so that intervals can resample problems and another pass@k can be computed later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from poise_core.evaluation.kept import KeptCompletion

GRADED = ("right", "partial", "wrong", "malformed", "timed_out", "failed", "cut_off")
"""What the grading of a completion may come to. ``malformed``: no answer, or none that can be read. ``timed_out``: the grader was
still at work at its limit. ``failed``: the grader itself failed. ``cut_off``: at the length limit, and not graded. All but
``right`` and ``partial`` score zero."""


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one policy on one benchmark."""

    name: str
    metric: str  # "pass@<k>" or "acc@1"
    score: float  # percent, 0 to 100
    correct: tuple[int, ...]  # correct completions of each problem, in the benchmark's order
    samples: int  # completions per problem
    format_valid: float  # share of completions whose answer parses, 0 to 1
    completion_length: float  # mean tokens per completion
    kept: tuple[KeptCompletion, ...] = field(default=(), compare=False)  # a few to read; of the search split alone
    graded: Mapping[str, int] | None = field(
        default=None, compare=False
    )  # of ``GRADED``, above zero -> completions; None before this was counted

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"benchmark {self.name}: samples is {self.samples}; it must be at least 1")
        if not self.correct:
            raise ValueError(f"benchmark {self.name}: no problems")
        if min(self.correct) < 0 or max(self.correct) > self.samples:
            raise ValueError(f"benchmark {self.name}: a problem's correct count lies outside 0..{self.samples}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BenchmarkResult:
        """Undo ``dataclasses.asdict`` after a trip through JSON."""
        kept = tuple(KeptCompletion(**one) for one in data.get("kept", ()))
        return cls(**{**data, "correct": tuple(int(count) for count in data["correct"]), "kept": kept})


@dataclass(frozen=True)
class SeedEvaluation:
    """The results of the policy that was trained with ``seed`` on all benchmarks of one split."""

    seed: int
    split: str  # "search" or "report"
    overall: float  # weighted mean of the benchmarks' scores, percent
    benchmarks: tuple[BenchmarkResult, ...]
    seconds: float
    problems: str = ""  # fingerprint of the problem set; "" for the public problems

    def __post_init__(self) -> None:
        if self.split not in ("search", "report"):
            raise ValueError(f"split is {self.split!r}; use 'search' or 'report'")

    @property
    def format_valid(self) -> float:
        """Share of completions whose answer parses, as an unweighted mean over benchmarks."""
        return sum(result.format_valid for result in self.benchmarks) / len(self.benchmarks)

    @property
    def completion_length(self) -> float:
        """Tokens per completion, as an unweighted mean over benchmarks."""
        return sum(result.completion_length for result in self.benchmarks) / len(self.benchmarks)

    def to_json(self) -> str:
        """Return the evaluation as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SeedEvaluation:
        """Undo ``dataclasses.asdict`` after a trip through JSON."""
        return cls(**{**data, "benchmarks": tuple(BenchmarkResult.from_dict(item) for item in data["benchmarks"])})

    @classmethod
    def from_json(cls, text: str) -> SeedEvaluation:
        """Undo ``to_json``.

        Raises:
            ValueError: the text is not JSON, or the numbers contradict each other.
            TypeError: a field is missing or unknown.
        """
        return cls.from_dict(json.loads(text))


def graded_counts(evaluations: Iterable[SeedEvaluation]) -> dict[str, dict[str, int]]:
    """Return benchmark -> outcome of ``GRADED`` -> completions, summed over seeds; benchmarks of which it is known."""
    found: dict[str, Counter[str]] = {}
    for evaluation in evaluations:
        for result in evaluation.benchmarks:
            if result.graded is not None:
                found.setdefault(result.name, Counter()).update(result.graded)
    return {name: {outcome: counts[outcome] for outcome in GRADED if counts[outcome]} for name, counts in found.items()}


def benchmark_means(evaluations: Sequence[SeedEvaluation]) -> dict[str, float]:
    """Return the score of each benchmark in percent, as the mean over seeds."""
    return {name: sum(values) / len(values) for name, values in benchmark_seeds(evaluations).items()}


def benchmark_seeds(evaluations: Sequence[SeedEvaluation]) -> dict[str, tuple[float, ...]]:
    """Return the scores of each benchmark in percent, one number per seed that has it."""
    scores: dict[str, list[float]] = {}
    for evaluation in evaluations:
        for result in evaluation.benchmarks:
            scores.setdefault(result.name, []).append(result.score)
    return {name: tuple(values) for name, values in scores.items()}
