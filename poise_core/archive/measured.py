"""What a calibration has measured, as one Parquet file: a row per training seed, or per algorithm that failed.

It is what the page of a calibration is derived from, and small enough to lie beside it. A calibration that is given the file
trains nothing of what is in it, on another machine too.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from poise_core.archive.encoding import to_parquet
from poise_core.archive.errors import ArchiveError
from poise_core.archive.storage import one_line
from poise_core.evaluation.results import SeedEvaluation
from poise_core.files import write_atomically

_COLUMNS = {
    "protocol": pa.string(), "algorithm": pa.string(), "source_digest": pa.string(), "seeds": pa.string(),
    "split": pa.string(), "seed": pa.int64(), "evaluation": pa.string(), "failure": pa.string(),
}  # fmt: skip

Found = list[SeedEvaluation] | str
"""The evaluations in the order of the seeds, or why there are none."""


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

    def get(self, protocol: str, algorithm: str, source: str, split: str, seeds: Sequence[int]) -> Found | None:
        """What is known of an algorithm's file with these seeds; None where any of it is missing."""
        base = _row(protocol, algorithm, source, seeds)
        failed = self._rows.get(_key({**base, "split": "", "seed": seeds[0]}))
        if failed is not None:
            return str(failed["failure"])
        rows = [self._rows.get(_key({**base, "split": split, "seed": seed})) for seed in seeds]
        known = [SeedEvaluation.from_json(str(row["evaluation"])) for row in rows if row is not None]
        return known if len(known) == len(rows) else None

    def put(self, protocol: str, algorithm: str, source: str, split: str, seeds: Sequence[int], found: Found) -> None:
        """Add what was measured, and write the file; completions that were kept to read are left out.

        Raises:
            OSError: it could not be written; an earlier file stays.
        """
        base = _row(protocol, algorithm, source, seeds)
        if isinstance(found, str):
            rows = [{**base, "split": "", "seed": seeds[0], "failure": found}]
        else:
            lean = [replace(one, benchmarks=tuple(replace(b, kept=()) for b in one.benchmarks)) for one in found]
            rows = [{**base, "split": split, "seed": one.seed, "evaluation": one.to_json()} for one in lean]
        with self._lock:
            self._rows |= {_key(row): row for row in rows}
            if self.path is not None:
                ordered = [self._rows[key] for key in sorted(self._rows)]
                columns = {name: pa.array([row.get(name) for row in ordered], kind) for name, kind in _COLUMNS.items()}
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, bytes(to_parquet(pa.table(columns))))


def _row(protocol: str, algorithm: str, source: str, seeds: Sequence[int]) -> dict[str, object]:
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return {"protocol": protocol, "algorithm": algorithm, "source_digest": digest, "seeds": _span(seeds)}


def _span(seeds: Sequence[int]) -> str:
    """The seeds that were trained together; a failure is that of all of them."""
    return " ".join(map(str, seeds))


def _key(row: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("protocol", "algorithm", "source_digest", "seeds", "split", "seed"))
