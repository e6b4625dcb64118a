"""The run directory: frozen protocol, one evolution at a time, nothing overwritten when it refuses."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import archive_samples as samples
import pytest
import yaml

from poise_core.candidate.loading import source_digest
from poise_core.evaluation.problems import ProblemSecret
from poise_core.failures import InfrastructureError
from poise_core.run_directory import RunDirectory, RunDirectoryError, candidate_id


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refuse(path: Path, steps: int = 20) -> str:
    """Open, expect a refusal of one line that changes no file, and give the line."""
    before = snapshot(path) if path.is_dir() else {}
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.open(path, samples.make_preset(steps))
    assert "\n" not in str(caught.value)
    assert (snapshot(path) if path.is_dir() else {}) == before
    return str(caught.value)


def test_a_first_start_freezes_the_preset_and_makes_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    preset = samples.make_preset()
    with RunDirectory.open(path, preset) as run:
        assert run.archive.rows("candidates") == []
        assert run.candidate_folder("x-1") == path / "candidates" / "x-1"
        assert run.train_folder("x-1") == path / "candidates" / "x-1" / "train"
        assert run.evaluate_folder("x-1") == path / "candidates" / "x-1" / "evaluate"
        assert run.settings_changes == []
        assert run.secret is not None
    assert path.stat().st_mode & 0o777 == 0o700, "answers and prompts are nobody else's"
    frozen = yaml.safe_load((path / "preset.yaml").read_text())
    assert frozen["protocol_digest"] == preset.protocol.digest
    assert frozen["problems"] == run.secret.fingerprint
    read = RunDirectory.read(path)
    assert read.preset == preset
    assert read.preset.protocol.digest == preset.protocol.digest


@pytest.mark.slow
def test_reopening_goes_on_and_records_changed_settings(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", samples.make_preset(generations=2)).close()
    frozen = (tmp_path / "run" / "preset.yaml").read_bytes()
    for generations in (4, 4, 2):
        with RunDirectory.open(tmp_path / "run", samples.make_preset(generations=generations)) as run:
            assert run.preset.search.generations == generations
    changes = [change["changed"] for change in RunDirectory.read(tmp_path / "run").settings_changes]
    assert changes == [{"search.generations": [2, 4]}, {"search.generations": [4, 2]}]
    assert (tmp_path / "run" / "preset.yaml").read_bytes() == frozen


def test_another_protocol_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", samples.make_preset(20)).close()
    message = refuse(tmp_path / "run", steps=21)
    assert "protocol.training.steps: 20 there, 21 here" in message
    assert samples.make_protocol(20).digest in message
    assert samples.make_protocol(21).digest in message


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "not a directory" in refuse(tmp_path / "file")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    assert "not empty and not a run directory (it holds thesis.tex)" in refuse(tmp_path / "home")
    with pytest.raises(RunDirectoryError, match=r"not a run directory, it has no preset\.yaml"):
        RunDirectory.read(tmp_path / "home")


@pytest.mark.parametrize("text", ["", "preset: [", "preset: {}\nprotocol_digest: x\n", "\x00"])
def test_a_damaged_preset_is_one_line_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    RunDirectory.open(tmp_path / "run", samples.make_preset()).close()
    (tmp_path / "run" / "preset.yaml").write_text(text)
    message = refuse(tmp_path / "run")
    assert "preset.yaml: cannot be read" in message
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        RunDirectory.read(tmp_path / "run")


def test_a_preset_lost_beside_its_archive_or_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunDirectory.open(path, samples.make_preset()).close()
    text = (path / "preset.yaml").read_text()
    (path / "preset.yaml").write_text(text.replace("steps: 20", "steps: 30"))
    assert "undo the change" in refuse(path, steps=30)
    (path / "preset.yaml").unlink()
    assert "preset.yaml is missing beside an archive" in refuse(path)


def test_reading_takes_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", samples.make_preset()):
        before = snapshot(tmp_path / "run")
        RunDirectory.read(tmp_path / "run").archive.rows("candidates")
        assert snapshot(tmp_path / "run") == before


HOLDER = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
import archive_samples as samples
from poise_core.run_directory import RunDirectory
run = RunDirectory.open(sys.argv[1], samples.make_preset())
if os.fork() == 0:  # a child that outlives its parent, as a training may for a moment
    time.sleep(20)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_evolution_is_refused_by_name_and_kill_9_frees_the_directory(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), str(Path(samples.__file__).parent)]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert f"in use by process {holder.pid} on" in refuse(tmp_path / "run")
        holder.kill()
        holder.wait()
        time.sleep(0.05)
        with RunDirectory.open(tmp_path / "run", samples.make_preset()):
            assert f"in use by process {os.getpid()} on" in refuse(tmp_path / "run"), "also within one process"
        RunDirectory.open(tmp_path / "run", samples.make_preset()).close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_failed_start_gives_the_lock_back(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", samples.make_preset(20)).close()
    refuse(tmp_path / "run", steps=21)
    RunDirectory.open(tmp_path / "run", samples.make_preset(20)).close()


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", samples.make_preset()).close()
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"settings\.json: cannot be read"):
        RunDirectory.open(tmp_path / "run", samples.make_preset())


def test_a_run_can_be_joined_while_it_is_held_and_candidates_have_locks_of_their_own(tmp_path: Path) -> None:
    class StillHeld(Exception):
        pass

    def wait() -> None:
        raise StillHeld

    with RunDirectory.open(tmp_path / "run", samples.make_preset()) as run:
        joined = RunDirectory.join(tmp_path / "run")
        assert joined.preset == run.preset
        with run.candidate_lock("a", wait):
            with pytest.raises(StillHeld), joined.candidate_lock("a", wait):
                pass
            with joined.candidate_lock("b", wait):
                pass
        with joined.candidate_lock("a", wait):
            pass
    assert sorted(path.name for path in (tmp_path / "run" / "candidates").iterdir()) == ["a", "b"]


def test_a_lock_that_cannot_be_made_is_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is retried, and no setting of the user's."""
    with RunDirectory.open(tmp_path / "run", samples.make_preset()) as run:

        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        for broken in ("mkdir", "open"):
            with monkeypatch.context() as patch:
                patch.setattr(Path, broken, fail)
                with pytest.raises(InfrastructureError, match="Input/output error"), run.candidate_lock("a", fail):
                    pass


def test_candidate_ids_are_a_slug_and_the_digest_of_the_source() -> None:
    digest = source_digest("x = 1\n")[:10]
    assert candidate_id("Dr. GRPO", "x = 1\n") == f"dr-grpo-{digest}"
    assert candidate_id("Dr. GRPO", "x = 1   \r\n") == f"dr-grpo-{digest}", "blanks and line ends do not count"
    assert candidate_id("¿¡", "x = 1") == f"candidate-{digest}"
    assert candidate_id("V" * 100, "x = 1") == f"{'v' * 40}-{digest}"


def test_a_run_of_an_earlier_revision_of_the_trainer_is_read_and_not_continued(tmp_path: Path) -> None:
    """What such a run keeps has no revision: its digest is that of before revisions were counted."""
    path, preset = tmp_path / "run", samples.make_preset()
    RunDirectory.open(path, preset).close()
    document = yaml.safe_load((path / "preset.yaml").read_text())
    del document["preset"]["protocol"]["trainer_revision"]
    document["protocol_digest"] = preset.protocol.model_copy(update={"trainer_revision": 1}).digest
    (path / "preset.yaml").write_text(yaml.safe_dump(document))
    earlier = RunDirectory.read(path).preset
    assert earlier.protocol.trainer_revision == 1
    assert earlier.protocol.digest == document["protocol_digest"] != preset.protocol.digest
    with pytest.raises(
        RunDirectoryError, match="of revision 1 of the trainer, this program has revision 2; reading it works"
    ):
        RunDirectory.open(path, earlier)
    with pytest.raises(RunDirectoryError, match=r"protocol.trainer_revision: 1 there, 2 here"):
        RunDirectory.open(path, preset)


@pytest.mark.slow
def test_every_run_has_a_secret_of_its_own_for_its_owner_alone_and_keeps_it(tmp_path: Path) -> None:
    values = []
    for name in ("a", "b", "a"):
        with RunDirectory.open(tmp_path / name, samples.make_preset()) as run:
            assert run.secret is not None
            values.append(run.secret.value)
        assert stat.S_IMODE((tmp_path / name / "secret").stat().st_mode) == 0o600
    assert values[0] == values[2] != values[1]
    assert {len(value) for value in values} == {32}
    frozen = (tmp_path / "a" / "preset.yaml").read_text()
    assert values[0].hex() not in frozen, "the fingerprint does not tell the secret"
    assert (
        RunDirectory.join(tmp_path / "a").secret == RunDirectory.read(tmp_path / "a").secret == ProblemSecret(values[0])
    )


def test_a_new_run_can_share_the_problems_of_another(tmp_path: Path) -> None:
    """With a copy of the file in an empty folder, or handed over; a folder that was killed before its preset goes on."""
    with RunDirectory.open(tmp_path / "first", samples.make_preset()) as first:
        pass
    (tmp_path / "copied").mkdir()
    shutil.copy(tmp_path / "first" / "secret", tmp_path / "copied" / "secret")
    with RunDirectory.open(tmp_path / "copied", samples.make_preset()) as copied:
        assert copied.secret == first.secret
    with RunDirectory.open(tmp_path / "given", samples.make_preset(), first.secret) as given:
        assert given.secret == first.secret
    ProblemSecret.made(tmp_path / "own-secret")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "own-secret", tmp_path / "other" / "secret")
    with pytest.raises(RunDirectoryError, match="is another secret than this run is to share"):
        RunDirectory.open(tmp_path / "other", samples.make_preset(), first.secret)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "missing; put it back"), ("", "does not hold 64 hex digits"), ("ab" * 32, "is of another run")],
)
def test_a_lost_or_foreign_secret_is_never_replaced(tmp_path: Path, text: str | None, message: str) -> None:
    RunDirectory.open(tmp_path / "run", samples.make_preset()).close()
    (tmp_path / "run" / "secret").unlink()
    if text is not None:
        (tmp_path / "run" / "secret").write_text(text)
    assert message in refuse(tmp_path / "run")
    assert RunDirectory.read(tmp_path / "run").archive.rows("candidates") == [], "reading needs no secret"


def test_a_run_whose_problems_are_public_is_read_and_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunDirectory.open(path, samples.make_preset()).close()
    (path / "secret").unlink()
    document = yaml.safe_load((path / "preset.yaml").read_text())
    del document["problems"]
    (path / "preset.yaml").write_text(yaml.safe_dump(document))
    assert "its problems are public" in refuse(path)
    run = RunDirectory.read(path)
    assert run.secret is None
    assert run.archive.rows("candidates") == []
