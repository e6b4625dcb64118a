"""The archive's promises: every row once, nothing overwritten, damage named, the report split sealed."""

from __future__ import annotations

import datetime as dt
import errno
import math
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import archive_samples as samples
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from poise_core.archive import (
    Archive,
    ArchiveConflictError,
    ArchiveError,
    ArchiveRowError,
    candidate_row,
    evaluation_rows,
    failure_row,
    trajectory_rows,
)
from poise_core.archive.encoding import content_digests
from poise_core.archive.locations import open_storage
from poise_core.archive.object_storage import ObjectStorage
from poise_core.archive.schema import SCHEMA_VERSION, TABLES, listing
from poise_core.failures import CandidateFailure, FailureKind


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive").initialise()


def one(candidate_id: str = "grpo-0", name: str = "GRPO", **more: object) -> dict:
    return {
        **candidate_row(candidate_id=candidate_id, name=name, source="x = 1", source_digest="d", written_by="human"),
        **more,
    }


def visible(archive: Archive, table: str) -> list[str]:
    """Every file of a table's folder, hidden ones too, its schema file aside."""
    return sorted(name for name in os.listdir(Path(archive.root) / table) if name != "schema.parquet")


# ---- reading back


def test_every_table_reads_back_in_one_line_of_pandas_even_when_empty(archive: Archive) -> None:
    for table in TABLES.values():
        frame = pd.read_parquet(Path(archive.root) / table.name)
        assert list(frame.columns) == [field.name for field in table.fields]
        assert frame.empty


def test_a_filled_archive_reads_back_in_one_line_of_pandas(tmp_path: Path) -> None:
    archive, _ = samples.filled_archive(tmp_path)
    evaluations = pd.read_parquet(Path(archive.root) / "evaluations")
    assert len(evaluations) == 4 * 3 * 3  # candidates x seeds x benchmarks
    assert evaluations["created_at"].dt.tz is not None
    assert pd.read_parquet(Path(archive.root) / "candidates")["name"].tolist().count("VM-AV") == 1


def test_evaluations_come_back_as_they_went_in(archive: Archive) -> None:
    protocol = samples.make_protocol()
    given = [samples.make_evaluation(protocol, 0.4, seed) for seed in (11, 2)]
    for evaluation in given:
        archive.append("evaluations", evaluation_rows("grpo-0", protocol.digest, evaluation))
    found = archive.evaluations(protocol=protocol.digest)
    # seeds in order of number (2 before 11, not as text); benchmarks by name
    assert [e.seed for e in found["grpo-0"]] == [2, 11]
    by_name = [sorted(e.benchmarks, key=lambda b: b.name) for e in (given[1], given[0])]
    assert [list(e.benchmarks) for e in found["grpo-0"]] == by_name
    assert [e.overall for e in found["grpo-0"]] == [given[1].overall, given[0].overall]
    assert archive.evaluations(protocol="another") == {}


def test_trajectories_come_back_as_they_went_in(archive: Archive) -> None:
    steps = samples.make_steps(12, 0, collapse=True)
    archive.append("trajectories", trajectory_rows("grpo-0", "p", 0, [*steps[6:], *steps[:6]]))
    found = archive.trajectory("grpo-0", "p")[0]
    assert [row["step"] for row in found] == list(range(12))
    assert found[:-1] == steps[:-1]
    assert math.isnan(found[-1]["entropy"])
    assert math.isinf(found[-1]["grad_norm"])
    assert found[3]["candidate/sigma"] == 0.3
    assert archive.trajectory("grpo-0", "another") == {}


def test_rows_carry_their_writer_time_and_schema_version(archive: Archive) -> None:
    archive.append("candidates", [one()])
    row = archive.rows("candidates")[0]
    assert row["written_by"] == "human"
    assert abs((dt.datetime.now(dt.UTC) - row["created_at"]).total_seconds()) < 60
    path = Path(archive.root) / "candidates" / visible(archive, "candidates")[0]
    schema = pq.read_schema(path)
    assert schema.metadata[b"poise.schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.field("source").metadata[b"doc"] == b"the candidate file"


@pytest.mark.slow
def test_filters_match_values_and_collections(tmp_path: Path) -> None:
    archive, protocol = samples.filled_archive(tmp_path)
    assert {r["name"] for r in archive.rows("candidates", generation=1)} == {"AV", "SA"}
    wanted = {samples.GRPO, samples.AV}
    assert {r["candidate_id"] for r in archive.rows("evaluations", candidate_id=wanted, seed=1)} == wanted
    assert archive.read("evaluations", ["seed"], protocol=protocol.digest, seed=2).column_names == ["seed"]
    with pytest.raises(ArchiveRowError, match="unknown column 'colour'"):
        archive.read("candidates", colour="red")


def test_keys_with_odd_characters_stay_apart(archive: Archive) -> None:
    odd = ["a/b", "a,b", "a%2Fb", ".hidden", "_under", "ä b", "a=b"]
    for key in odd:
        archive.append("candidates", [one(key)])
    assert {r["candidate_id"] for r in archive.rows("candidates")} == set(odd)
    assert len(pd.read_parquet(Path(archive.root) / "candidates")) == len(odd)
    for key in odd:
        assert [r["candidate_id"] for r in archive.rows("candidates", candidate_id=key)] == [key]
        assert archive.contains("candidates", candidate_id=key)
    with pytest.raises(ArchiveRowError, match="too long"):
        archive.append("candidates", [one("x" * 300)])


# ---- every row once


def test_the_same_append_again_changes_nothing(archive: Archive) -> None:
    rows = trajectory_rows("grpo-0", "p", 0, samples.make_steps(5, 0))
    assert archive.append("trajectories", rows) == 5
    path = Path(archive.root) / "trajectories" / visible(archive, "trajectories")[0]
    before = path.read_bytes()
    slower = [{**row, "seconds_update": 9.0} for row in reversed(rows)]  # timing does not count, nor does the order
    assert archive.append("trajectories", slower) == 0
    assert path.read_bytes() == before
    assert len(visible(archive, "trajectories")) == 1


def test_other_content_under_the_same_key_is_a_conflict_and_the_old_row_stays(archive: Archive) -> None:
    archive.append("candidates", [one(name="GRPO")])
    with pytest.raises(ArchiveConflictError, match=r"part-grpo-0\.parquet: holds other content in name; kept"):
        archive.append("candidates", [one(name="Other")])
    assert archive.rows("candidates")[0]["name"] == "GRPO"
    assert archive.append("candidates", [one(name="Other")], keep_existing=True) == 0
    assert archive.rows("candidates")[0]["name"] == "GRPO"


def test_a_part_with_more_or_fewer_rows_is_a_conflict(archive: Archive) -> None:
    rows = trajectory_rows("grpo-0", "p", 0, samples.make_steps(5, 0))
    archive.append("trajectories", rows)
    with pytest.raises(ArchiveConflictError, match="holds 5 rows that are not the 4 given"):
        archive.append("trajectories", rows[:4])


def test_the_text_of_a_failure_may_differ_but_not_its_kind(archive: Archive) -> None:
    def row(kind: FailureKind, message: str) -> dict:
        return failure_row(CandidateFailure(kind, "train", message), candidate_id="c", protocol="p")

    archive.append("failures", [row(FailureKind.TIMED_OUT, "after 600.1 s")])
    assert archive.append("failures", [row(FailureKind.TIMED_OUT, "after 600.3 s")]) == 0
    with pytest.raises(ArchiveConflictError, match="in kind"):
        archive.append("failures", [row(FailureKind.CRASHED, "after 600.1 s")])


def test_a_second_archive_object_sees_new_parts_and_so_does_the_first(archive: Archive) -> None:
    archive.append("candidates", [one("a-0")])
    assert len(archive.rows("candidates")) == 1
    pickle.loads(pickle.dumps(archive)).append("candidates", [one("b-0")])
    assert [r["candidate_id"] for r in archive.rows("candidates")] == ["a-0", "b-0"]


def test_rows_belong_to_who_asked_for_them(tmp_path: Path) -> None:
    archive, protocol = samples.filled_archive(tmp_path)
    asked = {"protocol": protocol.digest, "candidate_id": samples.GRPO, "seed": 0}
    first = archive.rows("evaluations", **asked)
    expected = list(first[0]["correct"])
    first[0]["correct"].clear()
    first[0]["seed"] = 7
    first.clear()
    again = archive.rows("evaluations", **asked)
    assert expected
    assert (again[0]["seed"], again[0]["correct"]) == (0, expected)


def test_contains_asks_for_the_whole_key(archive: Archive) -> None:
    archive.append("candidates", [one("a-0")])
    assert archive.contains("candidates", candidate_id="a-0")
    assert not archive.contains("candidates", candidate_id="b-0")
    with pytest.raises(ValueError, match="give protocol, candidate_id, split, seed"):
        archive.contains("evaluations", candidate_id="a-0")


# ---- rows that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"name": None}, "column 'name' of row grpo-0 is missing"),
        ({"generation": "first"}, "column 'generation' takes int64"),
        ({"candidate_id": ""}, "key column 'candidate_id' is missing"),
        ({"written_by": "me"}, "is 'me'; allowed: catalogue, llm"),
        ({"created_at": dt.datetime(2026, 1, 1)}, "time zone"),
        ({"row_key": "mine"}, "unknown column 'row_key'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(
    archive: Archive, change: dict, message: str
) -> None:
    with pytest.raises(ArchiveRowError, match=message) as caught:
        archive.append("candidates", [one("fine-0"), one(**change)])
    assert "\n" not in str(caught.value)
    assert visible(archive, "candidates") == []


def test_a_score_that_is_not_finite_is_refused(archive: Archive) -> None:
    rows = evaluation_rows("c", "p", samples.make_evaluation(samples.make_protocol(), 0.4, 0))
    with pytest.raises(ArchiveRowError, match="a failure, not a score"):
        archive.append("evaluations", [{**row, "score": math.nan} for row in rows])


def test_a_row_given_twice_is_refused(archive: Archive) -> None:
    with pytest.raises(ArchiveRowError, match="given twice"):
        archive.append("candidates", [one(), one()])
    with pytest.raises(ArchiveRowError, match="no table 'nodes'"):
        archive.append("nodes", [])


# ---- the sealed split


def test_the_report_split_is_only_given_out_unsealed(archive: Archive) -> None:
    protocol = samples.make_protocol()
    for split in ("search", "report"):
        evaluation = samples.make_evaluation(protocol, 0.4, 0, split)
        archive.append("evaluations", evaluation_rows("grpo-0", protocol.digest, evaluation))

    def splits(**how: object) -> set[str]:
        return {row["split"] for row in archive.rows("evaluations", **how)}

    assert splits() == {"search"}
    assert splits(split="report") == set()
    assert splits(unsealed=True) == {"search", "report"}
    assert splits() == {"search"}, "rows that an unsealed read left in the cache must not leak"
    assert splits(split=["search", "report"]) == {"search"}
    with pytest.raises(ArchiveError, match="sealed"):
        archive.evaluations(protocol=protocol.digest, split="report")
    unsealed = archive.evaluations(protocol=protocol.digest, split="report", unsealed=True)
    assert [e.split for e in unsealed["grpo-0"]] == ["report"]
    # sealed reads do not even open the file
    next((Path(archive.root) / "evaluations").glob("*,report,*")).write_bytes(b"damaged")
    assert {r["split"] for r in Archive(archive.root).rows("evaluations")} == {"search"}


# ---- damage


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "rubbish"])
def test_a_damaged_file_is_named_in_one_line_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    archive, protocol = samples.filled_archive(tmp_path)
    path = Path(archive.root) / "candidates" / f"part-{samples.AV}.parquet"
    computed = ("row_key", "content_digest")
    stored = archive.rows("candidates", candidate_id=samples.AV)[0]
    row = {name: value for name, value in stored.items() if name not in computed}
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "rubbish": b"PAR1" * 100}[damage])
    damaged = path.read_bytes()
    fresh = Archive(archive.root)
    for act in (lambda: fresh.rows("candidates"), fresh.lineage, lambda: fresh.append("candidates", [row])):
        with pytest.raises(ArchiveError) as caught:
            act()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, ArchiveConflictError)
    assert path.read_bytes() == damaged
    assert any(str(path) in fault for fault in fresh.check())
    assert fresh.evaluations(protocol=protocol.digest), "other tables still read"


@pytest.mark.slow
def test_a_missing_file_shows_in_the_lineage_and_in_the_check(tmp_path: Path) -> None:
    archive, _ = samples.filled_archive(tmp_path)
    assert archive.check() == []
    (Path(archive.root) / "candidates" / f"part-{samples.AV}.parquet").unlink()
    fresh = Archive(archive.root)
    with pytest.raises(ArchiveError, match=f"names the parent {samples.AV}, which the archive lacks"):
        fresh.lineage()
    assert f"evaluations holds {samples.AV}, which candidates lacks" in fresh.check()


def test_a_missing_table_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"nowhere/candidates: no such folder"):
        Archive(tmp_path / "nowhere").rows("candidates")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_altered_by_hand_is_found_by_the_check(archive: Archive) -> None:
    archive.append("candidates", [one()])
    path = Path(archive.root) / "candidates" / "part-grpo-0.parquet"
    table = pq.read_table(path)
    names = table.schema.names
    pq.write_table(table.set_column(names.index("name"), table.schema.field("name"), [["Better"]]), path)
    assert archive.check() == [f"{path}: a row does not match its digest; the file was altered"]


def test_an_archive_of_a_later_version_is_refused(archive: Archive) -> None:
    path = Path(archive.root) / "candidates" / "schema.parquet"
    empty = pq.read_table(path)
    pq.write_table(empty.replace_schema_metadata({"poise.schema_version": "99"}), path)
    fresh = Archive(archive.root)
    with pytest.raises(ArchiveError, match="schema version 99; this program knows up to 2; update it"):
        fresh.append("candidates", [one()])
    with pytest.raises(ArchiveError, match="schema version 99"):
        fresh.rows("candidates")
    assert visible(archive, "candidates") == []


def test_a_part_without_a_column_that_came_later_still_reads(archive: Archive) -> None:
    archive.append("candidates", [one("old-0"), one("new-0")])
    path = Path(archive.root) / "candidates" / "part-old-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["proposal_id"]), path)
    rows = Archive(archive.root).rows("candidates")
    assert [(r["candidate_id"], r["proposal_id"]) for r in rows] == [("new-0", None), ("old-0", None)]
    assert archive.append("candidates", [one("old-0")]) == 0, "a column that was null then and now is no conflict"
    whole = pq.read_table(path.with_name("part-new-0.parquet"))
    digests = content_digests(TABLES["candidates"], whole.drop_columns(["proposal_id"]))
    assert digests == whole["content_digest"].to_pylist(), "a digest from before the column came still holds"


# ---- full disks, kills, many writers


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_behind(archive: Archive) -> None:
    """RLIMIT_FSIZE makes a write fail half-way, as a full disk does."""
    rows = trajectory_rows("grpo-0", "p", 0, samples.make_steps(400, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ArchiveError, match=r"part-p,grpo-0,0\.parquet: not written: .*File too large") as caught:
            archive.append("trajectories", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert visible(archive, "trajectories") == []
    assert archive.append("trajectories", rows) == 400


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_an_error_at_any_step_of_writing_leaves_nothing_behind(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(ArchiveError, match=r"not written: .*No space left on device"):
            archive.append("candidates", [one()])
    assert visible(archive, "candidates") == []


def test_a_file_system_without_links_still_refuses_to_overwrite(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    assert archive.append("candidates", [one()]) == 1
    assert archive.append("candidates", [one()]) == 0
    with pytest.raises(ArchiveConflictError):
        archive.append("candidates", [one(name="Other")])
    assert visible(archive, "candidates") == ["part-grpo-0.parquet"]


def test_what_a_killed_writer_left_is_invisible_and_swept_after_an_hour(archive: Archive) -> None:
    leftover = Path(archive.root) / "candidates" / ".tmp-1-dead"
    leftover.write_bytes(b"half a file")
    archive.append("candidates", [one()])
    assert len(pd.read_parquet(leftover.parent)) == 1
    assert archive.check() == []
    archive.initialise()
    assert leftover.exists(), "it may be another process's, at work"
    os.utime(leftover, (time.time() - 7200,) * 2)
    archive.initialise()
    assert not leftover.exists()


def write_shared(root: str, writer: int, barrier: object) -> None:
    """One of eight writers: five parts that all write alike, one that all write differently, five of its own."""
    archive = Archive(root).initialise()
    barrier.wait()
    for number in range(5):
        archive.append("candidates", [one(f"shared-{number}")])
        archive.append("trajectories", trajectory_rows(f"own-{writer}", "p", number, samples.make_steps(20, number)))
    try:
        archive.append("candidates", [one("fought-over", name=f"writer {writer}")])
    except ArchiveConflictError:
        sys.exit(3)


@pytest.mark.exhaustive
def test_eight_concurrent_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    root = str(tmp_path / "archive")
    context = multiprocessing.get_context(
        "spawn"
    )  # whatever tests before this one have started does not survive a fork
    barrier = context.Barrier(8)
    writers = [context.Process(target=write_shared, args=(root, n, barrier)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert sorted(writer.exitcode for writer in writers) == [0] + [3] * 7  # exactly one wins the contested row
    archive = Archive(root)
    keys = [r["row_key"] for r in archive.rows("candidates")]
    assert keys == sorted({*(f"shared-{n}" for n in range(5)), "fought-over"})
    assert archive.read("trajectories").num_rows == 8 * 5 * 20
    assert not [name for table in TABLES for name in visible(archive, table) if name.startswith(".")]


KILLED = """
import sys
from poise_core.archive import Archive, trajectory_rows
archive = Archive(sys.argv[1]).initialise()
steps = [{"step": n, "reward_mean": n / 7} for n in range(3000)]
for seed in range(10**6):
    archive.append("trajectories", trajectory_rows(f"c{sys.argv[2]}", "p", seed, steps))
    print(seed, flush=True)
"""


@pytest.mark.exhaustive
def test_killing_a_writer_leaves_only_whole_parts(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for attempt in range(6):
        arguments = [sys.executable, "-c", KILLED, str(root), str(attempt)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(0.013 * attempt)
        process.kill()
        rest = process.stdout.read()
        process.wait()
        rows = Archive(root).read("trajectories", candidate_id=f"c{attempt}").num_rows
        assert rows % 3000 == 0, "a part that is visible is whole, whatever the moment"
        assert rows >= 3000 * (1 + rest.count("\n")), "what was reported as written is there"


# ---- other file systems, imports, documents


@pytest.mark.slow
def test_the_archive_works_behind_a_pyarrow_file_system(tmp_path: Path) -> None:
    """A subtree of the local disk takes the path that object stores take: plain puts, no links."""
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    archive = Archive("bucket/archive", remote).initialise()
    assert archive.append("candidates", [one("first-0")]) == 1, "what was put is known to have been put"
    (tmp_path / "bucket" / "archive" / "candidates" / "part-first-0.parquet").unlink()
    samples.fill(archive, samples.make_protocol())
    again = pickle.loads(pickle.dumps(archive))
    samples.fill(again, samples.make_protocol())
    assert len(again.rows("candidates")) == 6
    with pytest.raises(ArchiveConflictError):
        archive.append("candidates", [one(samples.AV)])
    assert archive.check() == []
    assert isinstance(open_storage("bucket/archive", remote), ObjectStorage)


@pytest.mark.slow
def test_importing_the_archive_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, poise_core.archive, poise_core.views, poise_core.run_directory\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'langchain', 'langchain_core', 'mlflow', 'prefect'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_documented_tables_are_the_schema() -> None:
    text = (Path(__file__).parents[2] / "docs" / "archive.md").read_text(encoding="utf-8")
    assert listing().strip() in text, "put the output of python -m poise_core.archive.schema into docs/archive.md"


def test_every_column_is_documented_and_every_key_is_a_column() -> None:
    for table in TABLES.values():
        names = [field.name for field in table.fields]
        assert len(set(names)) == len(names)
        assert set(table.keys) <= set(names)
        assert all(field.doc for field in table.fields)
        assert not any(field.nullable or not field.counts for field in table.fields if field.name in table.keys)
