"""Calibration with several learning rates: which one an algorithm is measured at, by which seeds, and how the page says so."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from archive_samples import make_evaluation, make_preset
from typer.testing import CliRunner

from poise_core.archive import ArchiveError
from poise_core.archive.measured import Measured
from poise_core.cli import app
from poise_core.config import Preset
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.testbed import panel
from poise_core.testbed.calibration import render, requirements, summarize
from poise_core.testbed.panel import MOST_FACTORS, TUNED_BASELINE, Panel, PanelRun, Rates

RATE = 1e-3


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, tuple[int, ...], str]]:
    """Trainings made up: GRPO is best at 4 times the preset's rate, GSPO at a quarter, RLOO dies above it, DCBE everywhere."""
    done: list[tuple[str, float, tuple[int, ...], str]] = []
    best = {"grpo": 4.0, "gspo": 0.25, "rloo": 1.0}

    def train(job: Any, **_: Any) -> list[Any]:
        factor = round(job.protocol.training.learning_rate / RATE, 6)
        if job.candidate_name == "dcbe" or (job.candidate_name == "rloo" and factor > 1):
            raise CandidateFailure(FailureKind.DIVERGED, "train", "the loss is nan")
        return [SimpleNamespace(seed=seed, policy_folder=Path(job.candidate_name)) for seed in job.seeds]

    def evaluate(job: Any, **_: Any) -> list[Any]:
        factor = round(job.protocol.training.learning_rate / RATE, 6)
        name = job.policies[0][1].name
        done.append((name, factor, tuple(seed for seed, _ in job.policies), job.split))
        skill = 0.9 - 0.1 * abs(math.log2(factor / best[name])) if name in best else 0.2
        return [make_evaluation(job.protocol, skill, seed, job.split) for seed, _ in job.policies]

    monkeypatch.setattr(panel, "train_candidate", train)
    monkeypatch.setattr(panel, "evaluate_policies", evaluate)
    return done


def preset() -> Preset:
    document = make_preset().model_dump(mode="json")
    document["protocol"]["training"]["learning_rate"] = RATE
    document["protocol"]["policy"] = "arithmetic-a"
    document["protocol"]["seeds"] = list(range(6))
    return Preset.model_validate(document)


def test_every_algorithm_is_measured_at_its_best_rate_by_seeds_that_did_not_choose_it(
    tmp_path: Path, trained: list[tuple[str, float, tuple[int, ...], str]]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = PanelRun(preset(), tmp_path, pool).run(["grpo", "gspo", "rloo", "dcbe"], 3, [0.5, 1.0, 2.0], choosing=2)
    assert {name: rates.best for name, rates in found.rates.items() if rates.overalls} == {
        "grpo": 4.0, "gspo": 0.25, "rloo": 1.0,
    }  # fmt: skip
    assert found.rates["grpo"].tried == (0.5, 1.0, 2.0, 4.0, 8.0)
    assert found.rates["gspo"].tried == (0.125, 0.25, 0.5, 1.0, 2.0)
    assert found.rates["rloo"].bracketed  # what failed is worse
    assert found.failed == (("dcbe", "diverged: the loss is nan"),)
    choices = {(seeds, split) for name, factor, seeds, split in trained if seeds[0] == 0 and len(seeds) > 1}
    assert choices == {((0, 1), "search")}
    measured = sorted((name, factor, split) for name, factor, seeds, split in trained if seeds == (2, 3, 4))
    assert measured == [
        ("grpo", 4.0, "report"), ("grpo", 4.0, "search"), ("gspo", 0.25, "report"), ("gspo", 0.25, "search"),
        ("rloo", 1.0, "report"), ("rloo", 1.0, "search"),
    ]  # fmt: skip
    protocol = preset().protocol
    summary = summarize("p", protocol, found.search, found.report, found.untrained, "grpo", found.failed, found.rates)
    assert ("a lower and a higher learning rate are worse for every algorithm", "3 of 3", True) in requirements(
        [summary]
    )
    page = render([summary], [protocol], "poise calibrate")
    assert "| algorithm | 1.25e-04 | 2.50e-04 | 5.00e-04 | 1.00e-03 | 2.00e-03 | 4.00e-03 | 8.00e-03 |" in page
    (rloo,) = [line for line in page.splitlines() if line.startswith("| rloo |")]
    assert rloo.count("failed") == 1
    assert "mean of 2 seeds" in page


def test_one_rate_chooses_nothing_and_takes_the_first_seeds(
    tmp_path: Path, trained: list[tuple[str, float, tuple[int, ...], str]]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        found = PanelRun(preset(), tmp_path, pool).run(["grpo", "rloo"], 2)
    assert found.rates == {}
    assert {(name, factor, seeds) for name, factor, seeds, _ in trained if len(seeds) > 1} == {
        ("grpo", 1.0, (0, 1)), ("rloo", 1.0, (0, 1)),
    }  # fmt: skip
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="lists 6 seeds, 7 are asked for: 3 to choose"):
        PanelRun(preset(), tmp_path, pool).run(["grpo"], 4, [1.0, 2.0])


def test_one_other_rate_is_that_of_the_measurement(
    tmp_path: Path, trained: list[tuple[str, float, tuple[int, ...], str]]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        found = PanelRun(preset(), tmp_path, pool).run(["grpo", "rloo"], 2, [0.5])
    assert found.rates == {}, "nothing was chosen"
    assert {(name, factor, seeds) for name, factor, seeds, _ in trained if len(seeds) > 1} == {
        ("grpo", 0.5, (0, 1)), ("rloo", 0.5, (0, 1)),
    }  # fmt: skip


def test_another_text_of_an_algorithm_does_not_take_the_trainings_of_the_first(
    tmp_path: Path, trained: list[tuple[str, float, tuple[int, ...], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher reads back what lies in a job's folder, so each text needs a folder of its own, and finds it again."""
    texts: dict[Path, set[str]] = {}
    train = panel.train_candidate

    def remembered(job: Any, **options: Any) -> Any:
        texts.setdefault(job.folder, set()).add(job.candidate_path.read_text())
        return train(job, **options)

    monkeypatch.setattr(panel, "train_candidate", remembered)

    def run(tuned: float) -> None:
        document = preset().model_dump(mode="json")
        document["baseline"]["hyperparameters"] = {"kl_coef": tuned}
        with ThreadPoolExecutor(1) as pool:
            PanelRun(Preset.model_validate(document), tmp_path, pool).run([TUNED_BASELINE], 2)

    run(0.03)
    run(0.1)
    assert sorted(len(found) for found in texts.values()) == [1, 1]
    folders = dict(texts)
    run(0.03)
    assert texts == folders


def test_what_a_record_holds_is_not_trained_again(
    tmp_path: Path, trained: list[tuple[str, float, tuple[int, ...], str]]
) -> None:
    file, panel_of = tmp_path / "record.parquet", ("grpo", "rloo", "dcbe", TUNED_BASELINE)

    def run(folder: str, record: Path, algorithms: Sequence[str] = panel_of, tuned: float = 0.03) -> Panel:
        document = preset().model_dump(mode="json")
        document["baseline"]["hyperparameters"] = {"kl_coef": tuned}
        with ThreadPoolExecutor(2) as pool:
            whole = PanelRun(Preset.model_validate(document), tmp_path / folder, pool, measured=Measured(record))
            return whole.run(algorithms, 2, [0.5, 1.0], choosing=2)

    first = run("one", file, panel_of[:2])
    count = len(trained)
    second = run("two", file)
    assert not {name for name, *_ in trained[count:]} & {"grpo", "rloo"}
    assert {name for name, *_ in trained[count:]} == {TUNED_BASELINE}
    assert {name: second.search[name] for name in first.search} == first.search
    assert second.report["grpo"] == first.report["grpo"]
    assert second.failed == (("dcbe", "diverged: the loss is nan"),)
    assert "kl_coef: float = 0.03" in next((tmp_path / "two").rglob("tuned.py")).read_text()
    count = len(trained)
    third = run("three", file)
    assert (third.search, third.report, third.untrained) == (second.search, second.report, second.untrained)
    assert (third.rates, third.failed) == (second.rates, second.failed)
    assert len(trained) == count
    run("four", file, tuned=0.1)
    assert {name for name, *_ in trained[count:]} == {TUNED_BASELINE}, "other numbers are another file"
    file.write_bytes(b"something else")
    with pytest.raises(ArchiveError, match="cannot be read as the record of a calibration"):
        Measured(file)


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (("rloo", "gspo"), 2, "--algorithm: grpo is missing, to which the others are compared"),
        (("grpo",), 2, "--algorithm: name another one beside grpo"),
        (("grpo", "grpo"), 2, "--algorithm: name another one beside grpo"),
        (("grpo", "dcbe"), 1, "too few algorithms of the panel finished: dcbe diverged: the loss is nan"),
        (("grpo", "none"), 2, "no algorithm 'none'"),
    ],
)
def test_a_panel_without_a_comparison_is_one_line(
    given: tuple[str, ...],
    status: int,
    message: str,
    trained: list[tuple[str, float, tuple[int, ...], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("poise_core.cli.testbed._load", lambda name, overrides: preset())
    options = [part for name in given for part in ("--algorithm", name)]
    done = CliRunner().invoke(app, ["calibrate", "--seeds", "2", "--run-dir", str(tmp_path), *options])
    assert (done.exit_code, message in done.output) == (status, True), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert bool(trained) == (status == 1), "what cannot be compared is not trained"


def test_the_page_names_the_algorithms_that_were_asked_for(
    trained: list[tuple[str, float, tuple[int, ...], str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poise_core.cli.testbed._load", lambda name, overrides: preset())
    asked = ["--algorithm", "grpo", "--algorithm", "gspo"]
    done = CliRunner().invoke(app, ["calibrate", "--seeds", "2", "--run-dir", str(tmp_path), *asked])
    assert done.exit_code == 0, done.output
    assert "--algorithm grpo --algorithm gspo`: 2 algorithms" in done.output


def test_the_next_rate_lies_beyond_the_best_one_and_there_is_an_end() -> None:
    assert Rates({1.0: [10.0], 2.0: [20.0]}, (1.0, 2.0)).next() == 4.0
    assert Rates({1.0: [20.0], 2.0: [10.0]}, (1.0, 2.0)).next() == 0.5
    assert Rates({0.5: [1.0], 1.0: [20.0], 2.0: [10.0]}, (0.5, 1.0, 2.0)).next() is None
    tried = tuple(2.0**n for n in range(MOST_FACTORS))
    assert Rates({factor: [factor] for factor in tried}, tried).next() is None
    assert Rates({}, (1.0,)).next() is None
