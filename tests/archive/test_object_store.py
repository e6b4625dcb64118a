"""The archive on an S3-compatible server on loopback: the promises of a disk, kept without rename, link and lock."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive_samples as samples
import pytest
from pyarrow import fs
from typer.testing import CliRunner

from poise_core.archive import (
    TABLES,
    Archive,
    ArchiveConflictError,
    ArchiveError,
    ArchiveLocationError,
    ArchiveOwnedError,
    candidate_row,
    location_below,
    trajectory_rows,
)
from poise_core.archive.locations import open_storage
from poise_core.archive.object_storage import ObjectStorage
from poise_core.archive.snapshot import SNAPSHOT_FILE, WORTH
from poise_core.cli import app
from poise_core.run_directory import RunDirectory, RunDirectoryError

pytest.importorskip("moto.server")

BUCKET = "poise"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A URI of its own for every test; address and keys are in the environment, as AWS's tools have them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client(endpoint).create_dir(BUCKET)
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"


def client(endpoint: str) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True,
        access_key="testing", secret_key="testing",
    )  # fmt: skip


def one(candidate_id: str = "grpo-0", name: str = "GRPO") -> dict[str, Any]:
    return candidate_row(candidate_id=candidate_id, name=name, source="x = 1", source_digest="d", written_by="human")


def objects(uri: str) -> list[str]:
    """Every object below the URI."""
    storage = open_storage(uri)
    found = storage.filesystem.get_file_info(fs.FileSelector(storage.path(), recursive=True))
    return sorted(info.path for info in found if info.type == fs.FileType.File)


def digests(archive: Archive) -> dict[str, list[tuple[str, str]]]:
    return {
        table: [(row["row_key"], row["content_digest"]) for row in archive.rows(table, unsealed=True)]
        for table in TABLES
    }


@pytest.mark.exhaustive
def test_a_filled_archive_is_the_same_as_on_a_disk(store: str, tmp_path: Path) -> None:
    on_disk, protocol = samples.filled_archive(tmp_path)
    archive = samples.fill(Archive(store).initialise(), protocol)
    assert digests(archive) == digests(on_disk)
    assert digests(Archive(store)) == digests(on_disk)
    before = objects(store)
    samples.fill(Archive(store).initialise(), protocol)
    assert objects(store) == before, "the same again puts nothing"
    with pytest.raises(ArchiveConflictError, match="holds other content in name"):
        archive.append("candidates", [{**one(samples.AV, "Other")}])
    assert archive.check() == []
    assert archive.lineage().tree(samples.GRPO) == on_disk.lineage().tree(samples.GRPO)
    assert archive.contains("candidates", candidate_id=samples.AV)


@pytest.mark.exhaustive
def test_snapshots_are_put_whole_and_used(store: str) -> None:
    archive = Archive(store).initialise()
    archive.append("candidates", [one(f"c-{number}") for number in range(WORTH + 1)])
    assert archive.refresh_snapshots() == ["candidates"]
    assert any(path.endswith(SNAPSHOT_FILE) for path in objects(store))
    assert len(Archive(store).rows("candidates")) == WORTH + 1
    assert archive.check() == []


@pytest.mark.slow
def test_a_damaged_object_is_named_by_its_uri(store: str) -> None:
    archive = Archive(store).initialise()
    archive.append("candidates", [one()])
    storage = open_storage(store)
    path = storage.path("candidates", "part-grpo-0.parquet")
    with storage.filesystem.open_input_stream(path) as stream:
        whole = stream.read()
    with storage.filesystem.open_output_stream(path) as stream:
        stream.write(whole[: len(whole) // 2])
    message = f"{store}/candidates/part-grpo-0.parquet: not a readable Parquet file, left as it is; restore it"
    with pytest.raises(ArchiveError) as caught:
        Archive(store).rows("candidates")
    assert str(caught.value).startswith(message)
    assert [fault.startswith(message) for fault in Archive(store).check()] == [True]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://host/path", "not a folder or one of s3://"),
        ("s3://bucket", "name a bucket and a prefix"),
        ("s3:///prefix", "name a bucket and a prefix"),
        ("s3://me:hidden@bucket/prefix", "leave keys out of the URI"),
        ("s3://bucket/prefix?secret_key=hidden", "leave keys out of the URI"),
    ],
)
def test_a_place_that_cannot_be_one_is_refused_without_telling_keys(location: str, message: str) -> None:
    with pytest.raises(ArchiveLocationError, match=message) as caught:
        Archive(location)
    assert "hidden" not in str(caught.value)


@pytest.mark.exhaustive
def test_a_server_that_is_away_is_one_line(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for act in (
        lambda archive: archive.append("candidates", [one()]),
        lambda archive: archive.rows("candidates"),
        lambda archive: archive.contains("candidates", candidate_id="x"),
    ):
        with pytest.raises(ArchiveError, match=f"^{store}/candidates") as caught:
            act(Archive(store))
        assert "\n" not in str(caught.value)


def test_a_bucket_that_is_missing_is_one_line(store: str) -> None:
    with pytest.raises(ArchiveError, match=r"^s3://no-such-bucket/x/candidates/schema\.parquet: not written: .*bucket"):
        Archive("s3://no-such-bucket/x").initialise()


@pytest.mark.slow
def test_the_options_of_the_uri_count_more_than_the_environment(endpoint: str, store: str) -> None:
    uri = f"{store}?endpoint_override={endpoint}&scheme=http&region=eu-west-1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:9")
        archive = Archive(uri).initialise()
        archive.append("candidates", [one()])
    assert [row["name"] for row in Archive(store).rows("candidates")] == ["GRPO"]
    below = location_below(uri, "random-seed-0")
    assert below == f"{store}/random-seed-0?endpoint_override={endpoint}&scheme=http&region=eu-west-1"


@pytest.mark.slow
def test_of_two_puts_at_one_time_one_learns_that_it_lost(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked and seen nothing. The one whose object is not what it put must not say that it wrote it."""
    first, second = Archive(store).initialise(), Archive(store)
    put, other = ObjectStorage._write, threading.Event()

    def overtaken(self: ObjectStorage, table: str, name: str, data: memoryview) -> None:
        put(self, table, name, data)
        if name == "part-grpo-0.parquet" and not other.is_set():
            other.set()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ObjectStorage, "exists", lambda *_: False)  # it had looked before the first put
                second.append("candidates", [one(name="Second")])

    monkeypatch.setattr(ObjectStorage, "_write", overtaken)
    with pytest.raises(ArchiveConflictError, match="holds other content in name"):
        first.append("candidates", [one(name="First")])
    assert [row["name"] for row in Archive(store).rows("candidates")] == ["Second"]


def test_ctrl_c_during_a_put_leaves_the_whole_object(store: str) -> None:
    """Closing a stream publishes what it has got, so an exception must not close it half-way."""
    storage = ObjectStorage(store)
    real, data = storage.filesystem, bytes(range(256)) * 100_000  # 25 MB: several requests

    class Interrupted:
        def create_dir(self, *given: Any, **options: Any) -> None:
            real.create_dir(*given, **options)

        def open_output_stream(self, path: str) -> Any:
            stream = real.open_output_stream(path)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            return stream

    storage.__dict__["_opened"] = (Interrupted(), storage._opened[1])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a worker of xdist ignores
    try:
        with pytest.raises(KeyboardInterrupt):
            storage._put("candidates", "all.parquet", memoryview(data))
    finally:
        signal.signal(signal.SIGINT, before)
    assert real.get_file_info(storage.path("candidates", "all.parquet")).size == len(data)


def test_ctrl_c_while_the_uploading_thread_begins_puts_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, start, opened = ObjectStorage(store), threading.Thread.start, []

    class Counted:
        def open_output_stream(self, path: str) -> Any:
            opened.append(path)
            return io.BytesIO()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    storage.__dict__["_opened"] = (Counted(), storage._opened[1])
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage._put("candidates", "all.parquet", memoryview(b"rows"))
    time.sleep(0.2)
    assert opened == []


@pytest.mark.exhaustive
def test_compaction_is_the_same_as_on_a_disk(store: str, tmp_path: Path) -> None:
    on_disk, protocol = samples.filled_archive(tmp_path)
    archive = samples.fill(Archive(store).initialise(), protocol)
    reader = Archive(store)
    reader.rows("candidates")
    for turn in range(3):
        for each in (archive, on_disk):
            each.append("candidates", [one(f"c-{turn}")])
            each.append("trajectories", trajectory_rows(f"c-{turn}", "p", 0, samples.make_steps(5, turn)))
            each.compact(lambda _: None)
        for each in (archive, reader, Archive(store)):
            assert digests(each) == digests(on_disk)
        assert len([path for path in objects(store) if "/compacted/" in path]) == len(
            list((tmp_path / "archive").rglob("compacted/*"))
        )
        assert [path for path in objects(store) if "candidates/part-" in path] == []
        assert archive.append("candidates", [one(f"c-{turn}")]) == 0
        with pytest.raises(ArchiveConflictError, match="holds other content in name"):
            Archive(store).append("candidates", [one(f"c-{turn}", "Other")])
    assert archive.check() == []


@pytest.mark.exhaustive
def test_two_compactions_at_once_lose_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store has no lock: the second begins when the first has listed, and ends before the first publishes."""
    archive = Archive(store).initialise()
    archive.append("candidates", [one(f"c-{number}") for number in range(4)])
    publish, other = ObjectStorage._publish, threading.Event()

    def overtaken(self: ObjectStorage, *arguments: Any) -> bool:
        if not other.is_set():
            other.set()
            second = Archive(store)
            second.append("candidates", [one("c-4")])
            second.compact(lambda _: None)
        return publish(self, *arguments)

    monkeypatch.setattr(ObjectStorage, "_publish", overtaken)
    archive.compact(lambda _: None)
    assert [row["row_key"] for row in Archive(store).rows("candidates")] == [f"c-{number}" for number in range(5)]
    archive.compact(lambda _: None)
    assert [row["row_key"] for row in Archive(store).rows("candidates")] == [f"c-{number}" for number in range(5)]
    assert len([path for path in objects(store) if "candidates/compacted/" in path]) == 1
    assert archive.check() == []


def write_shared(uri: str, writer: int, begin: Any) -> None:
    """One of eight writers: five parts that all write alike, six of its own."""
    archive = Archive(uri).initialise()
    begin.wait()
    archive.append("candidates", [one(f"own-{writer}")])
    for number in range(5):
        archive.append("candidates", [one(f"shared-{number}")])
        archive.append("trajectories", trajectory_rows(f"own-{writer}", "p", number, samples.make_steps(20, number)))
        archive.refresh_snapshots()


@pytest.mark.exhaustive
def test_eight_concurrent_writers_lose_and_double_nothing(store: str) -> None:
    context = multiprocessing.get_context("spawn")  # a client of S3 does not survive a fork
    barrier = context.Barrier(8)
    writers = [context.Process(target=write_shared, args=(store, number, barrier)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)
    assert [writer.exitcode for writer in writers] == [0] * 8
    archive = Archive(store)
    names = [*(f"own-{writer}" for writer in range(8)), *(f"shared-{number}" for number in range(5))]
    assert [row["row_key"] for row in archive.rows("candidates")] == names
    assert archive.read("trajectories").num_rows == 8 * 5 * 20
    assert len([path for path in objects(store) if "/part-" in path]) == 5 + 8 * (1 + 5)
    assert archive.check() == []


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
def test_killing_a_writer_leaves_only_whole_parts(store: str) -> None:
    for attempt in range(4):
        arguments = [sys.executable, "-c", KILLED, store, str(attempt)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(0.03 * attempt)
        process.kill()
        rest = process.stdout.read()
        process.wait()
        rows = Archive(store).read("trajectories", candidate_id=f"c{attempt}").num_rows
        assert rows % 3000 == 0, "an object that is visible is whole, whatever the moment"
        assert rows >= 3000 * (1 + rest.count("\n")), "what was reported as written is there"


# ---- a run whose archive is there


def preset_at(uri: str | None) -> Any:
    return samples.make_preset().model_copy(update={"archive": uri})


@pytest.mark.exhaustive
def test_a_run_keeps_its_archive_in_the_object_store(store: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDirectory.open(path, preset_at(store)) as run:
        samples.fill(run.archive, run.preset.protocol)
    assert not (path / "archive").exists()
    with RunDirectory.open(path, preset_at(None)) as run:  # later starts need not name it again
        assert len(run.archive.rows("candidates")) == 6
        assert run.settings_changes == []
    assert len(RunDirectory.read(path).archive.rows("candidates")) == 6
    with pytest.raises(RunDirectoryError, match=f"its archive is at {store}, not at s3://{BUCKET}/elsewhere"):
        RunDirectory.open(path, preset_at(f"s3://{BUCKET}/elsewhere"))
    for command in (["leaderboard", path], ["lineage", path], ["show", path, "VM-AV"]):
        shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in command])
        assert shown.exit_code == 0, shown.output
        assert "VM-AV" in shown.stdout


@pytest.mark.slow
def test_a_second_run_is_kept_out_of_the_archive(store: str, tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "first", preset_at(store)).close()
    before = objects(store)
    with pytest.raises(
        RunDirectoryError, match=r"belongs to run \w{12}, begun in .*first on .*; take another prefix"
    ) as caught:
        RunDirectory.open(tmp_path / "second", preset_at(store))
    assert "\n" not in str(caught.value)
    assert objects(store) == before
    (tmp_path / "first").rename(tmp_path / "moved")
    RunDirectory.open(tmp_path / "moved", preset_at(store)).close()
    with pytest.raises(RunDirectoryError, match="leave keys out"):
        RunDirectory.open(tmp_path / "third", preset_at("s3://a:b@bucket/x"))
    assert not (tmp_path / "third").exists()
    with pytest.raises(ArchiveOwnedError):
        Archive(store).claim("somebody else\n")
