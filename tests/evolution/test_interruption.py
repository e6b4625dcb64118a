"""Whatever was written last when a process dies, the next one goes on and the run ends as if nothing had happened."""

from pathlib import Path

import pytest
from laboratory import Killed, Laboratory, contents, dies_after_one_write, evolve, make_preset, open_evolution

from poise_core.archive import Archive
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError


@pytest.mark.exhaustive
def test_killed_after_every_single_write(tmp_path: Path, laboratory: Laboratory) -> None:
    preset, laboratory.keeps = make_preset(generations=2), True

    def refuse_some(name: str, source: str) -> str | None:
        return "no" if name != "GRPO" and sum(source.encode()) % 3 == 0 else None

    laboratory.refuse = refuse_some
    undisturbed = open_evolution(tmp_path / "undisturbed", preset)
    evolve(undisturbed)
    archive = undisturbed.run.archive
    scored = archive.evaluations(protocol=preset.protocol.digest)
    fails = next(row for row in archive.rows("candidates", generation=1) if row["candidate_id"] in scored)
    laboratory.fail[fails["name"]] = CandidateFailure(FailureKind.DIVERGED, "train", "NaN")
    undisturbed = open_evolution(tmp_path / "with a failure", preset)
    evolve(undisturbed)
    assert {row["kind"] for row in undisturbed.run.archive.rows("failures")} == {"diverged", "rejected"}

    written = []
    while True:
        with pytest.MonkeyPatch.context() as patch:
            dies_after_one_write(patch)
            try:
                run = open_evolution(tmp_path / "killed", preset)
                with run.run:  # a process that dies gives its lock back
                    evolve(run)
            except Killed as death:
                written.append(str(death))
                continue
        break
    assert len(written) > 60
    assert len(set(written)) == len(written)  # nothing was written twice
    assert contents(run.run.archive) == contents(undisturbed.run.archive)
    assert run.run.archive.check() == []


@pytest.mark.parametrize(("last", "origin"), [("trajectories", "train"), ("evaluations", "search")])
def test_killed_between_the_two_writes_of_a_stage_it_keeps_its_completions(
    last: str, origin: str, tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row by which a stage is known to be done is its last one."""
    laboratory.keeps = True
    append = Archive.append

    def die_half_way(self: Archive, table: str, rows: list[dict[str, object]], **options: bool) -> int:
        done = append(self, table, rows, **options)
        if table == last or (table == "completions" and rows[0]["origin"] == origin):
            raise Killed(table)  # at the first of the two
        return done

    def measured(name: str) -> dict[str, dict[str, str]]:
        evolution = open_evolution(tmp_path / name)
        with evolution.run:
            baseline = evolution.register_baseline()
            evolution.verify_baseline(baseline)
            evolution.train(baseline)
            evolution.evaluate(baseline)
            return contents(evolution.run.archive)

    undisturbed = measured("undisturbed")
    assert len(undisturbed["completions"]) == 6  # of two seeds: one of the training, one of each of two benchmarks
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "append", die_half_way)
        with pytest.raises(Killed):
            measured("killed")
    assert measured("killed") == undisturbed


@pytest.mark.slow
def test_an_unreadable_record_is_one_clear_line(tmp_path: Path, laboratory: Laboratory) -> None:
    run = open_evolution(tmp_path / "run")
    evolve(run)
    record = next((tmp_path / "run" / "generations").rglob("proposals.json"))
    record.write_text("[{")
    (slot, _) = run.select_parents(1)
    with pytest.raises(InfrastructureError, match=r"proposals\.json: not readable, left as it is"):
        run.propose(slot)
    assert record.read_text() == "[{"
