"""Several arms of search under one protocol and one budget, each in a run directory of its own below one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poise_core.archive import EVOLUTION_ARM, UNTRAINED_ARM, Archive, as_appended, location_below
from poise_core.config import Preset
from poise_core.config.search import Arm
from poise_core.evaluation.problems import ProblemSecret
from poise_core.run_directory import RunDirectory, RunDirectoryError

ARMS: tuple[Arm, ...] = ("evolution", "random", "greedy", "best-of-n", "tune")

_SHARED = ("verifications", "trajectories", "evaluations", "reflections", "candidates")
"""In the order in which they are copied: a run has begun once it has a candidate, so nothing may be left to copy then."""


@dataclass(frozen=True)
class ArmRun:
    """One arm with one search seed."""

    arm: Arm
    seed: int
    folder: Path
    preset: Preset


def arm_runs(preset: Preset, folder: Path, arms: Sequence[Arm] = ARMS, seeds: Sequence[int] = (0,)) -> list[ArmRun]:
    """Every arm with every seed; arms differ in ``search.arm`` and ``search.seed`` alone. Each knows how many searches there
    are, since a champion candidate of one of them is the best of the children of all.

    Raises:
        RunDirectoryError: the folder is itself a run.
    """
    if RunDirectory.exists(folder):
        raise RunDirectoryError(f"{folder}: a run directory; a comparison needs a folder of its own, for several runs")
    runs = []
    for seed in seeds:
        for arm in arms:
            one = {"arm": arm, "seed": seed, "searches": len(arms) * len(seeds)}
            search = preset.search.model_copy(update=one)
            name = f"{arm}-seed-{seed}"
            archive = None if preset.archive is None else location_below(preset.archive, name)
            own = preset.model_copy(update={"search": search, "archive": archive})
            runs.append(ArmRun(arm, seed, folder / name, own))
    return runs


def share_baseline(run: ArmRun, others: Sequence[ArmRun]) -> bool:
    """Copy a measured baseline into a run that has not begun, so that it is trained only once.

    Its tokens count in every arm, since its trajectories do.

    Returns:
        Whether a baseline was copied.

    Raises:
        RunDirectoryError: the run's folder cannot be used.
        poise_core.archive.ArchiveError: an archive cannot be read or written.
    """
    with RunDirectory.open(run.folder, run.preset, _shared_secret(run, others)) as opened:
        if opened.archive.parts("candidates"):
            return False
        for other in others:
            if other.folder.exists() and other.preset.protocol.digest == run.preset.protocol.digest:
                source = RunDirectory.read(other.folder).archive
                if shared := _finished_roots(source):
                    for table in _SHARED:
                        _copy(source, opened.archive, table, shared)
                    return True
    return False


def _shared_secret(run: ArmRun, others: Sequence[ArmRun]) -> ProblemSecret | None:
    """The secret of the arms that have begun: all answer the same problems, so that their scores can be paired."""
    if RunDirectory.exists(run.folder):
        return None  # it has its own
    begun = [other for other in others if RunDirectory.exists(other.folder)]
    return next((secret for other in begun if (secret := RunDirectory.read(other.folder).secret)), None)


def _finished_roots(archive: Archive) -> list[str]:
    """Baseline and base policy, once both are scored and the baseline is reflected on."""
    roots = [row for row in archive.rows("candidates") if not row["parent_ids"]]
    arms = {row["arm"]: row["candidate_id"] for row in roots}
    scored = {row["candidate_id"] for row in archive.rows("evaluations")}
    reflected = {row["candidate_id"] for row in archive.rows("reflections")}
    if set(arms) != {EVOLUTION_ARM, UNTRAINED_ARM} or not set(arms.values()) <= scored:
        return []
    return list(arms.values()) if arms[EVOLUTION_ARM] in reflected else []


def _copy(source: Archive, target: Archive, table: str, candidates: Sequence[str]) -> None:
    for candidate in candidates:
        if rows := source.rows(table, candidate_id=candidate):
            target.append(table, [as_appended(row) for row in rows])
