"""Read the archive of a finished run with pandas: the best candidates, and the lineage of the first of them.

    python examples/02_read_the_archive.py                     # the published run of docs/results/laptop-64.md
    python examples/02_read_the_archive.py runs/laptop/archive # your own

Every table is a folder of Parquet files that pandas reads as one frame; docs/archive.md lists the columns. `poise leaderboard`
adds what this leaves out: intervals, and the correction for how many were tried.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas

PUBLISHED = Path(__file__).parents[1] / "docs" / "results" / "laptop-64" / "archive"


def leaderboard(archive: Path) -> pandas.DataFrame:
    """One row per candidate of the evolution: seeds, Overall in percent, and the difference to the baseline on shared seeds."""
    candidates = pandas.read_parquet(archive / "candidates").set_index("candidate_id")
    candidates = candidates[candidates.arm == "evolution"]
    # the split `report` is sealed: only a replication may read it
    evaluations = pandas.read_parquet(archive / "evaluations", filters=[("split", "==", "search")])
    evaluations = evaluations[evaluations.candidate_id.isin(candidates.index)]
    # a row per benchmark repeats the Overall of its seed; numbers of different protocols must not be compared
    protocol = evaluations.protocol.mode().iloc[0]
    evaluations = evaluations[evaluations.protocol == protocol].drop_duplicates(["candidate_id", "seed"])
    overall = evaluations.pivot(index="candidate_id", columns="seed", values="overall")  # candidates x seeds
    baseline = candidates.index[candidates.generation == 0][0]
    table = pandas.DataFrame(
        {
            "name": candidates.name,
            "generation": candidates.generation,
            "seeds": overall.count(axis=1),
            "overall": overall.mean(axis=1),
            "to_baseline": (overall - overall.loc[baseline]).mean(axis=1),
        }
    )
    table = table.dropna(subset="overall").astype({"seeds": int})
    # more seeds first: one lucky seed is no evidence, and the run has stopped those candidates after it
    return table.sort_values(["seeds", "overall"], ascending=False)


def lineage(archive: Path, candidate_id: str) -> list[str]:
    """Names from the candidate up to the baseline, each with what was changed in it."""
    candidates = pandas.read_parquet(archive / "candidates").set_index("candidate_id")
    steps = []
    while True:
        row = candidates.loc[candidate_id]
        steps.append(f"{row['name']}: {row['change'] if row['parent_ids'].size else 'the baseline'}")
        if row["parent_ids"].size == 0:
            return steps
        candidate_id = row["parent_ids"][0]  # the first is the primary parent; others only gave mechanisms


if __name__ == "__main__":
    archive = Path(sys.argv[1]) if len(sys.argv) > 1 else PUBLISHED
    board = leaderboard(archive)
    print(board.head(10).to_string(index=False, float_format="{:.1f}".format))
    print(f"\nthe lineage of {board.name.iloc[0]}, newest first:")
    print("\n".join(lineage(archive, board.index[0])))
