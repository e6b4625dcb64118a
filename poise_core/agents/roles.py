"""The roles of a generation, as protocols, and the data that passes between them.

Proposer -> Screener -> Implementer -> (verification, training, evaluation) -> Reflector. Every role has a catalogue or
rule-based implementation that needs no key, and may have one that is LLM-backed; ``proposer`` and
``reflector`` say in each archived row which of the two wrote it.

What is stored (``Proposal``, ``Reflection``) is pydantic: ``model_dump(mode="json")`` and ``model_validate``
are the way into and out of the archive. What is only handed over (``ProposalContext``,
``ReflectionEvidence``) is a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from poise_core.agents.briefing import Calibration, Line, TaskCard
from poise_core.agents.digest import TrajectoryDigest
from poise_core.config.protocol import FrozenModel
from poise_core.evidence.intervals import Interval
from poise_core.evidence.noise import SeedNoise
from poise_core.mechanisms.composition import Composition
from poise_core.trajectory import TrajectoryRows


class Expectation(FrozenModel):
    """A prediction written down before the candidate is trained, so that reflection can score it."""

    metric: str = Field(
        description="'Overall', the name of a benchmark, or a metric of poise_core.trajectory.RUN_METRICS"
    )
    direction: Literal["increase", "decrease", "no_fall", "no_rise"] = Field(
        description="of the child against its first parent; no_fall and no_rise: by no more than size (non-inferiority)"
    )
    why: str
    size: float = Field(default=0.0, ge=0, description="least change, or greatest harm, in the metric's own unit")
    probability: float | None = Field(default=None, ge=0, le=1, description="that this comes true, as foretold")

    @property
    def claim(self) -> str:
        """In words: ``to increase by at least 2``."""
        if self.direction in ("increase", "decrease"):
            return f"to {self.direction}" + (f" by at least {self.size:g}" if self.size else "")
        verb = "fall" if self.direction == "no_fall" else "rise"
        return f"not to {verb}" + (f" by more than {self.size:g}" if self.size else "")

    @property
    def foretold(self) -> str:
        """With its metric and, where one was given, its probability: ``Overall to increase by at least 2 (probability 0.6)``."""
        chance = "" if self.probability is None else f" (probability {self.probability:g})"
        return f"{self.metric} {self.claim}{chance}"


class Proposal(FrozenModel):
    """One idea for a child, before any code exists (``composition`` or ``source`` may already fix the code)."""

    name: str = Field(description="short and unique in the run, for example VM-AV")
    hypothesis: str = Field(description="one or two sentences: what should get better, and by which mechanism")
    mechanism_change: str = Field(description="what differs from the parent")
    equations: tuple[str, ...] = Field(default=(), description="of the changed mechanisms, one per line")
    addresses: str = Field(default="", description="the deficiency of the parent that this answers, with its evidence")
    expectations: tuple[Expectation, ...] = ()
    parent_ids: tuple[str, ...] = Field(min_length=1, description="candidate ids; the first one is the primary parent")
    direction: str = Field(description="one word for the family of mechanisms that changes, for diversity")
    proposer: Literal["catalogue", "llm"]
    composition: dict[str, Any] | None = Field(
        default=None, description="Composition.to_json() where the catalogue can express it"
    )
    source: str | None = Field(default=None, description="the candidate file where the proposer wrote it itself")
    mechanisms: tuple[str, ...] = Field(default=(), description="entries that MECHANISMS of the file must have")
    touches: tuple[str, ...] = Field(default=(), description="parts of the file that change, as the proposer says")
    prompt: str = Field(default="", description="prompt file, version and hash, where a language model wrote it")
    call_id: str = Field(default="", description="the row of `calls` that it came from")


class Diagnosis(FrozenModel):
    """One thing that went wrong (or notably right) in training, at the level of mechanisms."""

    code: str = Field(description="for example entropy_collapse; see poise_core.agents.rules.diagnoses.DIAGNOSES")
    text: str = Field(description="one sentence with its numbers")
    slots: tuple[str, ...] = Field(default=(), description="mechanism slots that could answer it, the likeliest first")


class Claim(FrozenModel):
    """One sentence of a reflection and the numbers it rests on."""

    text: str
    evidence: dict[str, float] = Field(default_factory=dict, description="name of the number -> its value")

    @property
    def supported(self) -> bool:
        """Whether any number stands behind the sentence."""
        return bool(self.evidence)


class ExpectationOutcome(FrozenModel):
    """What became of one pre-registered expectation."""

    expectation: Expectation
    outcome: Literal["met", "not met", "undecidable"]
    text: str = Field(description="the sentence with the paired interval, or why none exists")
    chance: float | None = Field(default=None, description="that the claim is true, by the measurement alone")


class Reflection(FrozenModel):
    """What one candidate taught, as it is archived."""

    candidate_id: str
    parent_id: str | None
    reflector: Literal["rules", "llm"]
    summary: str
    diagnoses: tuple[Diagnosis, ...] = ()
    claims: tuple[Claim, ...] = ()
    expectations: tuple[ExpectationOutcome, ...] = ()
    benchmarks_up: tuple[str, ...] = Field(default=(), description="benchmarks whose paired interval lies above zero")
    benchmarks_down: tuple[str, ...] = ()
    try_next: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    digest: TrajectoryDigest | None = None
    prompt: str = Field(default="", description="prompt file, version and hash, where a language model wrote it")
    call_id: str = Field(default="", description="the row of `calls` that it came from")

    def as_text(self) -> str:
        """The reflection as Markdown, for tracking artifacts and for ``poise show``."""
        parts = [self.summary]
        for title, lines in (
            ("Diagnoses", [d.text for d in self.diagnoses]),
            ("Evidence", [c.text if c.supported else f"{c.text} (no number behind this)" for c in self.claims]),
            ("Expectations", [f"{o.outcome}: {o.text}" for o in self.expectations]),
            ("Try next", list(self.try_next)),
            ("Avoid", list(self.avoid)),
        ):
            if lines:
                parts.append(f"## {title}\n" + "\n".join(f"- {line}" for line in lines))
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class CandidateRecord:
    """An archived candidate as a proposer sees it. Nothing in it comes from the ``report`` split."""

    candidate_id: str
    name: str
    source: str
    generation: int = 0
    parent_ids: tuple[str, ...] = ()
    composition: Mapping[str, Any] | None = None
    proposal: Proposal | None = None
    overall: Interval | None = None  # None: not measured, which is not zero
    benchmarks: Mapping[str, float] = field(default_factory=dict)  # percent, mean over seeds
    benchmark_intervals: Mapping[str, Interval] = field(default_factory=dict)  # of the same
    reflection: Reflection | None = None


@dataclass(frozen=True)
class Reference:
    """A candidate shown beside the parent, and why it was chosen."""

    record: CandidateRecord
    tier: Literal["pareto", "complementary", "exploratory"]
    reason: str = ""


@dataclass(frozen=True)
class Tried:
    """An idea of this run. It may be proposed again only if its outcome is ``not_taken``, and not under its old name."""

    name: str
    outcome: str  # "evaluated", "stopped ...", "in_work", "not_taken" or a value of poise_core.failures.FailureKind
    composition: Mapping[str, Any] | None = None
    source_digest: str = ""
    parent_ids: tuple[str, ...] = ()
    reason: str = ""
    change: str = ""  # what differs from the parent, in words
    avoid: tuple[str, ...] = ()  # what the reflection on it says to avoid


@dataclass(frozen=True)
class ScoredComposition:
    """A composition of an earlier generation, and what it scored."""

    composition: Composition
    overall: float  # mean over seeds, percent
    seeds: int


@dataclass(frozen=True)
class ProposalContext:
    """Everything a proposer and a screener may know."""

    parent: CandidateRecord
    references: tuple[Reference, ...] = ()
    avoid: tuple[Tried, ...] = ()  # the whole run's ideas, those not taken included
    directive: str = ""
    generation: int = 1
    wide: bool = False  # the search is on a plateau: change more at once
    slot: int = 0  # number of the child slot in its generation
    ancestors: tuple[CandidateRecord, ...] = ()  # the parent's primary parent, then its, up to the root
    repeat: int = 0  # how many earlier slots of this generation have the same parent
    immigrant: bool = False  # the place is for a composition from the whole catalogue
    variant: bool = False  # the place is for a knock-out or a sweep of the parent, if that is promising
    task: TaskCard | None = None
    table: tuple[Line, ...] = ()  # every candidate and idea so far
    calibration: Calibration | None = None  # of the forecasts of earlier generations
    ablations: str = ""  # of the parent, its ancestors and the references: what mechanisms and numbers did
    credit: str = ""  # of mechanisms, over all candidates
    scored: tuple[ScoredComposition, ...] = ()  # in the order in which they were made

    @property
    def scope(self) -> str:
        """Name of the child slot, for the ledger."""
        return f"gen-{self.generation:02d}/slot-{self.slot}"


@dataclass(frozen=True)
class Screened:
    """One proposal with its rank; ``score`` is the weighted sum of ``terms`` (higher is better)."""

    proposal: Proposal
    score: float
    feasible: bool
    terms: Mapping[str, float]
    reasons: tuple[str, ...]
    screener: str = "catalogue"  # or "llm"


@dataclass(frozen=True)
class Attempt:
    """An implementation that did not pass, or whose training showed a clear fault, with the report its author must answer."""

    source: str
    stage: str  # "verify", "train" or, within one answer, "consistency"
    report: str  # of poise_core.agents.reports


@dataclass(frozen=True)
class Measured:
    """A candidate's runs: trajectories by seed."""

    candidate_id: str
    name: str
    trajectories: Mapping[int, TrajectoryRows] = field(default_factory=dict)
    overall: Interval | None = None
    composition: Mapping[str, Any] | None = None
    proposal: Proposal | None = None
    source: str = ""
    levels: Mapping[str, Interval] = field(default_factory=dict)  # benchmark -> percent


@dataclass(frozen=True)
class ReflectionEvidence:
    """What a reflector may use; deltas are paired intervals of the candidate minus its first parent, in points."""

    candidate: Measured
    parent: Measured | None = None
    overall_delta: Interval | None = None
    benchmark_deltas: Mapping[str, Interval] = field(default_factory=dict)
    failure: Mapping[str, str] | None = None  # kind, stage, message of a candidate that was not evaluated
    directive: str = ""
    generation: int = 0
    run_noise: Mapping[str, SeedNoise] = field(default_factory=dict)  # run metric -> of the difference at one seed
    stopped_overall: float | None = None  # of the policy at which it was stopped, which is no score
    samples: Sequence[str] = ()  # completions in training and on the search split, shortened, where some were kept
    task: TaskCard | None = None


class Proposer(Protocol):
    """Writes ideas for children of ``context.parent``."""

    def propose(self, context: ProposalContext, n: int, seed: int) -> list[Proposal]:
        """Up to ``n`` proposals, different from each other and from what was tried; the same seed gives the same."""
        ...


class Screener(Protocol):
    """Ranks proposals before any code runs."""

    def rank(self, proposals: Sequence[Proposal], context: ProposalContext) -> list[Screened]:
        """All proposals, best first; infeasible ones last with the reason."""
        ...


class Implementer(Protocol):
    """Turns a proposal into a candidate file."""

    @property
    def revises(self) -> bool:
        """Whether it can answer reports with another file; an early fault in training goes back only to one that can."""
        ...

    def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
        """The source of the candidate file; ``attempts`` are the earlier tries at the same proposal.

        Raises:
            poise_core.failures.CandidateFailure: no (further) implementation is possible.
        """
        ...


class Reflector(Protocol):
    """Says what a candidate taught."""

    def reflect(self, evidence: ReflectionEvidence) -> Reflection:
        """Diagnosis, scored expectations and advice, resting on ``evidence`` alone."""
        ...
