"""The ablation of a candidate: versions of its file with mechanisms switched off or one number moved, trained as it was.

What is measured, in this order, as far as the budget of trainings goes: every mechanism switched off alone; the simplified version
that follows from these; every mechanism as the only one; every change to the baseline undone alone, and made alone in the
baseline, where the catalogue expresses both; every number at half and at twice its value; every two mechanisms off together; every
number at a quarter and at four times its value.

Every version goes through the gate and is trained to its end with the candidate's own seeds, under the protocol as it is, and
scored on the search split. No version is a candidate: its row lies in ``ablations`` and its evaluations under a digest of their
own, so neither leaderboard, selection nor noise floor counts it. A version that the gate finds to train exactly as something that
was measured is not trained again.

Nothing is done twice: a version has one row, written when it has come to its end, and the same call goes on with those that have
none. A larger budget goes further down the list.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from poise_core.archive import ABLATED, EVOLUTION_ARM, evaluation_rows
from poise_core.archive.typed import AblationRow
from poise_core.candidate.switches import Switches
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.ablation import (
    NEAR,
    WIDE,
    Ablation,
    Measurements,
    Version,
    changes_alone,
    changes_of,
    changes_undone,
    conclude_ablation,
    each_alone,
    each_off,
    limits,
    moved_numbers,
    pairs,
    simpler,
)
from poise_core.evidence.changes import SlotChange
from poise_core.evidence.format import counted_seeds, format_interval
from poise_core.evolution.events import Event, announced
from poise_core.evolution.records import load_record, write_record
from poise_core.experiments.replication import Remeasurement
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.files import write_atomically
from poise_core.run_directory import candidate_id
from poise_core.training.job import TrainingJob
from poise_core.verification import Conditions, VerificationReport

BUDGET = 120
"""Trainings of an ablation, where nobody says another number."""


class AblationRefused(ValueError):
    """This candidate cannot be ablated here; one line."""


@dataclass(frozen=True)
class _Gated:
    """A version that has gone through the gate, and what it is equal to, if anything."""

    version: Version
    name: str
    identity: str
    report: VerificationReport
    same_as: str | None


class AblationStudy(Remeasurement):
    """One ablation in one run, whose lock is held; its arguments are those of ``Remeasurement``."""

    def carry_out(
        self, budget: int = BUDGET, *, seeds: int | None = None, say: Callable[[str], None] = lambda text: None
    ) -> Ablation:
        """Ablate the candidate, go on with its ablation, or read back what it has found.

        Args:
            budget: trainings of the whole ablation, those of earlier calls included.
            seeds: with how many of the candidate's seeds; by default all. One that was begun keeps its own.
            say: called with the plan, one line, before anything is trained, and with what each version came to.

        Returns:
            What it says, with what earlier calls have measured.

        Raises:
            AblationRefused: the candidate has no score, or nothing can be switched off or moved; or it was begun with other seeds.
            InfrastructureError: a process failed; the same call goes on.
            Cancelled: ``should_stop`` returned true.
        """
        switches = self._check()
        chosen = self._seeds(seeds)
        first = True
        for group in self._groups(switches):
            while todo := self._affordable(group(), chosen, budget):
                if first:
                    say(self._plan(switches, chosen, budget))
                    first = False
                self._measure(todo, chosen, say)
        found = conclude_ablation(self.run.evidence(), self.candidate_id)
        if found is None:
            raise AblationRefused(f"{budget} trainings are too few: one version takes {len(chosen)}")
        if found.simplified is not None:
            _keep(self.simplified_file, found.simplified.source)
        return found

    @property
    def simplified_file(self) -> Path:
        """Where the simplified version is written, if there is one."""
        return self._home / "simplified.py"

    @property
    def _home(self) -> Path:
        return self.run.candidate_folder(self.candidate_id) / "ablate"

    def _check(self) -> Switches:
        (row,) = self.archive.rows("candidates", candidate_id=self.candidate_id)
        evidence = self.run.evidence()
        if not evidence.evaluations.get(self.candidate_id):
            raise AblationRefused(f"{row['name']} has no score; only a scored candidate can be ablated")
        try:
            switches = Switches.of(row["source"])
        except ValueError as error:
            raise AblationRefused(f"{row['name']} cannot be read: {error}") from error
        if not each_off(switches) and not moved_numbers(switches, NEAR) and not self._changes:
            raise AblationRefused(f"{row['name']}: {limits(switches)}")
        return switches

    def _seeds(self, count: int | None) -> tuple[int, ...]:
        """Those of the candidate, which the baseline has too where it was scored; of an ablation that was begun, its own."""
        if rows := self.rows():
            seeds = tuple(rows[0]["seeds"])
            if count is not None and count != len(seeds):
                raise AblationRefused(f"this ablation was begun with seeds {list(seeds)}; it goes on with them")
            return seeds
        found = self.archive.evaluations(protocol=self.protocol.digest, candidate_id=self.candidate_id)
        seeds = tuple(one.seed for one in found[self.candidate_id])
        if count is not None and count > len(seeds):
            raise AblationRefused(f"{count} seeds are asked for, and the candidate was trained with {len(seeds)}")
        return seeds[:count]

    def rows(self) -> list[AblationRow]:
        """Of ``ablations``, of this candidate."""
        return self.archive.rows("ablations", protocol=self.protocol.digest, candidate_id=self.candidate_id)

    # the order of the work

    def _groups(self, switches: Switches) -> Iterator[Callable[[], Sequence[Version]]]:
        """What is measured together; later groups may depend on what earlier ones have found."""

        def simplified() -> list[Version]:
            found = simpler(switches, Measurements(self.run.evidence(), self.candidate_id))
            return [found] if found else []

        yield lambda: each_off(switches)
        yield simplified
        if self.candidate_id != self.run.evidence().baseline:
            yield lambda: each_alone(switches)
        yield lambda: changes_undone(self._changes)
        yield lambda: changes_alone(self._changes)
        yield lambda: moved_numbers(switches, NEAR)
        yield lambda: pairs(switches)
        yield lambda: moved_numbers(switches, WIDE)

    def _affordable(self, group: Sequence[Version], seeds: Sequence[int], budget: int) -> list[Version]:
        """Those without a row that the budget still has trainings for."""
        rows = self.rows()
        done = {row["version"] for row in rows}
        left = (budget - self._trainings(rows)) // len(seeds)
        return [one for one in group if one.key not in done][: max(left, 0)]

    def _trainings(self, rows: Sequence[AblationRow]) -> int:
        """That the ablation has cost so far; what failed had its own, what is equal to another none."""
        return sum(len(row["seeds"]) for row in rows if self._own_trainings(row))

    def _own_trainings(self, row: AblationRow) -> bool:
        """Whether a version was trained itself, whatever came of it."""
        if row["outcome"] == "failed":
            report = self._report(row["version"])
            return report is None or report.admitted
        return row["measured"] == candidate_id(row["name"], row["source"])

    def _plan(self, switches: Switches, seeds: Sequence[int], budget: int) -> str:
        """One line on what would be measured with budget enough, and what there is."""
        kinds = {
            "mechanisms off": each_off(switches),
            "alone": each_alone(switches),
            "changes undone": changes_undone(self._changes),
            "changes alone": changes_alone(self._changes),
            "numbers": moved_numbers(switches, (*NEAR, *WIDE)),
            "pairs": pairs(switches),
        }
        keys = {one.key for found in kinds.values() for one in found}
        listed = ", ".join(f"{name} {len(found)}" for name, found in kinds.items() if found)
        said = limits(switches)
        return (
            f"ablation of {self.candidate_ref().name}: up to {len(keys)} versions ({listed}) with "
            f"{counted_seeds(len(seeds))} each, within {budget} trainings" + (f"; {said}" if said else "")
        )

    # the measurement

    def _measure(self, versions: Sequence[Version], seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Gate one after the other, so that equals are found; train side by side; file what became of each."""
        self._evidence = self.run.evidence()  # of candidates, which do not change meanwhile
        known = self._fingerprints(seeds)
        gated = []
        for version in versions:
            found = self._gate(version, known)
            gated.append(found)
            if found.report.admitted and found.report.fingerprint:
                known.setdefault(found.report.fingerprint, found.identity)
        fresh = [one for one in gated if one.report.admitted]
        if fresh:
            self.side_by_side(*(partial(self._train_and_file, one, seeds, say) for one in fresh))
        for one in gated:
            if one.same_as is not None:
                self._file_equal(one, seeds, say)
            elif not one.report.admitted:
                self._file(one, seeds, "refused", one.report.message, say)

    def _fingerprints(self, seeds: Sequence[int]) -> dict[str, str]:
        """Fingerprint -> what behaves like it and was measured with these seeds: candidates of the run, and versions."""
        evidence = self._evidence
        scored = {
            name
            for name, found in evidence.evaluations.items()
            if set(seeds) <= {evaluation.seed for evaluation in found}
        }
        found = {
            row["fingerprint"]: row["candidate_id"]
            for row in self.archive.rows("verifications", admitted=True)
            if row["fingerprint"] and row["candidate_id"] in scored
        }
        for row in self.rows():
            identity = candidate_id(row["name"], row["source"])
            if row["measured"] == identity and (report := self._report(row["version"])) is not None:
                found.setdefault(report.fingerprint, identity)
        return found

    def _report(self, key: str) -> VerificationReport | None:
        """The gate's on a version; None where it was not there, or its folder was removed."""
        stored = load_record(self._folder(key) / "gate.json")
        return None if stored is None else VerificationReport.from_json(json.dumps(stored))

    def _folder(self, key: str) -> Path:
        """Of one version; its name tells two keys apart whatever characters they hold."""
        return self._home / candidate_id(key, key)

    def _gate(self, version: Version, known: Mapping[str, str]) -> _Gated:
        """Put a version through the gate, or read back its report."""
        name = f"{self.candidate_ref().name} {version.label}"[:60]
        identity, folder = candidate_id(name, version.source), self._folder(version.key)
        path = folder / "candidate.py"
        _keep(path, version.source)
        report = self._report(version.key)
        if report is None:
            resources, secret = self.run.preset.resources, self.run.secret
            with announced(self.observer, "ablate", name, self._generation, self._stopping) as done:
                report = self.executor.verify(
                    path,
                    name=name,
                    conditions=Conditions.of(self.protocol.training),
                    timeout_seconds=resources.verify_timeout_seconds,
                    known_fingerprints=known,
                    folder=folder,
                    should_stop=self._stopping,
                    probe_seed=secret.probe_seed(identity) if secret else None,
                )
                done("admitted" if report.admitted else str(report.failure))
            write_record(folder / "gate.json", json.loads(report.to_json()))
        same = report.duplicate_of or known.get(report.fingerprint) if report.failure is FailureKind.DUPLICATE else None
        return _Gated(version, name, identity, report, same)

    def _train_and_file(self, one: _Gated, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        filed = f"{ABLATED}{self.protocol.digest}"
        keys = {"protocol": filed, "candidate_id": one.identity, "split": "search"}
        try:
            if not all(self.archive.contains("evaluations", **keys, seed=seed) for seed in seeds):
                self._train_and_score(one, seeds, filed)
        except CandidateFailure as failure:
            self._file(one, seeds, "failed", f"{failure.kind} in {failure.stage}: {failure.message}", say)
            return
        found = self.archive.evaluations(protocol=filed, candidate_id=one.identity)[one.identity]
        self._file(one, seeds, "measured", "", say, measured=one.identity, evaluations=found)

    def _train_and_score(self, one: _Gated, seeds: Sequence[int], filed: str) -> None:
        folder, resources = self._folder(one.version.key), self.run.preset.resources

        def on_step(seed: int, row: dict[str, float]) -> None:
            self.observer(Event("step", "ablate", one.name, self._generation, seed=seed, row=row))

        with announced(self.observer, "ablate", one.name, self._generation, self._stopping) as done:
            job = TrainingJob(
                folder / "candidate.py",
                one.name,
                folder / "train",
                self.protocol,
                resources,
                tuple(seeds),
                source_digest=one.report.source_digest,
                fingerprint=one.report.fingerprint or None,
            )
            with self.compute_slot():
                trained = self.executor.train(job, on_step=on_step, should_stop=self._stopping)
            policies = tuple((found.seed, found.policy_folder) for found in trained)
            scored = EvaluationJob(folder / "evaluate", self.protocol, resources, "search", policies, self.run.secret)
            with self.compute_slot():
                results = self.executor.evaluate(scored, should_stop=self._stopping)
            for result in results:
                self.archive.append("evaluations", evaluation_rows(one.identity, filed, result))
            done(counted_seeds(len(seeds)))

    def _file_equal(self, one: _Gated, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """A version that trains exactly as something else has its scores, or its failure."""
        assert one.same_as is not None
        evidence = self.run.evidence()
        known = {**evidence.evaluations, **evidence.versions}
        if found := known.get(one.same_as):
            kept = [evaluation for evaluation in found if evaluation.seed in seeds]
            self._file(one, seeds, "measured", "", say, measured=one.same_as, evaluations=kept)
        else:
            self._file(one, seeds, "failed", f"trains exactly as {one.same_as}, which failed", say)

    def _file(
        self,
        one: _Gated,
        seeds: Sequence[int],
        outcome: str,
        message: str,
        say: Callable[[str], None],
        *,
        measured: str | None = None,
        evaluations: Sequence[SeedEvaluation] = (),
    ) -> None:
        """Write the row of a version, once."""
        columns: dict[str, Any] = {}
        if evaluations:
            evidence = self._evidence
            own = [found for found in evidence.evaluations[self.candidate_id] if found.seed in seeds]
            delta = Measurements(evidence, self.candidate_id).contrast([(1.0, evaluations), (-1.0, own)])
            if delta is None:
                raise InfrastructureError(
                    f"{one.name} was scored on other problems than the candidate; restore the secret"
                )
            plain = delta.to_dict()
            columns = {
                "overall": statistics.fmean(found.overall for found in evaluations),
                **{"delta": plain["estimate"], "low": plain["low"], "high": plain["high"]},
            }
            same = "" if measured == one.identity else f", as {measured} trains exactly like it"
            message = f"{format_interval(delta, signed=True)} points to the candidate{same}"
        row = {
            "protocol": self.protocol.digest,
            "candidate_id": self.candidate_id,
            "version": one.version.key,
            "dropped": list(one.version.dropped),
            "numbers": json.dumps(dict(one.version.numbers or {}), sort_keys=True),
            "name": one.name,
            "source": one.version.source,
            "measured": measured,
            "outcome": outcome,
            "seeds": list(seeds),
            "generation": self._generation,
            "message": message,
            "written_by": "poise",
            **columns,
        }
        self.archive.append("ablations", [row], keep_existing=True)
        say(f"{one.version.label}: {message}")

    @cached_property
    def _changes(self) -> list[SlotChange]:
        """What the candidate changes in the baseline, as far as the catalogue has words for it."""
        return changes_of(self.run.evidence(), self.candidate_id)

    @cached_property
    def _generation(self) -> int:
        """The newest of the run when this was begun."""
        rows = self.archive.read("candidates", ["generation"], arm=EVOLUTION_ARM)["generation"].to_pylist()
        return max(rows, default=0)


def _keep(path: Path, text: str) -> None:
    """Have the file with this text."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
