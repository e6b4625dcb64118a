"""The gate: the checks in order, each with what it proves, run in this process on a candidate's text.

:func:`run_checks` executes candidate code. Outside tests it is called by the confined worker only; use
:func:`poise_core.verification.verify_file`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from poise_core.candidate import Candidate, CandidateError, load_candidate_source, source_digest
from poise_core.failures import FailureKind
from poise_core.verification.harness import ContractViolation
from poise_core.verification.language import LanguageError, check_language
from poise_core.verification.report import CheckResult, VerificationReport


@dataclass
class Subject:
    """The candidate under examination and what earlier checks learned about it."""

    source: str
    name: str
    known_fingerprints: Mapping[str, str]
    loaded: Candidate | None = None
    fingerprint: str = ""
    nearest: tuple[tuple[str, float], ...] = ()
    duplicate_of: str | None = None

    @property
    def candidate(self) -> Candidate:
        """The loaded candidate; only after the interface check."""
        assert self.loaded is not None
        return self.loaded


@dataclass(frozen=True)
class Check:
    """One check of the gate."""

    name: str
    proves: str
    run: Callable[[Subject], None]  # raises ContractViolation or LanguageError with the sentence for the author
    decisive: bool = field(default=False)  # nothing after it can run where it fails


def _language(subject: Subject) -> None:
    check_language(subject.source)


def _interface(subject: Subject) -> None:
    from poise_core.verification.interface import check_interface

    try:
        subject.loaded = load_candidate_source(subject.source, subject.name)
    except CandidateError as error:
        raise ContractViolation(str(error)) from error
    check_interface(subject.loaded)


def _finite(subject: Subject) -> None:
    from poise_core.verification.behaviour import check_finite

    check_finite(subject.candidate)


CHECKS: tuple[Check, ...] = (
    Check(
        "language",
        "The file is written in the candidate language: nothing in it can reach beyond its arguments.",
        _language,
        True,
    ),
    Check(
        "interface",
        "Names, signatures and hyperparameters are as the contract says; every mechanism's off-switch has an effect.",
        _interface,
        True,
    ),
    Check(
        "finite", "Shapes and dtypes are right and every number is finite on the edges that training meets.", _finite
    ),
)


def run_checks(
    source: str,
    name: str = "candidate",
    *,
    known_fingerprints: Mapping[str, str] | None = None,
    static: bool = True,
    on_check: Callable[[CheckResult | str], None] | None = None,
) -> VerificationReport:
    """Run the gate in this process.

    Args:
        source: text of the candidate.
        name: how reports call it.
        known_fingerprints: fingerprint -> candidate id of what is archived already.
        static: whether the language check runs; only tests of the process layer leave it out.
        on_check: called with a check's name before it runs and with its result after.
    """
    started = time.perf_counter()
    subject = Subject(source, name, known_fingerprints or {})
    results: list[CheckResult] = []
    failure: FailureKind | None = None
    for check in CHECKS:
        if check.name == "language" and not static:
            continue
        if on_check:
            on_check(check.name)
        begun, message = time.perf_counter(), ""
        try:
            check.run(subject)
        except (ContractViolation, LanguageError) as error:
            message, kind = str(error), FailureKind.REJECTED
        except MemoryError:
            message, kind = (
                "the candidate needs more memory than the gate grants; use smaller tensors",
                FailureKind.OUT_OF_MEMORY,
            )
        if message and failure is None:
            failure = kind
        results.append(CheckResult(check.name, check.proves, not message, message, time.perf_counter() - begun))
        if on_check:
            on_check(results[-1])
        if message and check.decisive:
            break
    return VerificationReport(
        candidate_name=name,
        source_digest=source_digest(source),
        admitted=failure is None,
        checks=tuple(results),
        fingerprint=subject.fingerprint,
        nearest=subject.nearest,
        duplicate_of=subject.duplicate_of,
        seconds=time.perf_counter() - started,
        failure=failure,
    )
