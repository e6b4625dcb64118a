"""Compaction: fewer files, the same rows, whatever is killed, read or appended meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import archive_samples as samples
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from typer.testing import CliRunner

from poise_core.archive import (
    TABLES,
    Archive,
    ArchiveConflictError,
    ArchiveError,
    candidate_row,
    evaluation_rows,
    trajectory_rows,
)
from poise_core.archive.compacted import CompactedFiles
from poise_core.archive.disk_storage import DiskStorage
from poise_core.archive.object_storage import ObjectStorage
from poise_core.archive.reader import PartReader
from poise_core.archive.snapshot import SNAPSHOT_FILE, WORTH
from poise_core.archive.storage import Storage
from poise_core.cli import app
from poise_core.run_directory import RunDirectory

SPLITS = {"evaluations": ["report", "search"]}


def one(candidate_id: str, name: str = "GRPO", **more: Any) -> dict[str, Any]:
    row = candidate_row(candidate_id=candidate_id, name=name, source="x = 1", source_digest="d", written_by="human")
    return {**row, **more}


def nothing(_: object) -> None:
    """Nobody listens."""


def contents(archive: Archive) -> dict[str, str]:
    """Every table in every column, as text: NaN is equal to itself there."""
    return {table: repr(archive.rows(table, unsealed=True)) for table in TABLES}


def files(archive: Archive) -> list[str]:
    """Every file below the archive, hidden ones too, the schemas aside."""
    root = Path(archive.root)
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.name != "schema.parquet")


def add_report(archive: Archive, protocol: Any) -> None:
    for seed in (3, 4):
        evaluation = samples.make_evaluation(protocol, 0.6, seed, "report")
        archive.append("evaluations", evaluation_rows(samples.AV, protocol.digest, evaluation))


@pytest.fixture
def protocol() -> Any:
    return samples.make_protocol()


@pytest.fixture
def archive(tmp_path: Path, protocol: Any) -> Archive:
    filled = samples.fill(Archive(tmp_path / "archive").initialise(), protocol)
    add_report(filled, protocol)
    return filled


# ---- the same rows, the same readers, the same rules


@pytest.mark.slow
def test_one_file_a_table_and_everything_reads_as_before(archive: Archive, protocol: Any) -> None:
    before = contents(archive)
    parts = {table: archive.parts(table) for table in TABLES}
    counts = {table: archive.read(table, unsealed=True).num_rows for table in TABLES}
    steps, scores = archive.trajectory(samples.SA, protocol.digest), archive.evaluations(protocol=protocol.digest)
    tree = archive.lineage().tree(samples.GRPO)
    done = []
    archive.compact(done.append)
    assert {each.table: each.rows for each in done} == counts
    for table in TABLES:
        held = [path for path in files(archive) if path.startswith(f"{table}/")]
        splits = SPLITS.get(table, ["all"])
        if len(parts[table]) > 1:
            assert [path.split("-")[0] for path in held] == [f"{table}/compacted/{split}" for split in splits]
        else:
            assert [path.count("compacted") for path in held] == [0] * len(parts[table]), "one file is few enough"
    for reader in (archive, Archive(archive.root)):
        assert contents(reader) == before
        assert {table: reader.parts(table) for table in TABLES} == parts
        assert repr(reader.trajectory(samples.SA, protocol.digest)) == repr(steps)
        assert list(reader.trajectory(samples.AV, protocol.digest)) == list(samples.SEEDS)
        assert reader.evaluations(protocol=protocol.digest) == scores
        assert reader.lineage().tree(samples.GRPO) == tree
        assert reader.rows("candidates", generation=1)[0]["candidate_id"] == samples.AV
        assert reader.contains("evaluations", protocol=protocol.digest, candidate_id=samples.AV, split="report", seed=3)
        assert not reader.contains(
            "evaluations", protocol=protocol.digest, candidate_id=samples.AV, split="report", seed=9
        )
        assert reader.check() == []
    for table in TABLES:
        frame = pd.read_parquet(Path(archive.root) / table)
        assert len(frame) == frame["row_key"].nunique() == counts[table]
        assert list(frame.columns) == [field.name for field in TABLES[table].fields]


@pytest.mark.slow
def test_the_rules_for_writing_again_hold_after_it(archive: Archive, protocol: Any) -> None:
    stored = {table: archive.rows(table, unsealed=True) for table in TABLES}
    archive.compact(nothing)
    before, held = contents(archive), files(archive)
    for table, rows in stored.items():
        given = [{k: v for k, v in row.items() if k not in ("row_key", "content_digest")} for row in rows]
        for writer in (archive, Archive(archive.root)):
            assert writer.append(table, given) == 0, "the same again changes nothing"
    later = pd.Timestamp("2031-01-01", tz="UTC").to_pydatetime()
    (row,) = [{k: v for k, v in row.items() if k not in ("row_key", "content_digest")} for row in stored["failures"]]
    assert archive.append("failures", [{**row, "message": "in other words", "created_at": later}]) == 0
    archive.append("failures", [{**row, "attempt": 1}])
    archive.compact(nothing)
    assert archive.append("failures", [{**row, "message": "in other words", "created_at": later}]) == 0
    with pytest.raises(ArchiveConflictError, match=r"part-av-1111111111\.parquet: holds other content in name"):
        archive.append("candidates", [one(samples.AV, "Other")])
    assert archive.append("candidates", [one(samples.AV, "Other")], keep_existing=True) == 0
    short = trajectory_rows(samples.AV, protocol.digest, 0, samples.make_steps(3, 0))
    with pytest.raises(ArchiveConflictError, match="holds 20 rows that are not the 3 given; kept"):
        archive.append("trajectories", short)
    assert {t: text for t, text in contents(archive).items() if t != "failures"} == {
        t: text for t, text in before.items() if t != "failures"
    }
    assert [path for path in files(archive) if "failures" not in path] == [p for p in held if "failures" not in p]


@pytest.mark.slow
def test_several_in_a_row_with_appends_between_leave_one_file(tmp_path: Path) -> None:
    archive, plain = Archive(tmp_path / "archive").initialise(), Archive(tmp_path / "plain").initialise()
    reader = Archive(archive.root)  # stays open throughout
    now = pd.Timestamp("2026-01-01", tz="UTC").to_pydatetime()
    for turn in range(4):
        for number in range(turn * 7, turn * 7 + 7):
            steps = [
                {**row, "created_at": now}
                for row in trajectory_rows(f"c-{number}", "p", 0, samples.make_steps(5, number))
            ]
            for each in (archive, plain):
                each.append("candidates", [one(f"c-{number}", created_at=now)])
                each.append("trajectories", steps)
        for each in (archive, reader):
            assert contents(each) == contents(plain)
        archive.compact(nothing)
        assert len(files(archive)) == 2
        for each in (archive, reader, Archive(archive.root)):
            assert contents(each) == contents(plain)
            assert repr(each.trajectory(f"c-{turn * 7}", "p")) == repr(plain.trajectory(f"c-{turn * 7}", "p"))
        held = files(archive)
        archive.compact(nothing)
        assert files(archive) == held, "where there is one file nothing is done"


@pytest.mark.slow
def test_row_groups_may_be_many_and_hold_few_rows(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise_core.archive.compaction.GROUP_ROWS", 7)
    monkeypatch.setattr("poise_core.archive.compaction.PARTS_AT_ONCE", 2)
    before = contents(archive)
    archive.compact(nothing)
    (compacted,) = (Path(archive.root) / "trajectories" / "compacted").iterdir()
    assert pq.read_metadata(compacted).num_row_groups == -(-4 * 3 * 20 // 7)
    assert contents(Archive(archive.root)) == before
    assert Archive(archive.root).check() == []


@pytest.mark.slow
def test_the_report_split_stays_in_a_file_that_sealed_readers_do_not_open(archive: Archive, protocol: Any) -> None:
    sealed = repr(archive.rows("evaluations"))
    archive.compact(nothing)
    folder = Path(archive.root) / "evaluations" / "compacted"
    (search,), (report,) = folder.glob("search-*"), folder.glob("report-*")
    assert set(pq.read_table(search)["split"].to_pylist()) == {"search"}
    assert set(pq.read_table(report)["split"].to_pylist()) == {"report"}
    report.write_bytes(b"damaged")
    fresh = Archive(archive.root)
    assert repr(fresh.rows("evaluations")) == sealed
    assert fresh.evaluations(protocol=protocol.digest)
    with pytest.raises(
        ArchiveError, match=r"report-.*not a readable Parquet file, left as it is; restore it from a copy"
    ):
        fresh.rows("evaluations", unsealed=True)
    assert [str(report) in fault for fault in fresh.check()] == [True]


@pytest.mark.slow
def test_an_altered_row_is_found_after_it_too(archive: Archive) -> None:
    archive.compact(nothing)
    (path,) = (Path(archive.root) / "candidates" / "compacted").iterdir()
    table = pq.read_table(path)
    column = table.schema.names.index("name")
    pq.write_table(table.set_column(column, table.schema.field("name"), [["Better"] * table.num_rows]), path)
    assert archive.check() == [f"{path}: a row does not match its digest; the file was altered"]


@pytest.mark.slow
def test_snapshots_and_compaction_get_along(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive").initialise()
    archive.append("candidates", [one(f"c-{number}") for number in range(2 * WORTH)])
    assert archive.refresh_snapshots() == ["candidates"]
    archive.compact(nothing)
    assert not any(SNAPSHOT_FILE in path for path in files(archive)), "it knew parts that are gone"
    assert archive.refresh_snapshots() == []
    archive.append("candidates", [one(f"d-{number}") for number in range(WORTH)])
    before = contents(Archive(archive.root))
    assert archive.refresh_snapshots() == ["candidates"]
    snapshot = pq.read_table(tmp_path / "archive" / "candidates" / SNAPSHOT_FILE)
    assert snapshot.num_rows == WORTH, "only of the parts that have a file of their own"
    assert contents(Archive(archive.root)) == before
    assert archive.check() == []


@pytest.mark.slow
def test_an_earlier_program_refuses_what_it_would_take_for_empty(archive: Archive) -> None:
    archive.compact(nothing)
    for table in TABLES:
        metadata = pq.read_schema(Path(archive.root) / table / "schema.parquet").metadata
        compacted = any(path.startswith(f"{table}/compacted") for path in files(archive))
        assert metadata[b"poise.schema_version"] == (b"2" if compacted else b"1")


@pytest.mark.slow
@pytest.mark.parametrize("table", [table.name for table in TABLES.values() if table.later])
def test_an_archive_from_before_a_table_came_reads_as_one_without_rows_of_it(archive: Archive, table: str) -> None:
    shutil.rmtree(Path(archive.root) / table)
    old = Archive(archive.root)
    assert not old.has(table)
    assert old.rows(table) == []
    assert old.parts(table) == []
    assert old.check() == []
    old.compact(nothing)
    assert not old.has(table)


@pytest.mark.slow
def test_a_part_lacking_a_later_column_is_compacted_with_null(archive: Archive) -> None:
    folder = Path(archive.root) / "candidates"
    path = folder / f"part-{samples.AV}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["composition"]), path)
    before = contents(Archive(archive.root))
    Archive(archive.root).compact(nothing)
    assert contents(Archive(archive.root)) == before
    assert Archive(archive.root).check() == []


# ---- faults


@pytest.mark.slow
def test_a_damaged_part_stops_it_and_nothing_is_removed(archive: Archive) -> None:
    path = Path(archive.root) / "candidates" / f"part-{samples.AV}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    held = files(archive)
    with pytest.raises(ArchiveError, match=rf"part-{samples.AV}\.parquet: not a readable Parquet file"):
        Archive(archive.root).compact(nothing)
    assert files(archive) == held


def test_what_reads_back_differently_is_never_published(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    read = pq.ParquetFile.read_row_group

    def wrong(self: pq.ParquetFile, group: int) -> Any:
        rows = read(self, group)
        return rows.take(list(reversed(range(rows.num_rows))))

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", wrong)
    held = files(archive)
    with pytest.raises(ArchiveError, match="reads back differently; the parts stay as they are"):
        archive.compact(nothing)
    assert files(archive) == held


@pytest.mark.slow
def test_a_full_disk_leaves_everything_as_it_was(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    held = files(archive)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArchiveError, match=r"not written: .*No space left on device"):
            archive.compact(nothing)
    assert files(archive) == held
    archive.compact(nothing)


@pytest.mark.slow
def test_a_second_compaction_at_one_time_is_refused_in_one_line(archive: Archive) -> None:
    other = Archive(archive.root)
    refused = []

    def meanwhile(_: object) -> None:
        with pytest.raises(ArchiveError, match="another process is compacting it; wait for that one") as caught:
            other.compact(nothing)
        refused.append("\n" in str(caught.value))

    archive.compact(meanwhile)
    assert refused == [False] * len(TABLES)
    other.compact(nothing)
    with pytest.raises(ArchiveError, match="nowhere: no archive there"):
        Archive(f"{archive.root}/nowhere").compact(nothing)


class Killed(BaseException):
    """The process is gone."""


def dies_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, names: tuple[str, ...], step: int, *, after: bool
) -> list[str]:
    """From the given call of one of these functions on nothing happens any more: the process was killed there.

    Returns:
        What was called, to be looked at afterwards.
    """
    calls: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(calls) > step:
                raise Killed
            calls.append(name)
            if len(calls) > step and not after:
                raise Killed
            result = real(*arguments, **options)
            if len(calls) > step:
                raise Killed
            return result

        return call

    for name in names:
        monkeypatch.setattr(owner, name, dying(name, getattr(owner, name)))
    return calls


def prepared(root: Path) -> Archive:
    """Three kinds of work: parts beside a compacted file, two splits, a table never compacted; and a snapshot."""
    protocol = samples.make_protocol()
    archive = Archive(root).initialise()
    archive.append("candidates", [one(f"c-{number}") for number in range(3)])
    archive.compact(nothing)
    archive.append("candidates", [one(f"d-{number}") for number in range(3)])
    for seed in (0, 1):
        for split in ("search", "report"):
            evaluation = samples.make_evaluation(protocol, 0.6, seed, split)
            archive.append("evaluations", evaluation_rows("c-0", protocol.digest, evaluation))
        archive.append("trajectories", trajectory_rows("c-0", "p", seed, samples.make_steps(4, seed)))
    return archive


DURABLE = ("mkdir", "fsync", "link", "replace", "unlink")


@pytest.mark.exhaustive
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_durable_step_it_loses_and_doubles_nothing(tmp_path: Path, after: bool) -> None:
    base = prepared(tmp_path / "base")
    before = contents(base)
    shutil.copytree(base.root, tmp_path / "undisturbed")
    undisturbed = Archive(tmp_path / "undisturbed")
    undisturbed.compact(nothing)
    assert len(files(undisturbed)) == 1 + 2 + 1
    seen: set[str] = set()
    for step in range(1000):
        root = tmp_path / f"killed-{step}"
        shutil.copytree(base.root, root)
        reader = Archive(root)
        reader.rows("candidates")
        with pytest.MonkeyPatch.context() as patch:
            calls = dies_at(patch, os, DURABLE, step, after=after)
            try:
                Archive(root).compact(nothing)
            except Killed:
                seen.add(calls[-1])
            else:
                break
        for each in (reader, Archive(root)):
            assert contents(each) == before, f"killed at {step}, {calls[-1]}"
        assert Archive(root).append("candidates", [one("c-1"), one("d-1")]) == 0
        with pytest.raises(ArchiveConflictError):
            Archive(root).append("candidates", [one("d-2", "Other")])
        assert Archive(root).check() == []
        Archive(root).compact(nothing)
        assert [p for p in files(Archive(root)) if ".tmp-" not in p] == files(undisturbed)
        assert not list(Path(root).rglob("compacted/.*")), "no litter where the large files are made"
        for each in (reader, Archive(root)):
            assert contents(each) == before
        shutil.rmtree(root)
    assert step > 30
    assert seen == set(DURABLE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_request_behind_a_pyarrow_file_system(tmp_path: Path, after: bool) -> None:
    prepared(tmp_path / "base")
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    before = contents(Archive("base", remote))
    for step in range(1000):
        shutil.copytree(tmp_path / "base", tmp_path / f"killed-{step}")
        with pytest.MonkeyPatch.context() as patch:
            dies_at(patch, ObjectStorage, ("_write", "_delete"), step, after=after)
            try:
                Archive(f"killed-{step}", remote).compact(nothing)
            except Killed:
                pass
            else:
                break
        again = Archive(f"killed-{step}", remote)
        assert contents(again) == before, f"killed at {step}"
        again.compact(nothing)
        assert len(files(Archive(tmp_path / f"killed-{step}"))) == 1 + 2 + 1
        assert contents(again) == before == contents(Archive(f"killed-{step}", remote))
        assert again.check() == []
    assert step > 15


KILLED = """
import sys
from poise_core.archive import Archive
from poise_core.archive import compaction
compaction.PARTS_AT_ONCE = 20
print("ready", flush=True)
Archive(sys.argv[1]).compact(lambda done: print(done.table, flush=True))
"""


@pytest.mark.exhaustive
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive").initialise()
    archive.append("candidates", [one(f"c-{number}") for number in range(300)])
    before = contents(archive)
    ended = 0
    for attempt in range(12):
        root = tmp_path / f"killed-{attempt}"
        shutil.copytree(archive.root, root)
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.04 * attempt)
        process.kill()
        ended += "calls" in process.stdout.read()
        process.wait()
        assert contents(Archive(root)) == before
        Archive(root).compact(nothing)
        assert len([path for path in files(Archive(root)) if ".tmp-" not in path]) == 1
        assert contents(Archive(root)) == before
        assert Archive(root).check() == []
    assert ended < 12


# ---- readers and writers at the same time


@pytest.fixture
def before_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """What is to happen once a reader has listed the files and before it opens them; each once, in turn."""
    waiting: list[Callable[[], None]] = []
    load, opened = PartReader.load, CompactedFiles._open

    def act() -> None:
        if waiting:
            waiting.pop(0)()

    def slow_load(self: PartReader, *arguments: Any) -> Any:
        act()
        return load(self, *arguments)

    def slow_open(self: CompactedFiles, *arguments: Any, **options: Any) -> Any:
        act()
        return opened(self, *arguments, **options)

    monkeypatch.setattr(PartReader, "load", slow_load)
    monkeypatch.setattr(CompactedFiles, "_open", slow_open)
    yield waiting
    assert not waiting


@pytest.mark.parametrize("table", ["candidates", "trajectories"])
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_reader_overtaken_by_compactions_sees_every_row_once(
    tmp_path: Path, table: str, opened_before: bool, before_load: list[Callable[[], None]]
) -> None:
    archive = Archive(tmp_path / "archive").initialise()

    def add(number: int) -> None:
        archive.append("candidates", [one(f"c-{number}")])
        archive.append("trajectories", trajectory_rows(f"c-{number}", "p", 0, samples.make_steps(2, 0)))

    def compact_again() -> None:
        # by another process, whose own reading is not to be overtaken
        waiting, before_load[:] = before_load[:], []
        add(next(numbers))
        Archive(archive.root).compact(nothing)
        before_load[:] = waiting

    numbers = iter(range(4, 9))
    for number in range(4):
        add(number)
    reader = Archive(archive.root)
    if opened_before:
        reader.rows(table)
        add(next(numbers))
    before_load += [compact_again, compact_again, compact_again]
    keys = [row["candidate_id"] for row in reader.rows(table)]
    per = 2 if table == "trajectories" else 1
    assert len(keys) >= 4 * per
    before_load.clear()
    now = [row["row_key"] for row in reader.rows(table)]
    assert now == sorted(set(now))
    assert now == [row["row_key"] for row in Archive(archive.root).rows(table)]
    assert {key: keys.count(key) for key in keys} == dict.fromkeys(keys, per)


def test_a_thread_whose_list_is_older_than_another_threads_rows_reads_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has listed the parts and no compacted file; before it reads, another has read the file that came meanwhile."""
    archive = Archive(tmp_path / "archive").initialise()
    for number in range(4):
        archive.append("candidates", [one(f"c-{number}")])
    reader, cached, remove = Archive(archive.root), PartReader.cached, DiskStorage._remove
    listed, go_on, found = threading.Event(), threading.Event(), []

    def waits(self: PartReader, *given: Any) -> Any:
        if threading.current_thread() is slow:
            listed.set()
            assert go_on.wait(20)
        return cached(self, *given)

    def before_parts_go(self: DiskStorage, *given: Any) -> None:
        monkeypatch.setattr(DiskStorage, "_remove", remove)
        found.append(len(reader.rows("candidates")))
        go_on.set()
        slow.join()
        remove(self, *given)

    slow = threading.Thread(target=lambda: found.append(len(reader.rows("candidates"))))
    monkeypatch.setattr(PartReader, "cached", waits)
    monkeypatch.setattr(DiskStorage, "_remove", before_parts_go)
    slow.start()
    assert listed.wait(20)
    Archive(archive.root).compact(nothing)
    archive.append("candidates", [one("c-9")])
    assert [*found, len(reader.rows("candidates"))] == [4, 4, 5]


@pytest.mark.slow
def test_appends_go_on_while_it_runs(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that comes after the parts were listed stays where it is, and is in the next compaction."""
    publish, numbers = DiskStorage._publish, iter(range(100))
    other = Archive(archive.root)

    def append_meanwhile(self: DiskStorage, *arguments: Any) -> bool:
        number = next(numbers)
        other.append("candidates", [one(f"before-{number}")])
        other.append("candidates", [one(samples.AV)], keep_existing=True)
        done = publish(self, *arguments)
        other.append("candidates", [one(f"after-{number}")])
        other.append("candidates", [one(samples.AV)], keep_existing=True)
        return done

    ids = {row["candidate_id"] for row in archive.rows("candidates")}
    with monkeypatch.context() as patch:
        patch.setattr(DiskStorage, "_publish", append_meanwhile)
        archive.compact(nothing)
    count = next(numbers)
    assert count > 4
    expected = sorted({*ids, *(f"{when}-{number}" for number in range(count) for when in ("before", "after"))})
    assert [row["candidate_id"] for row in other.rows("candidates")] == expected
    archive.compact(nothing)
    assert [row["candidate_id"] for row in Archive(archive.root).rows("candidates")] == expected
    assert len([path for path in files(archive) if path.startswith("candidates/")]) == 1


@pytest.mark.slow
def test_of_two_writers_the_first_one_counts_even_if_its_part_was_compacted_in_between(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has looked and seen nothing; then the first one's part comes and is moved into the compacted file."""
    write, acted = Storage.write_once, threading.Event()

    def overtaken(self: Storage, table: str, name: str, data: memoryview) -> bool:
        if name == "part-new-0.parquet" and not acted.is_set():
            acted.set()
            first = Archive(archive.root)
            first.append("candidates", [one("new-0", "First")])
            first.compact(nothing)
        return write(self, table, name, data)

    monkeypatch.setattr(Storage, "write_once", overtaken)
    with pytest.raises(ArchiveConflictError, match="holds other content in name"):
        archive.append("candidates", [one("new-0", "Second")])
    assert [row["name"] for row in Archive(archive.root).rows("candidates", candidate_id="new-0")] == ["First"]
    assert not (Path(archive.root) / "candidates" / "part-new-0.parquet").exists()


# ---- the command


@pytest.mark.slow
def test_the_command_says_what_it_did_and_finds_faults(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", samples.make_preset()) as run:
        samples.fill(run.archive, run.preset.protocol)
    before = contents(run.archive)
    call = CliRunner().invoke
    done = call(app, ["archive", "compact", str(tmp_path / "run"), "--check"])
    assert done.exit_code == 0, done.output
    assert "candidates: 6 rows, 6 -> 1 files\n" in done.output
    assert "evaluations: 36 rows, 12 -> 1 files\n" in done.output
    assert "calls" not in done.output
    assert contents(RunDirectory.read(tmp_path / "run").archive) == before
    assert call(app, ["archive", "check", str(tmp_path / "run")]).exit_code == 0
    shutil.rmtree(tmp_path / "run" / "archive" / "candidates" / "compacted")
    done = call(app, ["archive", "check", str(tmp_path / "run")])
    assert done.exit_code == 3
    assert "poise: verifications holds av-1111111111, which candidates lacks" in done.output
    assert call(app, ["archive", "compact", str(tmp_path / "run"), "--check"]).exit_code == 3
    assert call(app, ["archive", "compact", str(tmp_path)]).exit_code == 2
