"""Every example runs as its first lines say, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(example: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.exhaustive
def test_a_candidate_is_verified_trained_and_scored(tmp_path: Path) -> None:
    first = run("01_write_a_candidate/evaluate.py", tmp_path / "run")
    seeds = re.findall(r"^seed (\d): Overall (\d+\.\d)$", first, re.MULTILINE)
    assert [seed for seed, _ in seeds] == ["0", "1"]
    assert all(0.0 <= float(overall) <= 100.0 for _, overall in seeds)
    (candidate,) = (tmp_path / "run" / "candidates").iterdir()
    assert candidate.name.startswith("gentle-on-failures-")


@pytest.fixture(scope="module")
def published() -> str:
    """What the second example prints of the published archive."""
    return run("02_read_the_archive.py")


@pytest.mark.slow
def test_the_published_archive_gives_the_leader_and_its_lineage(published: str) -> None:
    lines = published.splitlines()
    # docs/results/laptop-64.md: AM-HT-SQ, six seeds, +5.5 points over GRPO
    assert lines[1].split() == ["AM-HT-SQ", "15", "6", "78.7", "5.5"]
    assert lines[-1] == "GRPO: the baseline"
    assert [line.split(":")[0] for line in lines[lines.index(lines[-1]) - 6 :]] == [
        "AM-HT-SQ", "FB-XL-TR", "AM-NS-GP", "HT-EC-GP", "VM-BS-BZ", "DN-EB", "GRPO",
    ]  # fmt: skip


@pytest.mark.slow
def test_one_file_per_table_reads_the_same(tmp_path: Path, published: str) -> None:
    import pandas

    archive = ROOT / "docs" / "results" / "laptop-64" / "archive"
    for table in ("candidates", "evaluations"):
        (tmp_path / table).mkdir()
        pandas.read_parquet(archive / table).to_parquet(tmp_path / table / "part.parquet")
    assert run("02_read_the_archive.py", tmp_path) == published


@pytest.mark.exhaustive
def test_a_policy_is_trained_and_scored_on_prompts_of_ones_own(tmp_path: Path) -> None:
    text = run("03_your_own_prompts/evaluate.py", tmp_path / "run")
    prompts = re.findall(r"^(\d+)((?:-\d+)+)=  wants #(-?\d+)$", text, re.MULTILINE)
    assert len(prompts) == 3
    for paid, prices, wanted in prompts:
        assert int(paid) - sum(map(int, prices[1:].split("-"))) == int(wanted)
    assert re.search(r"^grpo: Overall \d+\.\d \(one-item acc@1 \d+\.\d, two-items pass@4 \d+\.\d\)$", text, re.M)
    (trained,) = (tmp_path / "run").rglob("trajectory.jsonl")
    assert len(trained.read_text().splitlines()) == 4


def test_every_example_stands_in_the_readme() -> None:
    listed = set(re.findall(r"python examples/(\d\d\w*)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.stem for path in EXAMPLES.glob("0*")}
