"""What a calibration has measured, as one Parquet file: a row per training seed, or per algorithm that failed.

It is what the page of a calibration is derived from, and small enough to lie beside it. A calibration that is given the file
trains nothing of what is in it, on another machine too.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from poise_core.archive.encoding import to_parquet
from poise_core.archive.errors import ArchiveError
from poise_core.archive.storage import one_line
from poise_core.candidate.identity import source_digest
from poise_core.environments.base import Split
from poise_core.evaluation.results import SeedEvaluation
from poise_core.files import write_atomically

_COLUMNS = {
    "protocol": pa.string(), "algorithm": pa.string(), "source_digest": pa.string(), "seeds": pa.string(),
    "split": pa.string(), "seed": pa.int64(), "evaluation": pa.string(), "failure": pa.string(),
}  # fmt: skip

Found = Mapping[Split, Sequence[SeedEvaluation]] | str
"""The evaluations of each split in the order of the seeds, or why there are none."""


@dataclass(frozen=True)
class Trainings:
    """Which trainings are meant: of an algorithm's file, with these seeds together, under one protocol."""

    protocol: str  # digest
    algorithm: str
    source: str  # of its file
    seeds: tuple[int, ...]

    def row(self, split: str, seed: int) -> dict[str, object]:
        """The columns that name one evaluation of them; a failure, which is that of all seeds, has the first and no split."""
        return {
            "protocol": self.protocol,
            "algorithm": self.algorithm,
            "source_digest": source_digest(self.source)[:16],
            "seeds": " ".join(map(str, self.seeds)),
            "split": split,
            "seed": seed,
        }


class Measured:
    """The rows of a file, or of memory alone where there is no path; safe for several threads of one process."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file, if there is one.

        Raises:
            ArchiveError: it cannot be read, or is no record of a calibration.
        """
        self.path = path
        self._rows: dict[tuple[str, ...], dict[str, object]] = {}
        self._lock = threading.Lock()
        if path is None or not path.exists():
            return
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{path}: cannot be read as the record of a calibration: {one_line(error)}") from error
        if rows and rows[0].keys() != _COLUMNS.keys():
            raise ArchiveError(f"{path}: no record of a calibration; name another file")
        self._rows = {_key(row): row for row in rows}

    def get(self, trainings: Trainings, splits: Sequence[Split]) -> dict[Split, list[SeedEvaluation]] | str | None:
        """What is known of these trainings on these splits; None where any of it is missing."""
        failed = self._rows.get(_key(trainings.row("", trainings.seeds[0])))
        if failed is not None:
            return str(failed["failure"])
        found: dict[Split, list[SeedEvaluation]] = {}
        for split in splits:
            rows = [self._rows.get(_key(trainings.row(split, seed))) for seed in trainings.seeds]
            found[split] = [SeedEvaluation.from_json(str(row["evaluation"])) for row in rows if row is not None]
        return found if all(len(one) == len(trainings.seeds) for one in found.values()) else None

    def put(self, trainings: Trainings, found: Found) -> None:
        """Add what was measured, and write the file; completions that were kept to read are left out.

        Raises:
            OSError: it could not be written; an earlier file stays.
        """
        if isinstance(found, str):
            rows = [{**trainings.row("", trainings.seeds[0]), "failure": found}]
        else:
            rows = [
                {**trainings.row(split, one.seed), "evaluation": _lean(one).to_json()}
                for split, evaluations in found.items()
                for one in evaluations
            ]
        with self._lock:
            self._rows |= {_key(row): row for row in rows}
            if self.path is not None:
                ordered = [self._rows[key] for key in sorted(self._rows)]
                columns = {name: pa.array([row.get(name) for row in ordered], kind) for name, kind in _COLUMNS.items()}
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, bytes(to_parquet(pa.table(columns))))


def _lean(evaluation: SeedEvaluation) -> SeedEvaluation:
    return replace(evaluation, benchmarks=tuple(replace(one, kept=()) for one in evaluation.benchmarks))


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("protocol", "algorithm", "source_digest", "seeds", "split", "seed"))
