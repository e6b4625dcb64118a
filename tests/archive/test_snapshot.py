"""The snapshot: a large archive opens quickly, and nothing depends on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import archive_samples as samples
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from poise_core.archive import Archive, ArchiveError, candidate_row, evaluation_rows
from poise_core.archive.disk_storage import DiskStorage
from poise_core.archive.locations import open_storage
from poise_core.archive.reader import PartReader
from poise_core.archive.schema import TABLES
from poise_core.archive.snapshot import SNAPSHOT_FILE, WORTH, load_snapshot, write_snapshot

COUNT = 2 * WORTH


def row(number: int) -> dict:
    parents = [f"c-{number // 2}"] if number else []
    return candidate_row(
        candidate_id=f"c-{number}", name=f"C{number}", source=f"x = {number}", source_digest="d", written_by="human",
        parent_ids=parents, generation=number.bit_length(),
    )  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    opened = Archive(tmp_path / "archive").initialise()
    opened.append("candidates", [row(number) for number in range(COUNT)])
    return opened


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts whose files are opened."""
    names: list[str] = []
    load = PartReader.load

    def spy(self: PartReader, table: object, wanted: list[str], *how: object) -> object:
        names.extend(wanted)
        return load(self, table, wanted, *how)

    monkeypatch.setattr(PartReader, "load", spy)
    return names


def snapshot(archive: Archive, table: str = "candidates") -> Path:
    return Path(archive.root) / table / SNAPSHOT_FILE


@pytest.mark.slow
def test_a_fresh_process_opens_one_file_and_reads_the_same(archive: Archive, opened: list[str]) -> None:
    before = archive.rows("candidates")
    assert archive.refresh_snapshots() == ["candidates"]
    archive.append("candidates", [row(COUNT)])
    opened.clear()
    fresh = Archive(archive.root)
    assert fresh.rows("candidates")[: len(before)] != []
    assert {r["candidate_id"] for r in fresh.rows("candidates")} == {f"c-{n}" for n in range(COUNT + 1)}
    assert [r for r in fresh.rows("candidates") if r["candidate_id"] != f"c-{COUNT}"] == before
    assert opened == [f"part-c-{COUNT}.parquet"]
    assert fresh.lineage().depth(f"c-{COUNT - 1}") == archive.lineage().depth(f"c-{COUNT - 1}")
    assert fresh.check() == []


@pytest.mark.slow
def test_it_is_written_when_it_has_fallen_behind_only(archive: Archive) -> None:
    assert archive.refresh_snapshots() == ["candidates"]
    assert archive.refresh_snapshots() == []
    archive.append("candidates", [row(number) for number in range(COUNT, COUNT + WORTH - 1)])
    assert archive.refresh_snapshots() == []
    archive.append("candidates", [row(COUNT + WORTH)])
    assert archive.refresh_snapshots() == ["candidates"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "rubbish", "another file", "missing"])
def test_a_snapshot_that_cannot_be_read_is_passed_over_and_made_anew(archive: Archive, damage: str) -> None:
    before = archive.rows("candidates")
    archive.refresh_snapshots()
    path = snapshot(archive)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "another file":
        shutil.copy(next(path.parent.glob("part-*")), path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "rubbish": b"PAR1" * 50}[damage])
    fresh = Archive(archive.root)
    assert fresh.rows("candidates") == before
    assert fresh.check() == []
    assert fresh.refresh_snapshots() == ["candidates"]
    assert Archive(archive.root).rows("candidates") == before


@pytest.mark.slow
def test_a_part_that_is_gone_or_changed_is_not_covered_up(archive: Archive) -> None:
    archive.refresh_snapshots()
    folder = snapshot(archive).parent
    part = folder / "part-c-5.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    with pytest.raises(ArchiveError, match=r"part-c-5\.parquet"):
        Archive(archive.root).rows("candidates")
    part.unlink()
    assert "c-5" not in {r["candidate_id"] for r in Archive(archive.root).rows("candidates")}
    with pytest.raises(ArchiveError, match="names the parent c-5"):
        Archive(archive.root).lineage()
    part.write_bytes(whole)
    assert Archive(archive.root).check() == []


@pytest.mark.slow
def test_a_snapshot_that_says_something_else_is_found_by_the_check(archive: Archive) -> None:
    archive.refresh_snapshots()
    path = snapshot(archive)
    table = pq.read_table(path)
    names = table.schema.names
    forged = table.set_column(names.index("name"), table.schema.field("name"), [["Forged"] * table.num_rows])
    pq.write_table(forged.replace_schema_metadata(table.schema.metadata), path)
    assert archive.check() == [f"{path}: differs from the parts it stands for; delete it"]


@pytest.mark.slow
def test_the_sealed_split_never_enters(tmp_path: Path) -> None:
    archive, protocol = Archive(tmp_path / "archive").initialise(), samples.make_protocol()
    for number in range(WORTH + 1):
        for split in ("search", "report"):
            evaluation = samples.make_evaluation(protocol, 0.4, number, split)
            archive.append("evaluations", evaluation_rows("grpo-0", protocol.digest, evaluation))
    archive.rows("evaluations", unsealed=True)  # the cache holds both
    assert archive.refresh_snapshots() == ["evaluations"]
    stored = pq.read_table(snapshot(archive, "evaluations"))
    assert set(stored["split"].to_pylist()) == {"search"}
    assert not any("report" in name for name in json.loads(stored.schema.metadata[b"poise.part_sizes"]))
    fresh = Archive(archive.root)
    assert {r["split"] for r in fresh.rows("evaluations")} == {"search"}
    assert len(fresh.rows("evaluations", unsealed=True)) == 2 * len(fresh.rows("evaluations"))
    assert archive.refresh_snapshots() == []


@pytest.mark.slow
def test_nobody_but_the_archive_sees_it_and_a_full_disk_only_means_no_snapshot(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas

    archive.refresh_snapshots()
    snapshot(archive).unlink()

    def full(self: DiskStorage, *_: object) -> None:
        raise ArchiveError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(DiskStorage, "replace", full)
        assert archive.refresh_snapshots() == []
    archive.refresh_snapshots()
    assert len(pandas.read_parquet(snapshot(archive).parent)) == COUNT
    assert sorted(p.name for p in snapshot(archive).parent.glob(".*")) == [SNAPSHOT_FILE]


@pytest.mark.slow
def test_it_works_behind_a_pyarrow_file_system(archive: Archive, tmp_path: Path) -> None:
    remote = Archive("archive", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    before = remote.rows("candidates")
    assert remote.refresh_snapshots() == ["candidates"]
    again = Archive("archive", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))
    assert again.rows("candidates") == before


def test_the_sealed_split_stays_out_even_where_it_is_asked_for(tmp_path: Path) -> None:
    archive, protocol = Archive(tmp_path / "archive").initialise(), samples.make_protocol()
    for split in ("search", "report"):
        evaluation = samples.make_evaluation(protocol, 0.4, 0, split)
        archive.append("evaluations", evaluation_rows("grpo-0", protocol.digest, evaluation))
    store = open_storage(archive.root)
    everything = archive.read("evaluations", unsealed=True)
    assert write_snapshot(store, TABLES["evaluations"], everything, store.sizes("evaluations"))
    written = load_snapshot(store, TABLES["evaluations"])
    assert written is not None
    assert set(written.rows["split"].to_pylist()) == {"search"}
    assert len(written.sizes) == 1
