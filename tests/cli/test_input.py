"""Everything that can be wrong with what the user gives: one clear line, the right exit status, nothing written."""

import ast
import getpass
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from poise_core import surroundings
from poise_core.algorithms import algorithm_path
from poise_core.archive import candidate_row, verification_row
from poise_core.cli import app
from poise_core.cli.common import resolve_preset, shared_network
from poise_core.cli.evolve import share_problems, where_to_look
from poise_core.config import Preset, load_preset, with_overrides
from poise_core.evolution import Trials
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.policies.prompt import ModelSpec
from poise_core.run_directory import RunDirectory
from poise_core.sandbox import command as sandbox
from poise_core.surroundings import have_a_home, put_own_packages_first, settle_proxies
from studies.simulation import FIRST_TESTBED


def commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command that is registered, those of groups too, by the words that call it."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        words = f"{before}{name}"
        found |= commands(command, f"{words} ") if hasattr(command, "commands") else {words: command}
    return found


COMMANDS = commands(typer.main.get_command(app))
PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "laptop-64"
RUN_NO_CANDIDATE = {
    "fetch", "leaderboard", "lineage", "show", "rungs", "explore", "credit", "export", "track", "cost", "context", "lessons",
    "bridge", "grade", "build-policy", "archive compact", "archive check", "sampler install", "env validate", "env play",
}  # fmt: skip


def assert_one_line(result: Result, status: int, *parts: str) -> None:
    assert result.exit_code == status, result.output
    (line,) = result.stderr.strip().splitlines()
    for part in ("poise: ", *parts):
        assert part in line


@pytest.mark.slow
def test_help_names_every_command_and_every_command_teaches_by_example(poise: Callable[..., Result]) -> None:
    assert len(COMMANDS) >= 30
    for command in COMMANDS:
        *group, name = command.split()
        assert re.search(rf"^│ {name} ", poise(*group, "--help").output, re.MULTILINE), command
        assert f"poise {command} " in poise(*group, name, "--help").output.partition("Example")[2], command


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--preset", "nowhere"], ["no preset 'nowhere'", "smoke"]),
        (["--set", "protocol.training.stepz=3"], ["protocol.training.stepz: unknown key", "steps"]),
        (["--set", "agents.steering.directive=goal: shorter: answers"], ["--set agents.steering.directive", "quotes"]),
        (["--set", "protocol.seeds=[0,1"], ["--set protocol.seeds", "not valid YAML"]),
        (["--set", "search={parents: 1, parents: 2}"], ["'parents' is given twice"]),
        (["--set", "protocol.seeds={[1]: 2}"], ["--set protocol.seeds", "a key has to be a word"]),
        (["--set", "search=&x {a: *x}"], ["the document holds itself"]),
        (["--set", "search.parents=\t1"], ["--set search.parents", "not valid YAML"]),
        (["--set", "name=\x00"], ["--set name", "not valid YAML"]),
        (["--set", "protocol.training.steps=many"], ["protocol.training.steps", "valid integer", "'many'"]),
        (["--set", "protocol.training.minibatches=3"], ["minibatches is 3", "does not divide"]),
        (["--set", "protocol.training.group_size=1"], ["group_size must be at least 2"]),
        (["--set", "search.seeds_per_candidate=9"], ["seeds_per_candidate is 9", "protocol.seeds lists 2"]),
        (["--set", "resources.processes_per_training=3"], ["processes_per_training is 3", "does not divide"]),
        (["--set", "protocol.policy=nobody"], ["protocol.policy", "nobody", "arithmetic-a"]),
        (["--set", "ladder.enabled=true"], ["ladder.proxy_steps is 30", "has 4 steps"]),
        (
            ["--set", "ladder.enabled=true", "--set", "ladder.proxy_steps=2", "--set", "ladder.proxy_window=3"],
            ["ladder.proxy_window is 3", "the proxy has 2 steps"],
        ),
        (["--set", "ladder.first_stop_below=1"], ["ladder.first_stop_below", "less than 1"]),
        (["--set", "steps"], ["--set 'steps'", "key=value"]),
        (["--set", "protocol.seeds=[0, 0]"], ["seeds repeat"]),
    ],
)
def test_a_preset_that_cannot_be_used(
    poise: Callable[..., Result], tmp_path: Path, given: list[str], parts: list[str]
) -> None:
    result = poise("evolve", *(["--preset", "smoke"] if "--preset" not in given else []), *given)
    assert_one_line(result, 2, *parts)
    assert list(tmp_path.iterdir()) == []


def test_more_answers_than_samples(poise: Callable[..., Result], tmp_path: Path) -> None:
    shipped = (Path(sys.modules["poise_core"].__file__ or "").parent / "presets" / "smoke.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shipped.replace("k: 4, samples: 4", "k: 8, samples: 4"))
    result = poise("evolve", "--preset", "mine.yaml")
    assert_one_line(result, 2, "protocol.benchmarks.0", "k is 8 but samples is 4", "k <= samples")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_number_out_of_range_on_the_command_line(poise: Callable[..., Result], tmp_path: Path) -> None:
    result = poise("evolve", "--preset", "smoke", "--generations", "0")
    assert result.exit_code == 2
    assert "generations" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that has been opened and holds nothing yet."""
    folder = tmp_path / "run"
    RunDirectory.open(folder, load_preset("smoke")).close()
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_directory_of_another_protocol(poise: Callable[..., Result], run_dir: Path) -> None:
    before = snapshot(run_dir)
    result = poise("evolve", "--preset", "smoke", "--set", "protocol.training.steps=5", "--run-dir", run_dir)
    assert_one_line(result, 2, "made under protocol", "training.steps: 4 there, 5 here", "take another directory")
    assert snapshot(run_dir) == before


def test_a_folder_that_holds_other_things(poise: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    assert_one_line(
        poise("evolve", "--preset", "smoke", "--run-dir", "thesis"), 2, "not a run directory", "chapter.tex"
    )
    assert_one_line(poise("leaderboard", "thesis"), 2, "not a run directory")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.slow
def test_a_run_directory_in_use(poise: Callable[..., Result], run_dir: Path) -> None:
    with RunDirectory.open(run_dir, load_preset("smoke")):
        assert_one_line(poise("evolve", "--preset", "smoke", "--run-dir", run_dir), 2, "in use by process")


@pytest.mark.parametrize("command", ["leaderboard", "lineage", "show"])
@pytest.mark.parametrize("json", [False, True])
def test_reading_a_truncated_archive(poise: Callable[..., Result], run_dir: Path, command: str, json: bool) -> None:
    run = RunDirectory.read(run_dir)
    from poise_core.archive import candidate_row

    run.archive.append(
        "candidates",
        [candidate_row(candidate_id="a-1", name="A", source="x", source_digest="1", written_by="human")],
    )
    (part,) = (run_dir / "archive" / "candidates").glob("part-*")
    part.write_bytes(part.read_bytes()[:100])
    before = snapshot(run_dir)
    assert_one_line(poise(command, run_dir, *(["--json"] if json else [])), 3, str(part), "not a readable Parquet file")
    assert snapshot(run_dir) == before


def test_showing_a_candidate_that_is_not_there(poise: Callable[..., Result], run_dir: Path) -> None:
    assert_one_line(poise("show", run_dir, "VM-AV"), 2, "no candidate 'VM-AV'")
    assert poise("leaderboard", run_dir).exit_code == 0


def test_evaluating_what_is_not_there(poise: Callable[..., Result], tmp_path: Path) -> None:
    assert_one_line(poise("evaluate", "nothing.py", "--preset", "smoke"), 2, "nothing.py: no such file")
    assert_one_line(poise("verify", "nothing.py"), 2, "nothing.py: no such file")
    nor = "nothing: no such file, nor a shipped algorithm; those are av, bn, cag, "
    for command in ("verify", "evaluate", "export"):
        assert_one_line(poise(command, "nothing"), 2, nor)
        assert_one_line(poise(command, "some/grpo"), 2, "some/grpo: no such file")
    for known in (algorithm_path("grpo"), "grpo"):
        result = poise("evaluate", known, "--preset", "smoke", "--seeds", "5")
        assert_one_line(result, 2, "--seeds 5", "protocol.seeds lists 2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_command_that_runs_candidates_may_share_the_network(
    poise: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {
        name for name, one in COMMANDS.items() if "allow_shared_network" not in {option.name for option in one.params}
    }
    assert without == RUN_NO_CANDIDATE
    monkeypatch.setenv("POISE_ALLOW_SHARED_NETWORK", "")
    assert shared_network(False) == []
    assert not os.environ["POISE_ALLOW_SHARED_NETWORK"]
    assert not resolve_preset("smoke", []).resources.allow_shared_network
    assert resolve_preset("smoke", shared_network(True)).resources.allow_shared_network
    assert os.environ["POISE_ALLOW_SHARED_NETWORK"] == "1", "for the gate, which reads no preset"


@pytest.mark.slow
def test_without_a_network_namespace_evaluate_says_what_to_do_in_one_line(
    poise: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "best_level", lambda: "landlock")
    monkeypatch.setenv("POISE_ALLOW_SHARED_NETWORK", "")
    result = poise(
        "evaluate",
        algorithm_path("rloo"),
        "--preset",
        "smoke",
        "--run-dir",
        "run",
        "--set",
        "resources.infrastructure_retries=0",
    )
    assert result.exit_code == 3
    said = result.stderr.strip().splitlines()[-1]  # after the display
    assert said.startswith("poise: training is refused, because on this machine candidate code would share the network")
    assert "permit user namespaces, or accept it with --allow-shared-network" in said
    assert "Traceback" not in result.output
    assert RunDirectory.read("run").archive.rows("failures") == [], "it is no fault of the candidate"


@pytest.mark.slow
def test_verify_admits_and_refuses(poise: Callable[..., Result], tmp_path: Path) -> None:
    admitted = poise("verify", algorithm_path("rloo"))
    assert admitted.exit_code == 0
    assert "admitted" in admitted.stdout
    assert "within 0 of rloo on every probe (0 the same, 1 unrelated); further: " in admitted.stdout
    assert "confined " in admitted.stdout
    source = algorithm_path("rloo").read_text()
    (tmp_path / "spy.py").write_text(source.replace("import torch\n", "import os\nimport torch\n", 1))
    refused = poise("verify", "spy.py")
    assert refused.exit_code == 1
    assert "os" in refused.stdout
    report = json.loads(poise("verify", "spy.py", "--json").stdout)
    assert report["admitted"] is False
    assert report["failure"] == "rejected"
    assert [path.name for path in tmp_path.iterdir()] == ["spy.py"]


@pytest.mark.slow
def test_verify_compares_with_the_admitted_candidates_of_a_run(poise: Callable[..., Result], tmp_path: Path) -> None:
    """What ``evolve`` would refuse as a duplicate is refused here, and what is close is named with its distance."""
    path = algorithm_path("rloo")
    report = json.loads(poise("verify", path, "--json").stdout)
    with RunDirectory.open(tmp_path / "run", load_preset("smoke")) as run:
        row = verification_row(
            candidate_id="rloo-0123456789", admitted=True, report="{}", fingerprint=report["fingerprint"], seconds=1.0
        )
        # admitted with a fingerprint that is not that of its text, as of mechanisms that act on no batch of it
        source, other = algorithm_path("gspo").read_text(), "gspo-0123456789"
        late = verification_row(candidate_id=other, admitted=True, report="{}", fingerprint="", seconds=1.0)
        run.archive.append("verifications", [row, late])
        text = candidate_row(candidate_id=other, name="GSPO", source=source, source_digest="", written_by="human")
        run.archive.append("candidates", [text])
    again = poise("verify", path, "--run-dir", "run")
    assert again.exit_code == 1
    assert "trains exactly as rloo-0123456789, which is archived already" in " ".join(again.stdout.split())
    near = poise("verify", algorithm_path("reinforce_group_baseline"), "--run-dir", "run")
    assert near.exit_code == 0
    assert re.search(r"nearest in the run: rloo-0123456789 0\.\d+", " ".join(near.stdout.split()))
    (tmp_path / "same.py").write_text(f"{source}\n# another comment\n")
    twin = poise("verify", "same.py", "--run-dir", "run")
    assert twin.exit_code == 1
    assert "it is the same program as gspo-0123456789" in " ".join(twin.stdout.split())
    assert_one_line(poise("verify", path, "--run-dir", "nowhere"), 2, "not a run directory")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["leaderboard", "run"], ["lineage", "run"], ["evolve", "--help"]])
def test_looking_costs_no_heavy_import(run_dir: Path, arguments: list[str]) -> None:
    """The reason why these take well under a second."""
    script = (
        "import sys\nfrom poise_core.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "print([name for name in ('torch', 'mlflow', 'prefect', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=run_dir.parent, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.slow
def test_opening_a_run_leaves_prefect_unread(run_dir: Path) -> None:
    """Its settings are read at its first import, and the address of the run's own server is not known before."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom flows.local import evolution_session\n"
        "with evolution_session(sys.argv[1]):\n    print('prefect' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run_dir)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "False\n"


EXTENDING = {
    "root.yaml": "extends: smoke\nname: root\nsearch: {parents: 3}\nresources: {checkpoint_steps: 3}",
    "deep/leaf.yaml": "extends: ../root.yaml\nname: leaf\nprotocol: {seeds: [5, 6]}\nsearch: {proposals: 1}",
    "orphan.yaml": "extends: nobody.yaml",
    "odd.yaml": "extends: [smoke]",
    "broken.yaml": "extends: list.yaml",
    "list.yaml": "- 1",
    "a.yaml": "extends: deep/b.yaml",
    "deep/b.yaml": "extends: ../a.yaml",
}


@pytest.fixture
def extending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in EXTENDING.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def test_a_preset_takes_over_from_those_that_it_extends(extending: None) -> None:
    smoke, leaf = load_preset("smoke"), load_preset("deep/leaf.yaml", ["search.generations=9"])
    assert (leaf.name, leaf.protocol.seeds, leaf.search.proposals, leaf.search.generations) == ("leaf", (5, 6), 1, 9)
    assert (leaf.search.parents, leaf.resources.checkpoint_steps) == (3, 3)  # of root.yaml
    assert leaf.search.seeds_per_candidate == smoke.search.seeds_per_candidate
    assert leaf.protocol.model_copy(update={"seeds": smoke.protocol.seeds}) == smoke.protocol
    assert leaf.protocol.digest != smoke.protocol.digest


def test_laptop_64_is_laptop_with_more_seeds() -> None:
    laptop, more = load_preset("laptop"), load_preset("laptop-64")
    assert more.protocol.model_copy(update={"seeds": laptop.protocol.seeds}) == laptop.protocol


def test_the_first_testbed_is_that_of_the_published_run() -> None:
    """Its protocol with more problems, more samples and another trainer: digests do not change under those who have results."""
    first = load_preset(FIRST_TESTBED).protocol
    published = {"sums": 240, "differences": 240, "chains": 240}
    benchmarks = tuple(
        one.model_copy(update={"problems": published.get(one.name, one.problems), "samples": one.k})
        for one in first.benchmarks
    )
    changes = {"trainer_revision": 1, "benchmarks": benchmarks, "seeds": tuple(range(20))}
    assert first.model_copy(update=changes).digest == "5a8c7db9615d5941"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("orphan.yaml", ["orphan.yaml: extends: no preset 'nobody.yaml'", "smoke"]),
        ("odd.yaml", ["odd.yaml: extends takes the name of a shipped preset", "['smoke']"]),
        ("broken.yaml", ["broken.yaml: extends: list.yaml: expected keys"]),
        ("a.yaml", ["extends goes in a circle: a.yaml extends deep/b.yaml extends a.yaml"]),
    ],
)
def test_a_preset_that_cannot_extend_names_the_files(
    extending: None, poise: Callable[..., Result], name: str, parts: list[str]
) -> None:
    assert_one_line(poise("evolve", "--preset", name), 2, *parts)


def test_a_comparison_that_cannot_be_made(poise: Callable[..., Result], tmp_path: Path) -> None:
    smoke = ("compare-search", "--preset", "smoke")
    assert_one_line(
        poise(*smoke, "--arm", "clever"), 2, "no arm 'clever'", "evolution, random, greedy, best-of-n, tune"
    )
    assert_one_line(
        poise(*smoke, "--set", "search.acquisition.kernel=cubic"), 2, "search.acquisition.kernel", "'cubic'"
    )
    assert_one_line(poise(*smoke, "--set", "search.plateau.windows=2"), 2, "unknown key", "window")
    assert not list(tmp_path.iterdir())
    RunDirectory.open(tmp_path / "run", load_preset("smoke")).close()
    assert_one_line(poise(*smoke, "--run-dir", "run"), 2, "a comparison needs a folder of its own")


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_settings_and_says_what_is_given_anew(
    poise: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line itself: what of it was given is for the command to know."""
    starts: list[tuple[Preset, list[str]]] = []

    def started(preset: Preset, folder: Path, anew: list[str], replay: object) -> None:
        """The start of a run, which keeps its settings, without what follows."""
        RunDirectory.open(folder, preset).close()
        starts.append((preset, anew))

    module = sys.modules["poise_core.cli.evolve"]  # `poise_core.cli.evolve` is the command
    monkeypatch.setattr(module, "evolved", started)
    monkeypatch.setattr(module, "show_end", lambda run: None)

    def start(*arguments: str) -> tuple[Preset, list[str]]:
        done = poise("evolve", *arguments)
        assert done.exit_code == 0, done.output
        return starts[-1]

    first, told = start("--preset", "smoke", "--run-dir", "run", "--set", "search.seeds_per_candidate=1", "--seed", "7")
    assert told == []
    more, told = start("--run-dir", "run", "--generations", "5")
    assert (more.search.seeds_per_candidate, more.search.seed, more.search.generations) == (1, 7, 5)
    assert more.protocol.digest == first.protocol.digest
    assert told == ["search.generations: 1 before, 5 from now on"]
    again, told = start("--run-dir", "run")  # what is changed once holds for later starts
    assert (again.search.generations, told) == (5, [])
    assert RunDirectory.read(tmp_path / "run").current_preset == again
    anew, told = start("--preset", "smoke", "--run-dir", "run")
    assert anew.search.seeds_per_candidate == 2
    assert "search.seeds_per_candidate: 1 before, 2 from now on" in told

    new, told = start(
        "--set", "search.parents=3"
    )  # of a new run laptop, which lies where the same command finds it again
    assert (new.name, told) == ("laptop", [])
    assert start() == (new, [])
    assert (tmp_path / "runs" / "laptop" / "preset.yaml").is_file()


@pytest.mark.slow
def test_evaluating_a_file_goes_on_with_the_settings_of_the_run(
    poise: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_preset("smoke", ["search.parents=5"])
    RunDirectory.open(tmp_path / "run", first).close()

    def measured(trials: Trials, file: Path, seeds: tuple[int, ...]) -> None:
        assert trials.run.preset.search.parents == 5
        raise CandidateFailure(FailureKind.CRASHED, "train", "nothing is trained here")

    monkeypatch.setattr(sys.modules["poise_core.cli.evaluate"], "_measure", measured)
    assert "nothing is trained here" in poise("evaluate", "grpo", "--run-dir", "run").stderr
    assert RunDirectory.read("run").settings_changes == []
    given = poise("evaluate", "grpo", "--run-dir", "run", "--set", "search.generations=2")
    assert "poise: search.generations: 1 before, 2 from now on\n" in given.stderr
    assert RunDirectory.read("run").current_preset.search.generations == 2


@pytest.mark.slow
def test_a_replay_has_the_problems_of_the_recorded_run(tmp_path: Path) -> None:
    preset = load_preset("smoke")
    with RunDirectory.open(tmp_path / "recorded", preset) as run:
        secret = run.secret
    share_problems(tmp_path / "recorded", tmp_path / "again", preset)
    assert secret is not None
    assert RunDirectory.read(tmp_path / "again").secret == secret
    share_problems(tmp_path / "recorded", tmp_path / "again", preset)  # a second start changes nothing
    assert RunDirectory.read(tmp_path / "again").secret == secret


def test_a_dry_run_prints_the_plan_and_makes_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = ("search.generations=2", "search.parents=3", "search.seeds_per_candidate=2", "protocol.training.steps=10")
    settings = [part for change in changes for part in ("--set", change)]
    shown = CliRunner().invoke(app, ["evolve", "--preset", "laptop", "--run-dir", str(folder), "--dry-run", *settings])
    assert shown.exit_code == 0, shown.output
    # (2 x 3 children + the baseline) x 2 seeds = 14 trainings of 10 steps x 32 prompts x 8 completions x 40 tokens
    assert "14 trainings, at most 1,433,600 tokens" in shown.output
    assert "6 candidates and the baseline" in shown.output
    assert "seeds 0, 1; 10 steps" in shown.output
    assert not folder.exists()


def test_a_section_that_is_not_there_takes_keys() -> None:
    preset = load_preset("laptop")
    assert preset.protocol.model is None
    changed = with_overrides(preset, ["protocol.model.dtype=bfloat16"])
    assert changed.protocol.model == ModelSpec(dtype="bfloat16")
    assert changed.protocol.digest != preset.protocol.digest
    assert with_overrides(preset, ["search.parents=3"]).protocol.digest == preset.protocol.digest


@pytest.mark.parametrize("name", ["what? now", "two\nlines", "bell\a"])
@pytest.mark.parametrize("command", [["evolve"], ["tune"], ["compare-search"], ["evaluate", algorithm_path("rloo")]])
def test_a_path_in_which_no_run_can_live(
    poise: Callable[..., Result], tmp_path: Path, command: list[str], name: str
) -> None:
    result = poise(*command, "--preset", "smoke", "--run-dir", name)
    assert_one_line(result, 2, "a run's path cannot hold", "another name")
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_meant_by_a_tilde_that_the_shell_has_left(
    poise: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "my.yaml").write_text("extends: smoke\nname: mine\nagents: {literature_folder: ~/notes}\narchive: ~/kept\n")
    shown = poise("evolve", "--preset=~/my.yaml", "--run-dir=~/r", "--dry-run").output
    assert f"{home}/r" in shown
    assert f"archive {home}/kept" in shown
    assert load_preset("~/my.yaml").agents.literature_folder == f"{home}/notes"
    assert load_preset("smoke", ["archive=~/there"]).archive == f"{home}/there"
    assert RunDirectory.open("~/r", load_preset("smoke")).path == home / "r"  # as a form of Prefect's gives it
    assert not (tmp_path / "~").exists()


def test_where_to_look_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my runs/it's", "~/r", "-r"):
        run = SimpleNamespace(
            path=tmp_path / name,
            preset=SimpleNamespace(archive=None),
            tracking_uri="sqlite:///a b",
            own_tracking_uri="sqlite:///a b",
        )
        lines = where_to_look(cast(Any, run)).splitlines()
        look, prefect, mlflow = shlex.split(lines[-1]), shlex.split(lines[-2]), shlex.split(lines[-3])
        folder = name if name[0] not in "~-" else f"./{name}"
        assert look == [
            "Look",
            "poise",
            "show",
            folder,
            "NAME",
            "poise",
            "leaderboard",
            folder,
            "poise",
            "lineage",
            folder,
        ]
        assert prefect[1] == f"PREFECT_HOME={tmp_path / name / 'prefect'}"
        assert mlflow[-1] == "sqlite:///a b"
        code = shlex.split(lines[1])[-1]
        assert (
            ast.literal_eval(code.partition("read_parquet(")[2].removesuffix("))")) == f"{folder}/archive/evaluations"
        )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_presets_of_other_editors(poise: Callable[..., Result], tmp_path: Path, encoding: str) -> None:
    text = "extends: smoke\r\nname: prüfung\r\n"
    (tmp_path / "own.yaml").write_bytes(
        ("\ufeff" if encoding == "utf-16-le" else "").encode(encoding) + text.encode(encoding)
    )
    if encoding == "latin-1":
        assert_one_line(poise("evolve", "--preset", "own.yaml"), 2, "own.yaml: not UTF-8 (byte", "save it as UTF-8")
    else:
        assert load_preset(tmp_path / "own.yaml").name == "prüfung"


# ---- the user's shell


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A shell without proxies."""
    for name in [*os.environ, "NO_PROXY", "no_proxy"]:
        if name.lower().endswith("_proxy"):
            monkeypatch.setenv(name, "")  # so that it is as before after the test, whatever is done to it
            monkeypatch.delenv(name)
    return monkeypatch


PROXIES = {
    "socks5://127.0.0.1:9": "SOCKS", "socks5h://127.0.0.1:9": "SOCKS", "socks4://127.0.0.1:9": "begins with",
    "ftp://x:1": "begins with", "http://x:port": "no address", "http://[::1": "no address", " http://x:1": "no address",
    "http://user:pa#ss@x:1": "no address", "http://": "no address",
}  # fmt: skip


@pytest.mark.parametrize("proxy", [*PROXIES, "http://127.0.0.1:9", "https://127.0.0.1:9", "127.0.0.1:9", "none"])
@pytest.mark.parametrize("excepted", [None, "internal.example", "::1/128, [fe80::1]:80,10.0.0.0/8,a:b", "*"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_never_in_the_way_to_this_machine(
    shell: pytest.MonkeyPatch, name: str, excepted: str | None, proxy: str
) -> None:
    """The client of Prefect and of the models fails at once on a proxy, or an exception from it, that it cannot read."""
    shell.setenv(name, proxy)
    if excepted:
        shell.setenv("NO_PROXY", excepted)
    if proxy in PROXIES and find_spec("socksio") is None:
        with pytest.raises(InfrastructureError, match=rf"{name} .*{PROXIES[proxy]}.*https://api.example"):
            settle_proxies("http://127.0.0.1:4200/api", "https://api.example/v1")
    settle_proxies("http://127.0.0.1:4200/api", "http://127.0.0.2/v1")
    with httpx.Client(verify=False) as client:  # certificates take the time
        for address in ("http://127.0.0.1:4200/api", "http://localhost/", "http://[::1]:80/", "http://127.0.0.2/v1"):
            assert client._transport_for_url(httpx.URL(address)) is client._transport
            assert urllib.request.proxy_bypass(httpx.URL(address).host)
        if excepted == "internal.example":
            assert client._transport_for_url(httpx.URL("http://internal.example/")) is client._transport
        if proxy == "http://127.0.0.1:9" and excepted != "*":
            assert client._transport_for_url(httpx.URL("http://elsewhere.example/")) is not client._transport


def test_modules_of_the_user_that_are_called_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flows", "tasks", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else has this name, too')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flows", "tasks")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tasks", ModuleType("tasks"))  # imported already
    put_own_packages_first()
    assert sys.path[-1] == str(tmp_path)
    root = Path(surroundings.__file__).parents[1]
    assert Path(str(importlib.import_module("flows").__file__)) == root / "flows" / "__init__.py"
    assert importlib.import_module("tasks.budget").__file__ == str(root / "tasks" / "budget.py")


def test_a_user_without_a_home_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    have_a_home()
    assert Path.home().is_dir()
    assert Path.home().stat().st_mode & 0o777 == 0o700
    assert getpass.getuser() == f"user-{os.getuid()}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("leaderboard", PUBLISHED, "--svg", "FOLDER"),
        ("lineage", PUBLISHED, "--svg", "FILE/x.svg"),
        ("record-table", "--from-archive", PUBLISHED, "--out", "FOLDER"),
        ("compare-search", "--table", PUBLISHED.parent / "table.parquet", "--write", "FOLDER"),
        ("calibrate", "--write", "FILE/x.md"),
        ("build-policy", "arithmetic-c", "--out", "FILE/x"),
        ("verify", "grpo", "--timeout", "0"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_line(
    arguments: tuple[object, ...], tmp_path: Path, poise: Callable[..., Result]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    places = {"FOLDER": str(tmp_path / "folder"), "FILE": str(tmp_path / "file")}
    given = [re.sub("FOLDER|FILE", lambda found: places[found[0]], str(one)) for one in arguments]
    done = poise(*given)
    assert done.exit_code == 2, done.output
    assert not isinstance(done.exception, OSError)
    last = done.stderr.strip().splitlines()[-1]
    assert "poise: " in last or "╰" in last, done.stderr
