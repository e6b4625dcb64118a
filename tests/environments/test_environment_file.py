"""A user's own environment, named in a preset by its file."""

from pathlib import Path

import pytest
import yaml

from poise_core.algorithms import algorithm_path
from poise_core.config import PresetError, load_preset, with_overrides
from poise_core.config.environment_file import EnvironmentFile, pinned
from poise_core.config.protocol import Protocol
from poise_core.environments import get_environment
from poise_core.failures import InfrastructureError
from poise_core.training.launcher import TrainingJob, train_candidate

ROOT = Path(__file__).parents[2]

WHOLE = """
from poise_core.environments import Outcome, Problem

class Echo:
    name = "echo"

    def problems(self, split, kinds, count, seed):
        return [Problem(prompt=f"{split}{i}=", answer=str(i), kind=kinds[0]) for i in range(count)]

    def pool_size(self, kind):
        return 7

    def verify(self, problem, completion):
        return Outcome(correctness=float(completion == problem.answer), format_valid=True)

class Half:
    name = "half"

    def problems(self, split, kinds, count, seed):
        return []
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "echo.py"
    path.write_text(WHOLE)
    return path


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic:Class", "folder/file.py", "file.py:", "file.py:not a name"])
def test_other_names_are_no_files(name: str) -> None:
    assert EnvironmentFile.parse(name) is None
    assert pinned(name) == name


def test_a_name_survives_being_read_and_written() -> None:
    for name in ("prompts.py:Mine", "/a:b/prompts.py:Mine#0123456789abcdef"):
        file = EnvironmentFile.parse(name)
        assert file is not None
        assert file.name == name
    assert file.path == Path("/a:b/prompts.py")
    assert (file.class_name, file.digest) == ("Mine", "0123456789abcdef")


def test_the_class_is_loaded_from_its_file(file: Path) -> None:
    environment = get_environment(f"{file}:Echo")
    (problem,) = environment.problems("train", ["any"], 1, "seed")
    assert (problem.prompt, problem.answer) == ("train0=", "0")
    assert environment.verify(problem, "0").correctness == 1.0
    assert environment.pool_size("any") == 7


@pytest.mark.parametrize(
    ("class_name", "message"),
    [("Half", "Half lacks pool_size, verify"), ("Absent", "Absent cannot be made: AttributeError")],
)
def test_what_is_no_environment_is_refused_in_one_line(file: Path, class_name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        get_environment(f"{file}:{class_name}")
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_or_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('no prompts today')")
    with pytest.raises(ValueError, match="RuntimeError: no prompts today"):
        get_environment(f"{tmp_path / 'bad.py'}:Any")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        get_environment(f"{tmp_path / 'none.py'}:Any")


def test_a_changed_file_is_another_protocol_and_the_old_run_refuses_it(file: Path) -> None:
    override = f"protocol.environment.name={file}:Echo"
    before = load_preset("smoke", [override]).protocol
    assert get_environment(before.environment.name).name == "echo"
    assert load_preset("smoke", [override]).protocol.digest == before.digest
    file.write_text(WHOLE.replace("{split}{i}=", "{split}{i}*1="))
    with pytest.raises(ValueError, match="has changed since this run began"):
        get_environment(before.environment.name)
    assert load_preset("smoke", [override]).protocol.digest != before.digest


def test_overriding_another_key_pins_the_file_as_it_is_now(file: Path) -> None:
    preset = load_preset("smoke", [f"protocol.environment.name={file}:Echo"])
    again = with_overrides(preset, ["search.seed=3"])
    assert again.protocol == preset.protocol


def test_a_preset_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=r"protocol\.environment\.name: .*none\.py:Mine: No such file"):
        load_preset("smoke", [f"protocol.environment.name={tmp_path / 'none.py'}:Mine"])


def test_processes_elsewhere_are_given_the_whole_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    spec = load_preset("smoke", ["protocol.environment.name=echo.py:Echo"]).protocol.environment
    assert spec.name.startswith("echo.py:Echo#")
    assert spec.files == [file.resolve()]
    assert spec.absolute().name == f"{file.resolve()}:Echo#{spec.name.partition('#')[2]}"
    shipped = load_preset("smoke").protocol.environment
    assert (shipped.files, shipped.absolute()) == ([], shipped)


def test_digests_of_protocols_with_a_shipped_environment_are_what_they_were() -> None:
    document = yaml.safe_load((ROOT / "docs" / "results" / "laptop-64" / "preset.yaml").read_text())
    assert Protocol.stored(document["preset"]["protocol"]).digest == document["protocol_digest"]


@pytest.mark.slow
def test_a_file_that_changes_under_a_run_is_nobodys_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "examples" / "03_your_own_prompts"
    file = tmp_path / "change.py"
    file.write_text((folder / "change.py").read_text())
    monkeypatch.chdir(tmp_path)
    preset = load_preset(folder / "preset.yaml", ["protocol.environment.name=change.py:ChangeEnvironment"])
    file.write_text(file.read_text().replace("(20, 50, 99)", "(20, 50, 98)"))
    job = TrainingJob(algorithm_path("grpo"), "grpo", tmp_path / "train", preset.protocol, preset.resources, (0,))
    with pytest.raises(InfrastructureError, match="has changed since this run began"):
        train_candidate(job)
    assert not (tmp_path / "train" / "seed-0" / "trajectory.jsonl").exists()
