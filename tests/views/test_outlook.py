"""What the leaderboard says of the search's prospects."""

from pathlib import Path

import archive_samples as samples
from rich.console import Console

from poise_core.archive import Archive, candidate_row, evaluation_rows, trajectory_rows
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.render.lines import outlook_note
from poise_core.render.terminal import render_leaderboard
from poise_core.views import leaderboard
from poise_core.views.outlook import outlook


def run_of(folder: Path, skills: list[float]) -> Archive:
    """One child per generation, each of the one before it; 1000 tokens each."""
    archive, protocol = Archive(folder).initialise(), samples.make_protocol()
    for generation, skill in enumerate(skills):
        identity, parents = f"c-{generation}", [f"c-{generation - 1}"] if generation else []
        row = candidate_row(
            candidate_id=identity, name=f"C{generation}", source=f"x = {generation}", source_digest="d",
            written_by="human", generation=generation, parent_ids=parents,
        )  # fmt: skip
        archive.append("candidates", [row])
        archive.append("trajectories", trajectory_rows(identity, protocol.digest, 0, [{"step": 0, "tokens": 1000}]))
        for seed in samples.SEEDS:
            evaluation = samples.make_evaluation(protocol, skill, seed)
            archive.append("evaluations", evaluation_rows(identity, protocol.digest, evaluation))
    return archive


def test_a_run_that_stands_still_says_so_with_its_cost(tmp_path: Path) -> None:
    preset = samples.make_preset(generations=5, parents=1)
    archive = run_of(tmp_path, [0.5, 0.3, 0.31, 0.3, 0.31, 0.3])
    evidence = RunEvidence.load(archive, preset.protocol)
    state = outlook(evidence, preset)
    assert state.stalled
    assert state.tokens == 1000
    note = outlook_note(state)
    assert note.startswith("Plateau: over the last 3 generations")
    assert note.endswith("not worth its cost.")
    console = Console(record=True, width=200)
    rows = leaderboard(evidence)
    console.print(render_leaderboard(rows, preset.protocol, outlook=note))
    assert "not worth its cost" in console.export_text()


def test_a_run_that_rises_and_one_that_has_just_begun(tmp_path: Path) -> None:
    preset = samples.make_preset(generations=5, parents=1)

    def note(archive: Archive) -> str:
        return outlook_note(outlook(RunEvidence.load(archive, preset.protocol), preset))

    assert note(run_of(tmp_path / "a", [0.3, 0.4, 0.5, 0.6, 0.7])).startswith("No plateau")
    assert note(run_of(tmp_path / "b", [0.3, 0.4])) == ""
