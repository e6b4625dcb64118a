"""Rows are typed: the generated file is what the schema generates, and every table has its overload."""

from __future__ import annotations

import typing
from pathlib import Path

import archive_samples as samples
import pytest

from poise_core.archive import TABLES, Archive, typed
from poise_core.archive.typed_source import COMPUTED, row_type, source


def test_the_file_is_what_the_schema_generates() -> None:
    text = Path(typed.__file__).read_text(encoding="utf-8")
    assert text == source(), "run python -m poise_core.archive.typed_source"


def test_every_table_has_an_overload_that_gives_its_rows() -> None:
    found = {}
    for overload in typing.get_overloads(Archive.rows):
        hints = typing.get_type_hints(overload)
        if hints["table"] is not str:
            (name,) = typing.get_args(hints["table"])
            (found[name],) = typing.get_args(hints["return"])
    assert found == {name: getattr(typed, row_type(table)) for name, table in TABLES.items()}


@pytest.mark.slow
def test_a_row_that_was_read_has_every_column_and_one_to_be_written_those_that_are_required(tmp_path: Path) -> None:
    archive, _ = samples.filled_archive(tmp_path)
    for name, table in TABLES.items():
        columns = getattr(typed, row_type(table))
        assert columns.__required_keys__ == {f.name for f in table.fields if not f.nullable and f.name not in COMPUTED}
        for row in archive.rows(name):
            assert set(row) == columns.__required_keys__ | columns.__optional_keys__


MISSPELT = """
from poise_core.archive import Archive, candidate_row
archive = Archive("x")
archive.rows("candidates")[0]["parent_id"]
archive.rows("candidates")[0]["parent_ids"].append(3)
archive.rows(str())[0]["anything"]
candidate_row(candidate_id="c", name="n", source="s", source_digest="d", written_by="human")["colour"]
"""


@pytest.mark.slow
def test_mypy_finds_a_misspelt_column(tmp_path: Path) -> None:
    from mypy import api

    program = tmp_path / "program.py"
    program.write_text(MISSPELT)
    report, _, _ = api.run(
        [str(program), "--follow-imports=silent", "--ignore-missing-imports", "--cache-dir", str(tmp_path)]
    )
    lines = [line.split(":", 2)[1:] for line in report.splitlines() if ": error: " in line]
    assert [number for number, _ in lines] == ["4", "5", "7"]
    assert 'TypedDict "CandidateRow" has no key "parent_id"' in lines[0][1]
