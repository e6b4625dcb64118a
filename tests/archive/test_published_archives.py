"""The archives that lie beside the pages of results: few files, whole, and readable by anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from poise_core.archive import TABLES, Archive
from poise_core.evidence.ablation import conclude_ablation
from poise_core.run_directory import RunDirectory
from poise_core.verification.gate import run_checks

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PUBLISHED = sorted(path.parent for path in RESULTS.rglob("preset.yaml"))
LAPTOP_64 = {
    "candidates": 65, "proposals": 252, "verifications": 64, "evaluations": 972, "trajectories": 8700, "reflections": 64,
    "selections": 651, "failures": 0, "rungs": 125, "replications": 1, "examinations": 0,
    "calls": 0, "ablations": 0, "completions": 0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_a_published_run_is_a_file_per_table_and_every_row_matches_its_digest(folder: Path) -> None:
    assert len([path for path in (folder / "archive").rglob("*") if path.is_file()]) <= len(TABLES)
    archive = RunDirectory.read(folder).archive
    assert archive.check() == []
    assert all(archive.read(table, unsealed=True).schema == TABLES[table].schema for table in TABLES)


def test_the_runs_that_pages_tell_of_are_published() -> None:
    assert {"laptop-64", "headline"} <= {str(folder.relative_to(RESULTS)) for folder in PUBLISHED}


def test_the_rows_of_laptop_64_are_all_there() -> None:
    root = RESULTS / "laptop-64" / "archive"
    archive = Archive(root)
    assert {table: archive.read(table, unsealed=True).num_rows for table in TABLES} == LAPTOP_64
    for table, count in LAPTOP_64.items():
        if (root / table).exists():
            frame = pd.read_parquet(root / table)
            assert len(frame) == frame["row_key"].nunique() == count
    parents = {row["candidate_id"]: row["parent_ids"] for row in archive.rows("candidates")}
    assert sum(not given for given in parents.values()) == 2  # GRPO and the base policy
    assert all(json.loads(row["report"]) for row in archive.rows("verifications"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_the_gate_still_admits_what_it_had_admitted_with_the_same_fingerprint(folder: Path) -> None:
    """Every thirteenth candidate: a contract with more fields must not change what archived files do."""
    archive = Archive(folder / "archive")
    sources = {row["candidate_id"]: row["source"] for row in archive.rows("candidates")}
    for row in archive.rows("verifications", admitted=True)[::13]:
        report = run_checks(sources[row["candidate_id"]], "archived")
        assert report.admitted, report
        assert report.fingerprint == row["fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["gm-ns-bz/gm_ns_bz.py", "headline/simplified.py"])
def test_the_gate_still_admits_the_files_that_are_published_by_themselves(file: str) -> None:
    assert run_checks((RESULTS / file).read_text(), "published").admitted


def test_the_champions_simplified_file_is_the_one_that_was_measured() -> None:
    evidence = RunDirectory.read(RESULTS / "headline").evidence()
    champion = next(name for name, row in evidence.candidates.items() if row["name"] == "NB-FX-HW")
    found = conclude_ablation(evidence, champion)
    assert found is not None
    assert found.simplified is not None
    assert found.simplified.source == (RESULTS / "headline" / "simplified.py").read_text()
