"""``poise track`` as a user types it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import archive_samples as samples
import pytest
from typer.testing import Result

from poise_core.cli.evolve import where_to_look
from poise_core.run_directory import RunDirectory

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    preset = samples.make_preset()
    with RunDirectory.open(tmp_path / "run", preset) as run:
        samples.add_candidate(run.archive, preset.protocol, samples.GRPO, "GRPO", 0, (), 0.45)
    return tmp_path / "run"


@pytest.mark.exhaustive
def test_a_run_is_pushed_once_wherever_it_is_to_go(
    folder: Path, tmp_path: Path, poise: Callable[..., Result], empty_store: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for number, arguments in enumerate(((), ("--uri", other), ())):
        done = poise("track", folder, *arguments)
        assert done.exit_code == 0, done.stderr
        where = other if arguments else f"sqlite:///{folder / 'mlflow.db'}"
        # a generation, a candidate, three seeds
        counts = "0 runs made, 0 updated, 5 unchanged" if number == 2 else "5 runs made, 0 updated, 0 unchanged"
        assert done.stdout.splitlines()[-1] == f"{experiment(folder)} at {where}: {counts}"


def experiment(folder: Path) -> str:
    return f"poise/made-up/{RunDirectory.read(folder).preset.protocol.digest}"


def test_a_server_that_is_down_is_one_line_and_status_3(folder: Path, poise: Callable[..., Result]) -> None:
    done = poise("track", folder, "--uri", "http://127.0.0.1:9")
    assert done.exit_code == 3
    assert done.stderr.splitlines()[-1].startswith("poise: MLflow at http://127.0.0.1:9: ")
    assert "Traceback" not in done.stderr


def test_the_password_of_an_address_is_in_no_line(
    folder: Path, poise: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow's errors quote the address that they were asked with."""
    uri = "http://anna:pass-of-anna@127.0.0.1:9"
    done = poise("track", folder, "--uri", uri)
    assert done.exit_code == 3
    assert done.stderr.splitlines()[-1].startswith("poise: MLflow at http://***@127.0.0.1:9: ")
    assert "pass-of-anna" not in done.output + done.stderr + caplog.text
    assert "the archive is not affected" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PREFECT_API_URL", "https://anna:pass-of-anna@prefect.example/api")
    shown = where_to_look(RunDirectory.read(folder))
    assert "pass-of-anna" not in shown
    assert "Prefect   https://***@prefect.example/api" in shown


def test_what_is_no_run_directory_is_refused(tmp_path: Path, poise: Callable[..., Result]) -> None:
    done = poise("track", tmp_path)
    assert done.exit_code == 2
    assert "not a run directory" in done.stderr
