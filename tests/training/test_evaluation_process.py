"""Evaluation: the same policy always gets the same numbers, on problems it has not trained on, beside no candidate."""

from __future__ import annotations

import dataclasses
import hmac
import itertools
import json
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_samples import ENVIRONMENT, protocol_of

import poise_core.evaluation.launcher as launcher
from poise_core.archive.rows import evaluation_rows, seed_evaluations
from poise_core.config import ResourceSpec, load_preset
from poise_core.environments import Problem, get_environment
from poise_core.environments.base import Outcome
from poise_core.environments.prompts import training_problems
from poise_core.evaluation.evaluate import benchmark_problems, evaluate_policy
from poise_core.evaluation.kept import KINDS, cut, kept_rows
from poise_core.evaluation.launcher import EvaluationJob, evaluate_policies
from poise_core.evaluation.problems import ProblemSecret, ProblemSet, problem_set
from poise_core.evaluation.results import SeedEvaluation, graded_counts
from poise_core.evidence.intervals import delta_between, overall_interval, paired_delta
from poise_core.policies.locate import policy_digest
from studies.simulation import FIRST_TESTBED


def copy_with(policy: Path, folder: Path, change: float) -> Path:
    """A policy whose weights are those of another one, one of them changed."""
    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += change
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_same_policy_gets_the_same_numbers(tiny_policy: Path) -> None:
    protocol = protocol_of(tiny_policy)
    first, second = (evaluate_policy(tiny_policy, protocol, "search", seed) for seed in (0, 1))
    assert first.benchmarks == second.benchmarks
    assert first.overall == second.overall
    assert {b.name: len(b.correct) for b in first.benchmarks} == {"sampled": 12, "greedy": 12}
    assert 0 < first.overall < 100
    sealed = evaluate_policy(tiny_policy, protocol, "report", 0)
    assert sealed.benchmarks != first.benchmarks
    assert [one.kept for one in sealed.benchmarks] == [(), ()], "nothing of the sealed split is kept to be read"
    for result in first.benchmarks:
        kinds = [one.kind for one in result.kept]
        assert kinds == [kind for kind in KINDS if kind in kinds]
        assert result.graded is not None
        assert sum(result.graded.values()) == len(result.correct) * result.samples
        assert result.graded.get("right", 0) == sum(result.correct)
        assert "longest" in kinds
        for one in result.kept:
            told = {"right": one.correctness > 0, "wrong": one.format_valid and not one.correctness}
            assert told.get(one.kind, one.kind == "longest" or not one.format_valid)
            assert one.prompt
    assert SeedEvaluation.from_json(first.to_json()).benchmarks[0].kept == first.benchmarks[0].kept


def test_every_outcome_of_a_grading_is_counted_and_kept(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Judge:
        """Has a verdict of each kind in turn, a source's with its name and an environment's of a user without one."""

        verdicts = (
            Outcome(1.0, True, "right"), Outcome(0.5, True, "partial"), Outcome(0.0, True, "wrong"),
            Outcome(0.0, False, "no_answer"), Outcome(0.0, False, "unreadable"), Outcome(0.0, False, "timed_out"),
            Outcome(0.0, False, "failed"), Outcome(1.0, True), Outcome(0.0, True), Outcome(0.0, False), Outcome(0.2, True),
        )  # fmt: skip

        def problems(self, *asked: Any) -> list[Problem]:
            return get_environment("arithmetic").problems(*asked)

        def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Outcome]:
            return [self.verdicts[place % 11] for place in range(len(texts))]

    monkeypatch.setattr("poise_core.evaluation.evaluate.benchmark_environment", lambda *_: Judge())
    found = evaluate_policy(tiny_policy, protocol_of(tiny_policy), "search", 0)
    greedy = next(result for result in found.benchmarks if result.name == "greedy")
    # 12 completions of which c were cut off and 12 - c were judged: one of each, and the first once more where none was cut off
    cut_off = (greedy.graded or {}).get("cut_off", 0)
    places = range(12 - cut_off)
    counts = {
        "right": (0, 7),
        "partial": (1, 10),
        "wrong": (2, 8),
        "malformed": (3, 4, 9),
        "timed_out": (5,),
        "failed": (6,),
    }
    expected = {name: sum(place % 11 in members for place in places) for name, members in counts.items()}
    assert {**expected, **({"cut_off": cut_off} if cut_off else {})} == greedy.graded
    assert greedy.graded["timed_out"] == 1
    for result in found.benchmarks:  # a part of the credit is no right completion
        assert sum(result.correct) == (result.graded or {}).get("right", 0)
    rows = evaluation_rows("c", "p", SeedEvaluation.from_json(found.to_json()))
    (back,) = seed_evaluations(rows)["c"]
    assert {one.name: one.graded for one in back.benchmarks} == {one.name: one.graded for one in found.benchmarks}
    (older,) = seed_evaluations({key: value for key, value in row.items() if key != "graded"} for row in rows)["c"]
    assert graded_counts([older]) == {}
    assert graded_counts([back, back])["greedy"] == {name: 2 * count for name, count in greedy.graded.items()}


def test_the_first_of_each_kind_and_the_longest_are_kept_and_long_texts_are_cut() -> None:
    valid, correct = [True, False, True, True, False], [0.0, 0.0, 1.0, 1.0, 0.0]
    assert kept_rows(correct, valid, [3, 9, 4, 9, 1]) == {"right": 2, "wrong": 0, "malformed": 1, "longest": 1}
    assert kept_rows([1.0], [True], [2]) == {"right": 0, "longest": 0}
    assert kept_rows([], [], []) == {}
    assert cut("abc", 3) == "abc"
    assert cut("a" * 50 + "b" * 50, 10) == "aaaaa [... 90 characters left out ...] bbbbb"
    assert cut("half \ud800", 99) == "half ?"


@pytest.mark.slow
def test_every_examination_has_problems_of_its_own_within_the_sealed_split(tiny_policy: Path) -> None:
    spec = load_preset(FIRST_TESTBED).protocol.benchmarks[
        3
    ]  # sums of three digits, of which the split has more than enough
    environment = get_environment("arithmetic")
    secret = ProblemSecret(bytes(range(32)))
    asked = [secret.problem_set("report", number) for number in range(3)]
    sets = [{p.prompt for p in benchmark_problems(environment, spec, one)} for one in asked]
    assert [len(one) for one in sets] == [spec.problems] * 3
    # drawn independently: two sets of n out of N share n^2 / N; 960 of some 120,000 sums of three digits share 8
    assert all(len(one & other) < 0.1 * spec.problems for one, other in itertools.combinations(sets, 2))
    search = {p.prompt for p in benchmark_problems(environment, spec, secret.problem_set("search"))}
    assert not any(one & search for one in sets)
    protocol = protocol_of(tiny_policy)
    first, second = (evaluate_policy(tiny_policy, protocol, "report", 0, key=one.key) for one in asked[:2])
    assert first.benchmarks != second.benchmarks


def test_scores_do_not_depend_on_the_batch(tiny_policy: Path, monkeypatch) -> None:
    import poise_core.evaluation.evaluate as module

    protocol = protocol_of(tiny_policy)
    whole = evaluate_policy(tiny_policy, protocol, "search", 0)
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 7)
    assert evaluate_policy(tiny_policy, protocol, "search", 0).benchmarks == whole.benchmarks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["laptop", "smoke"])
def test_no_problem_is_in_two_splits(name: str) -> None:
    protocol = load_preset(name).protocol
    environment = get_environment(protocol.environment.name)
    train = {p.prompt for seed in protocol.seeds[:3] for p in training_problems(protocol.environment, seed)}
    search, report = (
        {p.prompt for benchmark in protocol.benchmarks for p in benchmark_problems(environment, benchmark, asked)}
        for asked in (ProblemSet("search", b"a key"), ProblemSet("report", b"another"))
    )
    for prompts in (
        search,
        report,
    ):  # benchmarks draw on their own, so that two of the same kind share a problem now and then
        assert len(prompts) >= 0.95 * sum(benchmark.problems for benchmark in protocol.benchmarks)
    assert not search & report
    assert not train & (search | report)


def test_problems_follow_from_the_secret_the_split_and_the_examination() -> None:
    """HMAC-SHA256 by hand: key of a set = HMAC(secret, split/examination), seed = HMAC(key, benchmark)."""
    secret, other = ProblemSecret(b"s" * 32), ProblemSecret(b"t" * 32)
    key = hmac.digest(b"s" * 32, b"poise/report/0", "sha256")
    assert secret.problem_set("report") == ProblemSet("report", key)
    assert ProblemSet("report", key).seed("sums") == hmac.digest(key, b"poise/problems/sums", "sha256").hex()
    sets = [secret.problem_set(split, number) for split in ("search", "report") for number in (0, 1)]
    sets += [other.problem_set("search"), problem_set(None, "search")]
    assert len({one.fingerprint for one in sets}) == len({one.seed("sums") for one in sets}) == len(sets)
    assert len({one.noise_key(name) for one in sets for name in ("sums", "chains")}) == 2 * len(sets)
    assert problem_set(None, "search").seed("sums") == "benchmark/sums", "as anybody can compute"
    environment, spec = get_environment("arithmetic"), load_preset("laptop").protocol.benchmarks[0]
    asked = [tuple(problem.prompt for problem in benchmark_problems(environment, spec, one)) for one in sets]
    assert len(set(asked)) == len(sets)
    assert key.hex() not in repr(sets), "what is logged by accident tells nothing"
    assert b"s" * 32 not in repr(secret).encode()
    with pytest.raises(ValueError, match="train split are public"):
        secret.problem_set("train")


def test_scores_on_other_problems_are_no_pairs(tiny_policy: Path) -> None:
    protocol = protocol_of(tiny_policy)
    first, second = (evaluate_policy(tiny_policy, protocol, "search", 0, key=key) for key in (b"one", b"two"))
    assert first.benchmarks != second.benchmarks
    assert (first.problems, second.problems) == tuple(ProblemSet("search", key).fingerprint for key in (b"one", b"two"))
    assert SeedEvaluation.from_json(first.to_json()) == first
    assert paired_delta([first], [first], protocol).estimate == 0.0
    with pytest.raises(ValueError, match="asked different problems"):
        paired_delta([first], [second], protocol)
    assert delta_between("a", "b", {"a": [first], "b": [second]}, protocol, None) is None
    with pytest.raises(ValueError, match="different problems are mixed"):
        overall_interval([first, dataclasses.replace(second, seed=1)], protocol)
    stored = seed_evaluations(evaluation_rows("a", protocol.digest, first))["a"]
    assert [one.problems for one in stored] == [first.problems]


def test_training_problems_depend_on_the_seed_alone() -> None:
    assert training_problems(ENVIRONMENT, 1) == training_problems(ENVIRONMENT, 1)
    assert training_problems(ENVIRONMENT, 1) != training_problems(ENVIRONMENT, 2)
    mixed = ENVIRONMENT.model_copy(update={"mixture": {"mod": 3.0, "add2": 1.0}, "train_problems": 400})
    share = sum(problem.kind == "mod" for problem in training_problems(mixed, 0)) / 400
    assert share == pytest.approx(0.75, abs=0.08)  # four standard deviations of a binomial share


def test_the_digest_of_a_policy_is_that_of_its_weights(tiny_policy: Path, tmp_path: Path) -> None:
    same, other = copy_with(tiny_policy, tmp_path / "same", 0.0), copy_with(tiny_policy, tmp_path / "other", 1e-6)
    (same / "config.json").write_text((same / "config.json").read_text() + "\n")
    assert policy_digest(same) == policy_digest(copy_with(tiny_policy, tmp_path / "again", 0.0))
    assert policy_digest(other) != policy_digest(same)


WATCHED = """
import json, sys
from poise_core.evaluation import worker
status = worker.main(sys.argv[1])
print(json.dumps({"status": status, "modules": sorted(sys.modules)}))
"""


@pytest.mark.slow
def test_evaluation_is_resumed_and_never_loads_a_candidate(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    changed = copy_with(tiny_policy, tmp_path / "changed", 5.0)
    protocol = protocol_of(tiny_policy)
    job = EvaluationJob(
        tmp_path / "evaluate",
        protocol,
        ResourceSpec(),
        "search",
        ((0, tiny_policy), (1, tiny_policy), (2, changed)),
        secret=ProblemSecret(b"s" * 32),
    )
    results = evaluate_policies(job)
    assert [result.seed for result in results] == [0, 1, 2]
    assert results[0].benchmarks == results[1].benchmarks != results[2].benchmarks
    assert job.secret is not None
    key = job.secret.problem_set("search").key
    expected = evaluate_policy(tiny_policy, protocol, "search", 0, key=key)  # in this process: the same numbers
    assert dataclasses.replace(results[0], seconds=0.0) == dataclasses.replace(expected, seconds=0.0)

    for seed in (0, 2):
        (job.folder / f"seed-{seed}-search.json").unlink()
    kept = (job.folder / "seed-1-search.json").stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(job.folder / "job-search.json")], capture_output=True, text=True, check=True
    )
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["status"] == 0
    assert (job.folder / "seed-1-search.json").stat().st_mtime_ns == kept
    foreign = ("poise_core.candidate.loading", "poise_core.algorithms", "poise_core.training.trainer", "deepspeed")
    assert [m for m in outcome["modules"] if m.startswith(foreign) or "poise_candidate" in m] == []
    job_file = job.folder / "job-search.json"
    assert stat.S_IMODE(job_file.stat().st_mode) == 0o600
    assert job.secret.value.hex() not in job_file.read_text(), "the key of one split, not the secret"
    monkeypatch.setattr(launcher, "run_confined", None)  # everything is there: nothing is started
    again = evaluate_policies(job)
    assert [result.benchmarks for result in again] == [result.benchmarks for result in results]
    with pytest.raises(TypeError):  # other problems: it would have to be evaluated again
        evaluate_policies(dataclasses.replace(job, secret=ProblemSecret(b"t" * 32)))


def test_a_policy_is_never_unpickled(tiny_policy: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny_policy, tmp_path / "pickled", 0.0)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        evaluate_policy(folder, protocol_of(folder), "search", 0)


def test_of_a_trained_policy_only_the_weights_count(tiny_policy: Path, tmp_path: Path) -> None:
    """A training with hostile code could leave a tokenizer that decodes whatever it likes, or an architecture with code."""
    protocol = protocol_of(tiny_policy)
    honest = evaluate_policy(tiny_policy, protocol, "search", 0)
    forged = copy_with(tiny_policy, tmp_path / "forged", 0.0)
    for file in [file for file in forged.iterdir() if file.suffix != ".safetensors"]:
        file.unlink()
    (forged / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    (forged / "own.py").write_text("raise SystemExit('code of a policy was run')\n")
    found = evaluate_policy(forged, protocol, "search", 0, base=tiny_policy)
    assert found.benchmarks == honest.benchmarks
    with pytest.raises(ValueError, match="contains custom code"):
        evaluate_policy(forged, protocol, "search", 0)


@pytest.mark.slow
def test_a_policy_whose_files_are_links_is_evaluated(tiny_policy: Path, tmp_path: Path) -> None:
    """As in the hub's cache: the confined process needs the files that the links lead to."""
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    linked.mkdir(parents=True)
    for number, file in enumerate(tiny_policy.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (linked / file.name).symlink_to(f"../../blobs/{number}")
    protocol = protocol_of(linked)
    job = EvaluationJob(tmp_path / "evaluate", protocol, ResourceSpec(), "search", ((0, linked),), secret=None)
    (result,) = evaluate_policies(job)
    assert result.benchmarks == evaluate_policy(tiny_policy, protocol, "search", 0).benchmarks
