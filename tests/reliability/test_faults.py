"""Faults of the machine under a run: a full disk, a truncated file, a clock that jumps, a second evolution."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import archive_samples as samples
import pytest
from laboratory import Laboratory, contents, evolve, open_evolution

from poise_core.archive import Archive, ArchiveError, encoding, trajectory_rows
from poise_core.failures import InfrastructureError
from poise_core.run_directory import RunDirectory

POISE = Path(sys.executable).parent / "poise"


@pytest.fixture
def expected(two_generations: Path, laboratory: Laboratory) -> dict[str, dict[str, str]]:
    """What an undisturbed evolution records."""
    return contents(RunDirectory.read(two_generations).archive)


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB; called again, it is made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(kibibytes: int) -> Path:
        how = f"remount,size={kibibytes}k" if os.path.ismount(folder) else f"size={kibibytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip("mounting a file system needs root")
        return folder

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_whole_files_and_the_same_append_goes_on(small_disk: Callable[[int], Path]) -> None:
    archive = Archive(small_disk(600) / "archive").initialise()
    steps = samples.make_steps(400, 0)
    written: list[str] = []

    def fill() -> None:
        for number in range(1000):
            archive.append("trajectories", trajectory_rows(f"c-{number}", "p", 0, steps))
            written.append(f"c-{number}")

    with pytest.raises(
        ArchiveError, match=r"part-p,c-\d+,0\.parquet: not written: .*No space left on device"
    ) as caught:
        fill()
    assert written
    assert "\n" not in str(caught.value)
    names = os.listdir(Path(archive.root) / "trajectories")
    assert len(names) == len(written) + 1, "the parts that were reported as written and the schema; nothing hidden"
    assert Archive(archive.root).read("trajectories").num_rows == 400 * len(written)
    small_disk(2000)
    assert archive.append("trajectories", trajectory_rows(f"c-{len(written)}", "p", 0, steps)) == 400
    assert [fault for fault in archive.check() if "not a readable" in fault] == []


@pytest.mark.slow
def test_an_evolution_stops_on_a_full_disk_and_goes_on_with_more_room(
    small_disk: Callable[[int], Path], expected: dict[str, dict[str, str]]
) -> None:
    """Wherever the disk is full, the error is the machine's, in one line, and nothing half-written counts later."""
    size, stops = 200, []
    while True:
        folder = small_disk(size) / "run"
        try:
            evolution = open_evolution(folder)
            with evolution.run:
                evolve(evolution)
            break
        except (InfrastructureError, OSError, ValueError) as error:
            stops.append(error)
            size += 60
    assert len(stops) > 3
    for error in stops:
        assert "No space left on device" in str(error)
        assert (
            isinstance(error, InfrastructureError) or "not written" in str(error) or "cannot be used" in str(error)
        ), repr(error)
    run = RunDirectory.read(folder)
    assert contents(run.archive) == expected
    assert run.archive.check() == []
    assert not run.archive.rows("failures"), "a full disk is no candidate's failure"


# ---- a truncated file


LATER = [
    pytest.param(name, marks=pytest.mark.exhaustive)
    for name in ("candidates", "verifications", "trajectories", "selections")
]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["evaluations", *LATER])
def test_a_truncated_part_stops_the_run_by_name_and_its_remedy_works(
    table: str, tmp_path: Path, one_generation: Path, expected: dict[str, dict[str, str]]
) -> None:
    shutil.copytree(one_generation, tmp_path / "run")
    part = sorted((tmp_path / "run" / "archive" / table).glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:-40])
    cut = part.read_bytes()

    evolution = open_evolution(tmp_path / "run")  # two generations this time
    with evolution.run, pytest.raises(ArchiveError) as caught:
        evolve(evolution)
    message = str(caught.value)
    assert str(part) in message
    assert "restore it, or move it away to have its stage redone" in message
    assert "\n" not in message
    assert part.read_bytes() == cut
    assert any(str(part) in fault for fault in Archive(tmp_path / "run" / "archive").check())

    part.rename(tmp_path / "moved away")
    evolution = open_evolution(tmp_path / "run")
    with evolution.run:
        evolve(evolution)
    assert contents(evolution.run.archive) == expected
    assert evolution.run.archive.check() == []


# ---- a clock that jumps


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_row_and_no_order(
    tmp_path: Path,
    laboratory: Laboratory,
    two_generations: Path,
    expected: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every time it is read it has been set back by an hour, after a year in the future."""
    readings = (dt.datetime(2031, 1, 1, tzinfo=dt.UTC) - dt.timedelta(hours=count) for count in itertools.count())
    evolution = open_evolution(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_now", lambda: next(readings))
        evolve(evolution)
    archive = evolution.run.archive
    times = [row["created_at"] for row in archive.rows("candidates")]
    assert min(times) > dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    assert contents(archive) == expected
    steady = RunDirectory.read(two_generations).archive
    assert children(archive) == children(steady), "siblings stand in the order of their places"
    trained = len(laboratory.trained)
    evolve(evolution)
    assert len(laboratory.trained) == trained, "nothing looks older than it is and is done again"


def children(archive: Archive) -> list[str]:
    """In the order of the lineage; the two roots are made side by side."""
    return [candidate for candidate, parents in archive.lineage().parents.items() if parents]


# ---- a second evolution


@pytest.mark.slow
def test_a_second_evolution_on_the_directory_is_refused_in_one_line(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution = open_evolution(tmp_path / "run")
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    with evolution.run:
        second = subprocess.run(
            [POISE, "evolve", "--preset", "smoke", "--run-dir", tmp_path / "run"],
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    assert second.returncode == 2
    (line,) = second.stderr.strip().splitlines()
    assert f"in use by process {os.getpid()} on" in line
    assert "wait for it, end it, or take another directory" in line
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before
