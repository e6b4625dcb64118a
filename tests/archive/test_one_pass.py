"""Reading a table once for many candidates: the same rows as one at a time, wherever they lie, and in little memory."""

from __future__ import annotations

import datetime as dt
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import archive_samples as samples
import pyarrow as pa
import pytest

from poise_core.archive import Archive, completion_rows, reflection_row, trajectory_rows
from poise_core.archive.encoding import to_rows
from poise_core.archive.reader import PartReader
from poise_core.archive.schema import Table
from poise_core.archive.trajectories import Trained
from poise_core.config import LadderSpec
from poise_core.evaluation.kept import KeptCompletion
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.history import History
from poise_core.tracking.plan import plan_runs
from poise_core.views.rungs import rung_report

IDS = [samples.GRPO, samples.AV, samples.VM_AV, samples.SA, samples.BROKEN, samples.WAITING]
GROUPS = [[samples.SA, samples.GRPO], [], [samples.WAITING], [samples.AV, "nobody-0123456789", samples.VM_AV]]
MORE = [f"more-{number:010d}" for number in range(40)]  # so that a snapshot is worth its while


def more(archive: Archive, digest: str, names: Sequence[str]) -> None:
    for name in names:
        written = {"summary": name, "markdown": name, "content": {}, "written_by": "rules"}
        archive.append("reflections", [reflection_row(candidate_id=name, protocol=digest, **written)])
        kept = KeptCompletion("training", 0, "right", f"prompt of {name}", "4", 1.0, True, False, 1)
        archive.append("completions", completion_rows(name, digest, 0, "train", [kept]))


def as_parts(archive: Archive, digest: str) -> None:
    more(archive, digest, MORE)


def with_a_snapshot(archive: Archive, digest: str) -> None:
    more(archive, digest, MORE[:-1])
    assert archive.refresh_snapshots() == ["reflections", "completions"]
    more(archive, digest, MORE[-1:])


def compacted(archive: Archive, digest: str) -> None:
    more(archive, digest, MORE)
    archive.compact(lambda _: None)


def compacted_and_parts(archive: Archive, digest: str) -> None:
    more(archive, digest, MORE[:-1])
    archive.compact(lambda _: None)
    more(archive, digest, MORE[-1:])
    archive.append("trajectories", trajectory_rows(samples.WAITING, digest, 0, samples.make_steps(3, 5)))


def with_a_damaged_snapshot(archive: Archive, digest: str) -> None:
    with_a_snapshot(archive, digest)
    (Path(archive.root) / "reflections" / ".snapshot.parquet").write_bytes(b"PAR1 no more")


@pytest.fixture(params=[as_parts, with_a_snapshot, compacted, compacted_and_parts, with_a_damaged_snapshot])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    made, protocol = samples.filled_archive(tmp_path)
    request.param(made, protocol.digest)
    return Archive(made.root)  # which has read nothing yet


@pytest.fixture
def digest() -> str:
    return samples.make_protocol().digest


@pytest.mark.parametrize("table", ["trajectories", "reflections", "verifications", "completions", "evaluations"])
def test_a_group_has_the_rows_of_its_candidates(archive: Archive, table: str) -> None:
    groups = [*GROUPS, MORE]
    for group, rows in zip(groups, archive.rows_of(table, groups, by="candidate_id"), strict=True):
        expected = archive.rows(table, candidate_id=group) if group else []
        assert list(map(repr, rows)) == list(map(repr, expected)), group  # NaN is not equal to itself


def test_a_group_may_be_asked_for_more(archive: Archive, digest: str) -> None:
    (rows,) = archive.rows_of("trajectories", [[samples.AV]], ["kl"], by="candidate_id", seed=1, step=[3, 2])
    assert rows == [
        {"kl": 0.02 * step, "candidate_id": samples.AV, "protocol": digest, "seed": 1, "step": step} for step in (2, 3)
    ]
    assert list(archive.rows_of("reflections", [MORE], by="candidate_id", protocol="another")) == [[]]


def test_the_sealed_split_stays_closed(archive: Archive, digest: str) -> None:
    sealed = samples.make_evaluation(samples.make_protocol(), 0.9, 0, "report")
    archive.append("evaluations", samples.evaluation_rows(samples.AV, digest, sealed))
    (rows,) = archive.rows_of("evaluations", [[samples.AV]], by="candidate_id")
    assert {row["split"] for row in rows} == {"search"}
    assert set(archive.read("evaluations", ["split"], keep=False)["split"].to_pylist()) == {"search"}


def steps_of(trained: Trained) -> dict[int, list[dict[str, Any]]]:
    """The same as ``Archive.trajectory`` gives."""
    rows: list[dict[str, Any]] = [{"step": int(step)} for step in trained.step]
    for name, (places, values) in trained.metrics.items():
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            rows[place][name] = value
    seeds: dict[int, list[dict[str, Any]]] = {}
    for seed, row in zip(trained.seed.tolist(), rows, strict=True):
        seeds.setdefault(seed, []).append(row)
    return seeds


def test_trainings_are_the_same_as_one_at_a_time(archive: Archive, digest: str) -> None:
    for group, found in zip(GROUPS, archive.trained(GROUPS, digest), strict=True):
        expected = {one: steps for one in group if (steps := archive.trajectory(one, digest))}
        assert found.keys() == expected.keys()
        for one, steps in expected.items():
            told = steps_of(found[one])
            assert {seed: list(map(sorted, rows)) for seed, rows in told.items()} == {
                seed: list(map(sorted, rows)) for seed, rows in steps.items()
            }
            for seed, rows in steps.items():
                for mine, row in zip(told[seed], rows, strict=True):
                    assert mine == pytest.approx(row, rel=0, abs=0, nan_ok=True)
            names = list(dict.fromkeys(name for rows in steps.values() for row in rows for name in row))
            assert [name for name in names if name != "step"] == list(found[one].metrics), "in the order of the rows"


def test_trajectories_of_many_are_those_of_each(archive: Archive, digest: str) -> None:
    expected = {one: steps for one in sorted(IDS) if (steps := archive.trajectory(one, digest))}
    found = dict(archive.trajectories(IDS, digest))
    assert list(found) == list(expected)
    assert repr(found) == repr(expected)  # NaN is not equal to itself
    second = dict(archive.trajectories(IDS, digest, seed=1))
    assert repr(second) == repr({one: {1: steps[1]} for one, steps in expected.items() if 1 in steps})


def test_who_asks_for_all_trainings_reads_them_once(
    archive: Archive, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = RunEvidence.load(archive, samples.make_protocol())
    reads = counted(monkeypatch)
    report = rung_report(evidence, LadderSpec(proxy_steps=5, proxy_window=2))
    assert report.correlations["proxy -> first"].pairs == 4
    assert reads["trajectories"] == 2, "what they cost, and their first steps"
    reads.clear()
    assert History(archive, evidence.protocol).floors(9).runs["entropy_end"].candidates >= 3
    assert reads["trajectories"] == 1
    reads.clear()
    one = KeptCompletion("training", 0, "right", "2 + 2 = ", "four", 1.0, True, False, 1)
    archive.append("completions", completion_rows(samples.AV, digest, 0, "train", [one]))
    shown = {plan.tags["candidate"]: text for plan in plan_runs(evidence) if (text := plan.texts.get("completions.md"))}
    assert list(shown) == [samples.AV]
    assert "2 + 2 =" in shown[samples.AV]
    assert "four" in shown[samples.AV]
    assert reads["completions"] == 1


def test_a_metric_that_some_steps_lack_keeps_its_place(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive").initialise()
    steps = [{"step": 0, "late/none": 1.0}, {"step": 1, "kl": 0.5, "tokens": 7}, {"step": 2, "kl": math.nan}]
    confined = {"network": "no user namespaces"}
    archive.append("trajectories", trajectory_rows("a", "p", 3, steps, confinement=confined))
    archive.append("trajectories", trajectory_rows("b", "p", 3, [{"step": 9, "other": 2.0}]))
    (found,) = archive.trained([["b", "a"]], "p")
    assert steps_of(found["b"]) == {3: [{"step": 9, "other": 2.0}]}
    assert list(found["a"].metrics) == ["late/none", "kl", "tokens"]
    assert found["a"].metrics["tokens"][0].tolist() == [1]
    assert [value == value for value in found["a"].metrics["kl"][1]] == [True, False]
    assert (found["a"].confinement, found["b"].confinement) == ({'{"network": "no user namespaces"}'}, frozenset())


def test_totals_add_up_the_rows_in_their_order(archive: Archive, digest: str) -> None:
    expected: dict[str, tuple[float, float]] = {}
    for row in archive.rows("trajectories", protocol=digest):
        tokens, seconds = expected.get(row["candidate_id"], (0, 0.0))
        seconds = seconds + (row["kl"] or 0.0) + (row["seconds_update"] or 0.0)
        expected[row["candidate_id"]] = (tokens + (row["tokens"] or 0), seconds)
    sums = (("tokens",), ("kl", "seconds_update"))
    assert archive.totals("trajectories", "candidate_id", *sums, protocol=digest) == expected
    assert archive.totals("trajectories", "candidate_id", *sums, protocol="another") == {}


def test_columns_alone_are_the_same_and_are_not_kept(archive: Archive) -> None:
    columns = ["summary", "created_at"]
    alone = archive.read("reflections", columns, keep=False, candidate_id=IDS)
    assert alone.to_pylist() == archive.read("reflections", columns, candidate_id=IDS).to_pylist()
    with pytest.raises(Exception, match="reflections: unknown column 'nothing'"):
        archive.read("reflections", ["nothing"], keep=False)


def test_rows_are_what_arrow_makes_of_them() -> None:
    moment = dt.datetime(2026, 11, 24, 10, 11, 5, 900482, dt.UTC)
    data = pa.table(
        {
            "when": pa.array([moment, None, moment], pa.timestamp("us", tz="UTC")),
            "counts": pa.array([[1, 2], [], [3]], pa.list_(pa.int32())),
            "unknown": pa.array([[1, None], None, []], pa.list_(pa.int32())),
            "terms": pa.array([[("a", 1.0)], None, []], pa.map_(pa.string(), pa.float64())),
            "texts": pa.array([["x"], [], ["y", "z"]], pa.list_(pa.string())),
            "number": pa.array([1.5, None, math.inf]),
        }
    )
    for one in (data, data[1:], data[:0], pa.concat_tables([data, data[1:]])):
        assert repr(to_rows(one)) == repr(one.to_pylist(maps_as_pydicts="strict"))


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Table -> how often its files are gone through."""
    found: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(PartReader, name)

        def read(reader: PartReader, table: Table, *arguments: Any, **named: Any) -> Any:
            found[table.name] += 1
            return original(reader, table, *arguments, **named)

        return read

    for name in ("scan", "_matching"):
        monkeypatch.setattr(PartReader, name, counting(name))
    return found


def test_a_table_is_read_once_for_any_number_of_groups(
    archive: Archive, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted(monkeypatch)
    assert sum(map(len, archive.rows_of("reflections", [[one] for one in MORE], by="candidate_id"))) == len(MORE)
    assert sum(map(len, archive.trained([[one] for one in IDS], digest))) >= 4
    assert reads == {"reflections": 1, "trajectories": 1}


def test_one_groups_rows_are_in_memory_at_a_time(tmp_path: Path) -> None:
    """40 candidates with a million characters each: Python never holds more than those of two."""
    archive = Archive(tmp_path / "archive").initialise()
    for number in range(40):
        text = f"{number:07d} " * 125_000
        content: Mapping[str, Any] = {"summary": "", "markdown": text, "content": {}, "written_by": "rules"}
        archive.append("reflections", [reflection_row(candidate_id=f"c-{number}", protocol="p", **content)])
    rows: Iterator[list[dict[str, Any]]] = archive.rows_of(
        "reflections", [[f"c-{number}"] for number in range(40)], ["markdown"], by="candidate_id"
    )
    tracemalloc.start()
    try:
        assert sum(len(group[0]["markdown"]) for group in rows) == 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
