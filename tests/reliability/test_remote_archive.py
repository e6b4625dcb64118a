"""A run whose archive lies on an S3-compatible server: killed again and again, it ends as on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory, contents, evolve, make_preset, open_evolution
from pyarrow import fs

from poise_core.archive import ArchiveError
from poise_core.archive.object_storage import ObjectStorage
from poise_core.run_directory import RunDirectory

pytest.importorskip("moto.server")

PUTS_PER_LIFE = 9


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of a bucket on a server of its own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    made = fs.S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    made.create_dir("runs")
    yield "s3://runs"
    server.stop()


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.exhaustive
def test_killed_after_every_few_puts_it_ends_as_on_a_disk(
    tmp_path: Path, bucket: str, one_generation: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, lives, puts = ObjectStorage._write, 0, [0]

    def put_and_die(self: ObjectStorage, table: str, name: str, data: memoryview) -> None:
        put(self, table, name, data)
        puts[0] += 1
        if puts[0] % PUTS_PER_LIFE == 0:
            raise Killed(name)

    monkeypatch.setattr(ObjectStorage, "_write", put_and_die)
    remote = make_preset(generations=1).model_copy(update={"archive": f"{bucket}/laptop"})
    while True:
        lives += 1
        try:
            evolution = open_evolution(tmp_path / "remote", remote)
            with evolution.run:
                evolve(evolution)
            break
        except Killed:
            continue
    assert lives > 4
    assert not (tmp_path / "remote" / "archive").exists()
    archive = RunDirectory.read(tmp_path / "remote").archive
    assert contents(archive) == contents(RunDirectory.read(one_generation).archive)
    assert archive.check() == []


@pytest.mark.exhaustive
def test_a_store_that_goes_away_stops_the_run_in_one_line_and_it_goes_on(
    tmp_path: Path, bucket: str, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = make_preset(generations=1).model_copy(update={"archive": f"{bucket}/away"})

    def cut_off(name: str) -> None:
        monkeypatch.setattr(ObjectStorage, "_write", refuse)

    def refuse(self: ObjectStorage, table: str, name: str, data: memoryview) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation")

    put = ObjectStorage._write
    laboratory.before_training = cut_off
    evolution = open_evolution(tmp_path / "run", preset)
    with (
        evolution.run,
        pytest.raises(ArchiveError, match=r"^s3://runs/away/trajectories/part-.*: not written: AWS Error"),
    ):
        evolve(evolution)
    laboratory.before_training = lambda name: None
    monkeypatch.setattr(ObjectStorage, "_write", put)
    again = open_evolution(tmp_path / "run", preset)
    with again.run:
        evolve(again)
    assert len(laboratory.trained) == len(set(laboratory.trained)), "what was trained is not trained again"
    assert again.run.archive.check() == []
