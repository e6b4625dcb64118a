"""The gate: the checks in order, each with what it proves, run in this process on a candidate's text.

``run_checks`` executes candidate code. Outside tests it is called by the confined worker only; use
``poise_core.verification.verify_file``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from poise_core.candidate.calls import CallTimedOut, ContractViolation
from poise_core.candidate.identity import source_digest
from poise_core.candidate.loading import Candidate, CandidateError, load_candidate_source
from poise_core.failures import FailureKind
from poise_core.verification.checks import behaviour, direction, interface, invariance, novelty, purity
from poise_core.verification.fingerprint import Observation, fingerprint, observe
from poise_core.verification.harness import Run, run_candidate
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.probes import Probe, graded, ordinary
from poise_core.verification.report import CheckResult, VerificationReport


class DuplicateBehaviour(ContractViolation):
    """An archived candidate does the same."""


@dataclass
class Subject:
    """The candidate under examination and what the checks have learned about it."""

    source: str
    name: str
    known_fingerprints: Mapping[str, str]
    before: purity.GlobalState
    wall: bool = True  # whether the file sees the built-ins of the language only
    loaded: Candidate | None = None
    runs: list[tuple[Probe, Run]] = field(default_factory=list)
    observed: tuple[Observation, ...] = ()
    fingerprint: str = ""
    nearest: tuple[tuple[str, float], ...] = ()
    nearest_archived: tuple[tuple[str, float], ...] = ()
    duplicate_of: str | None = None

    @property
    def candidate(self) -> Candidate:
        """The loaded candidate; only after the interface check."""
        assert self.loaded is not None
        return self.loaded

    def load(self) -> Candidate:
        """A freshly loaded candidate.

        Raises:
            ContractViolation: it does not load.
        """
        try:
            return load_candidate_source(self.source, self.name, wall=self.wall)
        except CandidateError as error:
            raise ContractViolation(str(error)) from error

    def observe(self) -> tuple[Observation, ...]:
        """What the candidate does on the scenario, computed once."""
        if not self.observed:
            self.observed = observe(self.candidate)
        return self.observed


@dataclass(frozen=True)
class Check:
    """One check of the gate."""

    name: str
    proves: str
    run: Callable[[Subject], None]  # raises ContractViolation or LanguageError with the sentence for the author
    decisive: bool = False  # nothing after it means anything where it fails


def _language(subject: Subject) -> None:
    check_language(subject.source)


def _interface(subject: Subject) -> None:
    subject.loaded = subject.load()
    interface.check_interface(subject.candidate)


def _finite(subject: Subject) -> None:
    subject.runs = behaviour.check_finite(subject.candidate)


def _switches(subject: Subject) -> None:
    interface.check_switches(subject.candidate, subject.observe())


def _pure(subject: Subject) -> None:
    purity.check_pure(subject.candidate, subject.load, subject.before)


def _gradient(subject: Subject) -> None:
    if not subject.runs:  # only where the finite check failed and the gate was told to go on
        subject.runs = [(probe, run_candidate(subject.candidate, probe)) for probe in (ordinary(), graded(22))]
    behaviour.check_gradient(subject.runs)


def _padding(subject: Subject) -> None:
    invariance.check_padding(subject.candidate)


def _order(subject: Subject) -> None:
    invariance.check_order(subject.candidate)


def _micro_batches(subject: Subject) -> None:
    invariance.check_micro_batches(subject.candidate)


def _direction(subject: Subject) -> None:
    direction.check_direction(subject.candidate)


def _novelty(subject: Subject) -> None:
    subject.fingerprint = fingerprint(subject.observe())
    subject.nearest = novelty.nearest_algorithms(subject.observed)
    subject.nearest_archived = novelty.nearest_archived(subject.fingerprint, subject.known_fingerprints)
    own = {name for name, (digest, _) in novelty.known_behaviours().items() if digest == source_digest(subject.source)}
    others = tuple(pair for pair in subject.nearest if pair[0] not in own)
    found, archived = novelty.find_duplicate(subject.fingerprint, others, subject.known_fingerprints)
    subject.duplicate_of = found
    if archived:
        raise DuplicateBehaviour(f"it trains exactly as {found}, which is archived already; change what it computes")


CHECKS: tuple[Check, ...] = (
    Check(
        "language",
        "The file is written in the candidate language: nothing in it reaches beyond its arguments, and its work is bounded.",
        _language,
        decisive=True,
    ),
    Check(
        "interface",
        "Docstring, names, signatures, hyperparameters, aggregation and mechanisms are as the contract says.",
        _interface,
        decisive=True,
    ),
    Check(
        "finite",
        "Shapes and dtypes are right and every number is finite on the edges that training meets.",
        _finite,
        decisive=True,
    ),
    Check("switches", "Switching any mechanism off changes what the candidate computes.", _switches),
    Check("pure", "It is deterministic, changes no input, keeps no state and leaves the process as it was.", _pure),
    Check(
        "gradient",
        "Gradient reaches logprobs and entropies only, is finite under the mask and present in mixed groups.",
        _gradient,
    ),
    Check("padding", "More columns of padding change nothing.", _padding),
    Check("order", "The order of completions and the labels of groups change nothing.", _order),
    Check("micro-batches", "Any split into micro-batches gives the same total loss and gradient.", _micro_batches),
    Check("direction", "Following its gradient raises the reward of two toy problems.", _direction),
    Check("novelty", "No archived candidate behaves exactly like it.", _novelty),
)


def run_checks(
    source: str,
    name: str = "candidate",
    *,
    known_fingerprints: Mapping[str, str] | None = None,
    static: bool = True,
    keep_going: bool = False,
    on_check: Callable[[CheckResult | str], None] | None = None,
) -> VerificationReport:
    """Run the gate in this process.

    Args:
        source: text of the candidate.
        name: how reports call it.
        known_fingerprints: fingerprint -> candidate id of what is archived already.
        static: whether the language check runs and its built-ins are the only ones; only tests of the process layer leave
            both out.
        keep_going: go on after a decisive check has failed, where that is possible at all; for tests.
        on_check: called with a check's name before it runs and with its result after.
    """
    started = time.perf_counter()
    novelty.known_behaviours()  # before the candidate can touch anything
    subject = Subject(source, name, known_fingerprints or {}, purity.GlobalState.capture(), wall=static)
    results: list[CheckResult] = []
    failure: FailureKind | None = None
    for check in CHECKS:
        if check.name == "language" and not static:
            continue
        if on_check:
            on_check(check.name)
        begun = time.perf_counter()
        kind, message = _outcome(check, subject)
        failure = failure or kind
        results.append(CheckResult(check.name, check.proves, kind is None, message, time.perf_counter() - begun))
        if on_check:
            on_check(results[-1])
        if kind is not None and check.decisive and (not keep_going or subject.loaded is None):
            break
    return VerificationReport(
        candidate_name=name,
        source_digest=source_digest(source),
        admitted=failure is None,
        checks=tuple(results),
        fingerprint=subject.fingerprint,
        nearest=subject.nearest,
        nearest_archived=subject.nearest_archived,
        duplicate_of=subject.duplicate_of,
        seconds=time.perf_counter() - started,
        failure=failure,
    )


def _outcome(check: Check, subject: Subject) -> tuple[FailureKind | None, str]:
    try:
        check.run(subject)
    except DuplicateBehaviour as error:
        return FailureKind.DUPLICATE, str(error)
    except (ContractViolation, LanguageError) as error:
        return FailureKind.REJECTED, str(error)
    except CallTimedOut as error:
        return FailureKind.TIMED_OUT, str(error)
    except MemoryError:
        return FailureKind.OUT_OF_MEMORY, "the candidate needs more memory than the gate grants; use smaller tensors"
    return None, ""
