"""The checks of the gate in their order, each with what it proves, run in this process on a candidate's text.

``run_checks`` executes candidate code. Outside tests only the confined worker calls it; other code calls
``poise_core.verification.verify_file``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from poise_core.candidate.calls import CallTimedOut, ContractViolation
from poise_core.candidate.identity import program_digest, source_digest
from poise_core.candidate.loading import Candidate, CandidateError, load_candidate_source
from poise_core.failures import FailureKind
from poise_core.verification.checks import behaviour, direction, interface, invariance, novelty, purity
from poise_core.verification.drawn import Draw
from poise_core.verification.fingerprint import Observation, fingerprint, observe, scenario
from poise_core.verification.harness import Run, run_candidate
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.probes import Probe
from poise_core.verification.report import ANY_TRAINING, PROBE_SEED_BITS, CheckResult, Conditions, VerificationReport


class DuplicateBehaviour(ContractViolation):
    """An archived candidate behaves in the same way."""


@dataclass
class Examination:
    """One candidate under examination, with what the checks have found out about it so far."""

    source: str
    name: str
    known_fingerprints: Mapping[str, str]
    known_programs: Mapping[str, str]
    before: purity.GlobalState
    draw: Draw
    builtins_of_language: bool = True  # whether the file sees only the built-ins that the candidate language lists
    failed: bool = False  # a check before
    loaded: Candidate | None = None
    runs: list[tuple[Probe, Run]] = field(default_factory=list)
    observed: tuple[Observation, ...] = ()
    fingerprint: str = ""
    nearest: tuple[tuple[str, float], ...] = ()
    nearest_archived: tuple[tuple[str, float], ...] = ()
    duplicate_of: str | None = None
    unreached: Sequence[str] = ()  # mechanisms that do not act in this training
    takes_the_first: bool = False  # of completions with one outcome
    note: str = ""  # of the check that runs, for the author of a candidate that passes it

    @property
    def candidate(self) -> Candidate:
        """The loaded candidate, which exists once the check `interface` has begun."""
        assert self.loaded is not None
        return self.loaded

    def load(self) -> Candidate:
        """Load the candidate anew.

        Raises:
            ContractViolation: the candidate does not load.
        """
        try:
            return load_candidate_source(self.source, self.name, wall=self.builtins_of_language)
        except CandidateError as error:
            raise ContractViolation(str(error)) from error

    def observe(self) -> tuple[Observation, ...]:
        """Return the candidate's observations on the scenario, computed once."""
        if not self.observed:
            self.observed = observe(self.candidate)
        return self.observed


@dataclass(frozen=True)
class Check:
    """One check of the gate."""

    name: str
    proves: str
    run: Callable[[Examination], None]  # raises ContractViolation or LanguageError with the sentence for the author
    decisive: bool = False  # where it fails, the checks after it would be meaningless and do not run


def _language(examined: Examination) -> None:
    check_language(examined.source)


def _interface(examined: Examination) -> None:
    examined.loaded = examined.load()
    interface.check_interface(examined.candidate)


def _finite(examined: Examination) -> None:
    examined.runs = behaviour.check_finite(examined.candidate, examined.draw)


def _switches(examined: Examination) -> None:
    notes, examined.unreached = interface.check_switches(examined.candidate, examined.draw)
    examined.note = "; ".join(notes)


def _pure(examined: Examination) -> None:
    purity.check_pure(examined.candidate, examined.load, examined.before, examined.draw)


def _gradient(examined: Examination) -> None:
    if not examined.runs:  # only where the check `finite` failed and the gate was told to go on
        probes = (examined.draw.ordinary("gradient"), examined.draw.graded("gradient"))
        examined.runs = [(probe, run_candidate(examined.candidate, probe)) for probe in probes]
    behaviour.check_gradient(examined.runs)
    size = behaviour.size_that_trains(examined.candidate, examined.draw, examined.runs)
    if size is not None:
        examined.draw = replace(examined.draw, conditions=replace(examined.draw.conditions, group_size=size))
        examined.note = f"small groups do not train; the checks after this one have groups of {size}, which do"


def _padding(examined: Examination) -> None:
    invariance.check_padding(examined.candidate, examined.draw)


def _order(examined: Examination) -> None:
    examined.takes_the_first = invariance.check_order(examined.candidate, examined.draw)
    if examined.takes_the_first:
        examined.note = (
            "order decides which of several completions with one outcome train; group_rank(..., ties=...) would not"
        )


def _micro_batches(examined: Examination) -> None:
    invariance.check_micro_batches(examined.candidate, examined.draw)


def _direction(examined: Examination) -> None:
    direction.check_direction(examined.candidate, examined.draw)


def _novelty(examined: Examination) -> None:
    if not examined.failed:  # order, padding or state would only be found once more
        novelty.check_disguise(examined.candidate, examined.observe(), examined.draw, examined.takes_the_first)
    examined.fingerprint = fingerprint(examined.observe())
    examined.nearest = novelty.nearest_algorithms(examined.observed)
    examined.nearest_archived = novelty.nearest_archived(examined.fingerprint, examined.known_fingerprints)
    own = {name for name, (digest, _) in novelty.known_behaviours().items() if digest == source_digest(examined.source)}
    others = tuple(pair for pair in examined.nearest if pair[0] not in own)
    same = examined.known_programs.get(program_digest(examined.source)) if examined.known_programs else None
    if same is not None:  # also where its mechanisms show on no batch of the fingerprint
        examined.duplicate_of = same
        raise DuplicateBehaviour(
            f"it is the same program as {same}, which is archived already; change what it computes"
        )
    found, archived = novelty.find_duplicate(examined.fingerprint, others, examined.known_fingerprints)
    examined.duplicate_of = found
    hidden = interface.hidden_from(examined.candidate, scenario()) if archived else []
    hidden = [name for name in hidden if name not in examined.unreached]
    if hidden:  # they act in this training, and the fingerprint's batches do not show it
        examined.duplicate_of = None
        examined.note = (
            f"it behaves as {found} on its fingerprint's batches, which do not show {', '.join(hidden)}; it is new"
        )
    elif archived:
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
    Check(
        "novelty",
        "It does not recognise the batches of its fingerprint, and no archived candidate behaves exactly like it.",
        _novelty,
    ),
)


def run_checks(
    source: str,
    name: str = "candidate",
    *,
    known_fingerprints: Mapping[str, str] | None = None,
    known_programs: Mapping[str, str] | None = None,
    probe_seed: int | None = None,
    conditions: Conditions = ANY_TRAINING,
    static: bool = True,
    keep_going: bool = False,
    on_check: Callable[[CheckResult | str], None] | None = None,
) -> VerificationReport:
    """Run the gate in this process.

    Args:
        source: text of the candidate.
        name: the candidate's name in reports.
        known_fingerprints: fingerprint -> candidate id, for archived candidates.
        known_programs: ``program_digest`` -> candidate id, for the same.
        probe_seed: of the probes that are drawn; by default the operating system draws it, so that no candidate can know them.
        conditions: of the training that the candidate is for; probes follow them.
        static: whether the check `language` runs and the candidate sees only the built-ins of the language; only tests of
            the process layer pass False.
        keep_going: go on after a decisive check has failed, if the candidate could be loaded; for tests.
        on_check: called with a check's name before the check runs, and with its result afterwards.
    """
    started = time.perf_counter()
    novelty.known_behaviours()  # computed before the candidate could change anything in this process
    examined = Examination(
        source,
        name,
        known_fingerprints or {},
        known_programs or {},
        purity.GlobalState.capture(),
        Draw(secrets.randbits(PROBE_SEED_BITS) if probe_seed is None else probe_seed, conditions),
        builtins_of_language=static,
    )
    results: list[CheckResult] = []
    failure: FailureKind | None = None
    for check in CHECKS:
        if check.name == "language" and not static:
            continue
        if on_check:
            on_check(check.name)
        begun, examined.note = time.perf_counter(), ""
        kind, message = _outcome(check, examined)
        failure = failure or kind
        examined.failed = failure is not None
        seconds, note = time.perf_counter() - begun, "" if kind else examined.note
        results.append(CheckResult(check.name, check.proves, kind is None, message, seconds, note))
        if on_check:
            on_check(results[-1])
        if kind is not None and check.decisive and (not keep_going or examined.loaded is None):
            break
    return VerificationReport(
        candidate_name=name,
        source_digest=source_digest(source),
        admitted=failure is None,
        checks=tuple(results),
        fingerprint=examined.fingerprint,
        nearest=examined.nearest,
        nearest_archived=examined.nearest_archived,
        duplicate_of=examined.duplicate_of,
        seconds=time.perf_counter() - started,
        failure=failure,
        probe_seed=examined.draw.seed,
        conditions=conditions,
    )


def _outcome(check: Check, examined: Examination) -> tuple[FailureKind | None, str]:
    try:
        check.run(examined)
    except DuplicateBehaviour as error:
        return FailureKind.DUPLICATE, str(error)
    except (ContractViolation, LanguageError) as error:
        return FailureKind.REJECTED, str(error)
    except CallTimedOut as error:
        return FailureKind.TIMED_OUT, str(error)
    except MemoryError:
        return FailureKind.OUT_OF_MEMORY, "the candidate needs more memory than the gate grants; use smaller tensors"
    return None, ""
