"""The report of the admission gate, with one result per check, the behavioural fingerprint, and the confinement of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from poise_core.failures import FailureKind

if TYPE_CHECKING:
    from poise_core.config.protocol import TrainingSpec

PROBE_SEED_BITS = 48
"""Of the seed of drawn probes: more than anybody tries, few enough for JSON's numbers."""


@dataclass(frozen=True)
class Conditions:
    """The training for which a candidate is verified, as far as it is known; None stands for any."""

    group_size: int | None = None  # completions of a prompt
    max_completion_length: int | None = None  # tokens
    steps: int | None = None

    @classmethod
    def of(cls, training: TrainingSpec) -> Conditions:
        """Those of a protocol's training."""
        return cls(training.group_size, training.max_completion_length, training.steps)


ANY_TRAINING = Conditions()


@dataclass(frozen=True)
class CheckResult:
    """The result of one check, with what passing it proves; a failed one tells the author what to change."""

    name: str
    proves: str
    passed: bool
    message: str  # "" when passed
    seconds: float
    note: str = ""  # what an author should know although the check passed


@dataclass(frozen=True)
class VerificationReport:
    """The gate's verdict on one candidate file, stored beside it and printed by ``poise verify``."""

    candidate_name: str
    source_digest: str  # poise_core.candidate.loading.source_digest of the text that was verified
    admitted: bool
    checks: tuple[CheckResult, ...]  # in the order in which they ran; a check that could not run is absent
    fingerprint: str = ""  # "" when the candidate never ran
    nearest: tuple[tuple[str, float], ...] = ()  # (known algorithm, distance), nearest first
    nearest_archived: tuple[tuple[str, float], ...] = ()  # (candidate id, distance by sketch), the nearest few
    duplicate_of: str | None = None  # archived candidate or known algorithm with the same behaviour
    confinement: Mapping[str, str] = field(default_factory=dict)  # measure -> "granted" or why it was not
    seconds: float = 0.0  # the whole gate, process start included
    probe_seed: int | None = (
        None  # of the probes that were drawn; None where none was, or in a report of before they were
    )
    conditions: Conditions = ANY_TRAINING  # for which it was verified
    failure: FailureKind | None = None  # set exactly when the candidate is not admitted

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def message(self) -> str:
        """The name and the message of the first failed check in one line; "" when the candidate is admitted."""
        return "" if not self.failed else f"{self.failed[0].name}: {self.failed[0].message}"

    def to_json(self) -> str:
        """Return the report as a JSON object in one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> VerificationReport:
        """Read the text that ``to_json`` has written.

        Raises:
            ValueError: the text is not such a report.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            document["checks"] = tuple(CheckResult(**check) for check in document["checks"])
            document["conditions"] = Conditions(**document.get("conditions", {}))
            for key in ("nearest", "nearest_archived"):
                document[key] = tuple((str(name), float(distance)) for name, distance in document.get(key, ()))
            document["failure"] = None if document["failure"] is None else FailureKind(document["failure"])
            return cls(**document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a verification report: {error}") from error
