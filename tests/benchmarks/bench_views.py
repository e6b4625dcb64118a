"""What it costs to look at a large run: seconds and memory of ``poise explore``, ``leaderboard`` and others, a process each.

``python tests/benchmarks/bench_views.py FOLDER --candidates 1500`` makes a run directory of so many candidates in the folder,
unless one is there: each is drawn from a candidate of the published run, with other numbers in its source, texts, trainings and
scores, and has rows in every table, thirty kept completions per seed, and two calls of a model. Then it compacts the archive
(``--loose`` leaves the parts) and prints a row per command. 1,500 candidates take minutes to make, 10,000 half an hour and more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise_core.archive import Archive, proposal_id
from poise_core.evaluation.scoring import benchmark_score
from poise_core.run_directory import RunDirectory

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "results" / "laptop-64"
SIBLINGS = 8
COMMANDS = ("explore", "leaderboard", "lineage", "rungs", "credit", "show", "archive check")
KEPT = ("right", "wrong", "longest")
COMPUTED = ("row_key", "content_digest")

Row = dict[str, Any]


def grouped(rows: Iterable[Mapping[str, Any]], key: str) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


class Maker:
    """Makes candidates like those of a real run."""

    def __init__(self, archive: Archive, seed: int = 1) -> None:
        self.archive, self.rng = archive, np.random.default_rng(seed)
        known = RunDirectory.read(PUBLISHED)
        self.protocol = known.preset.protocol
        tables = ("proposals", "verifications", "reflections", "rungs", "trajectories", "evaluations")
        rows = {table: list(known.archive.rows(table)) for table in tables}
        self.ideas = {row["proposal_id"]: row for row in rows.pop("proposals")}
        self.rows = {table: grouped(found, "candidate_id") for table, found in rows.items()}
        made = sorted(known.archive.rows("candidates"), key=lambda row: row["generation"])
        self.root = next(row for row in made if not row["parent_ids"] and row["arm"] == "evolution")
        self.kinds = [row for row in made if row["parent_ids"]]
        self.scored: list[tuple[int, str]] = []  # generation, id

    def other(self, text: str) -> str:
        """The text with other digits in its decimal fractions."""
        draw = self.rng.integers
        return re.sub(r"(?<=\.)\d+", lambda one: f"{draw(1, 10 ** min(len(one[0]), 5))}".zfill(len(one[0])), text)

    def append(self, table: str, rows: Iterable[Mapping[str, Any]], **changed: Any) -> None:
        self.archive.append(table, [{k: v for k, v in {**row, **changed}.items() if k not in COMPUTED} for row in rows])

    def candidate(self, number: int) -> None:
        kind = self.kinds[int(self.rng.integers(len(self.kinds)))] if number else self.root
        generation, slot = (number + SIBLINGS - 1) // SIBLINGS, (number - 1) % SIBLINGS
        name = f"{kind['name']}-{number}" if number else kind["name"]
        identity = f"{name.lower()}-{number * 7919:08x}ab"
        above = [one for when, one in self.scored[-60:] + self.scored[:1] if when < generation]
        parents = [above[int(self.rng.integers(len(above)))]] if number else []
        idea = proposal_id("evolution", generation, slot, 0) if number else None
        place = {"candidate_id": identity}
        made = {"name": name, "generation": generation, "parent_ids": parents, "proposal_id": idea, "revises": None}
        source = f"{self.other(kind['source'])}\n# number {number}\n"
        self.append("candidates", [kind], source=source, source_digest=f"{number:064x}", **place, **made)
        if idea:
            own = self.ideas[kind["proposal_id"]]
            rest = [one for one in self.ideas.values() if one["generation"] == own["generation"] and one is not own][:3]
            told = [
                {
                    **one,
                    "proposal_id": proposal_id("evolution", generation, slot, index),
                    "index": index,
                    "taken": not index,
                }
                for index, one in enumerate([own, *rest])
            ]
            self.append("proposals", told, generation=generation, slot=slot, parent_ids=parents)
            self.append("calls", [self.call(idea, role, source, generation) for role in ("proposer", "implementer")])
        failure = "verify" if self.rng.random() < 0.02 else "train" if self.rng.random() < 0.03 else ""
        sketch = f"{number:016x}.{(self.rows['verifications'][kind['candidate_id']][0]['fingerprint'] or '.').partition('.')[2]}"
        self.append("verifications", self.rows["verifications"][kind["candidate_id"]], fingerprint=sketch, **place)
        if number and failure:
            self.append("failures", [self.failure(identity, failure, made)])
        if number and failure == "verify":
            return
        for seed, steps in grouped(self.rows["trajectories"].get(kind["candidate_id"], ()), "seed").items():
            self.append("trajectories", map(self.step, steps), **place)
            places = [("training", step, kind) for step in (0, 20, 40, 59) for kind in KEPT]
            self.append("completions", self.completions(places), **place, seed=seed, origin="train")
        if number and failure:
            return
        for results in grouped(self.rows["evaluations"].get(kind["candidate_id"], ()), "seed").values():
            self.append("evaluations", self.evaluation(results), **place)
            places = [(row["benchmark"], -1, kind) for row in results for kind in KEPT]
            self.append("completions", self.completions(places), **place, seed=results[0]["seed"], origin="search")
            self.scored.append((generation, identity))
        for table in ("rungs", "reflections"):
            rows = self.rows[table].get(kind["candidate_id"], ())
            for row in rows:
                texts = {key: self.other(value) for key, value in row.items() if key in ("markdown", "content")}
                self.append(table, [row], **texts, **place, **({"generation": generation} if table == "rungs" else {}))

    def step(self, row: Row) -> Row:
        factor = float(self.rng.normal(1.0, 0.05))
        moved = {key: value * factor for key, value in row.items() if isinstance(value, float)}
        other = {key: value * factor for key, value in row["metrics"].items()}
        return {**row, **moved, "metrics": other, "tokens": int(row["tokens"] * factor)}

    def evaluation(self, results: Sequence[Row]) -> list[Row]:
        weights = {one.name: one for one in self.protocol.benchmarks}
        shift, scored = self.rng.normal(0.0, 0.02), []
        for row in results:
            rate = np.clip(np.array(row["correct"]) / row["samples"] * 0.9 + 0.04 + shift, 0.0, 1.0)
            correct = self.rng.binomial(row["samples"], rate).tolist()
            score = benchmark_score(correct, row["samples"], weights[row["benchmark"]].k)
            scored.append({**row, "correct": correct, "score": score})
        overall = sum(weights[row["benchmark"]].weight * row["score"] for row in scored)
        return [{**row, "overall": overall} for row in scored]

    def completions(self, places: Sequence[tuple[str, int, str]]) -> list[Row]:
        common = {"protocol": self.protocol.digest, "written_by": "poise"}
        common |= {"correctness": 1.0, "format_valid": True, "truncated": False}
        drawn = self.rng.integers(1, 999, (len(places), 4)).tolist()
        return [
            {**common, "benchmark": benchmark, "step": step, "kind": kind,
             "prompt": "What is {} + {} * {}? ".format(*numbers[:3]) * 8,
             "completion": "{} + {} = {}, so the answer is {}. ".format(*numbers) * 8, "tokens": numbers[0]}
            for (benchmark, step, kind), numbers in zip(places, drawn, strict=True)
        ]  # fmt: skip

    def call(self, idea: str, role: str, source: str, generation: int) -> Row:
        return {
            "call_id": f"{idea}/{role}-0", "scope": idea, "role": role, "generation": generation, "model": "a:model",
            "method": "json_schema", "attempt": 0, "outcome": "ok", "input_tokens": 3000, "output_tokens": 900,
            "estimated": False, "dollars": 0.01, "seconds": 3.0, "prompt": "p", "request_digest": "0" * 12,
            "request": json.dumps(source), "answer": json.dumps(source[:2000]), "replayed": False, "written_by": "llm",
        }  # fmt: skip

    def failure(self, identity: str, stage: str, made: Row) -> Row:
        said = {"kind": "diverged", "message": "the loss is NaN at step 7", "detail": "Traceback\n" * 20}
        place = {"protocol": self.protocol.digest, "candidate_id": identity, "stage": stage, "attempt": 0}
        named = {"name": made["name"], "generation": made["generation"], "parent_id": made["parent_ids"][0]}
        return {**place, **said, **named, "written_by": "poise"}


def make(folder: Path, candidates: int, loose: bool) -> None:
    """Make what is not there yet."""
    if not (folder / "preset.yaml").exists():
        fill(folder, candidates)
    if not loose:
        RunDirectory.read(folder).archive.compact(lambda table: None)


def fill(folder: Path, candidates: int) -> None:
    folder.mkdir(parents=True)
    maker = Maker(Archive(folder / "archive").initialise())
    for number in range(candidates):
        maker.candidate(number)
    maker.archive.refresh_snapshots()
    shutil.copy(PUBLISHED / "preset.yaml", folder / "preset.yaml")  # last: without it the folder is no run


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Wall-clock and processor seconds of a process, and its peak of memory in GB."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--candidates", type=int, default=1500)
    parser.add_argument("--loose", action="store_true", help="leave the archive in its parts")
    options = parser.parse_args()
    # in a process of its own: what this one holds would count as the peak of those that it starts
    given = (options.folder, options.candidates, options.loose)
    making = multiprocessing.get_context("spawn").Process(target=make, args=given)
    making.start()
    making.join()
    assert not making.exitcode, "the run could not be made"
    candidates = len(RunDirectory.read(options.folder).archive.parts("candidates"))
    print(f"{candidates:,} candidates, load average {os.getloadavg()[0]:.1f}")
    print("| command | wall s | processor s | peak GB |\n|---|---|---|---|")
    for command in COMMANDS:
        program = [sys.executable, "-c", "from poise_core.cli import app; app()", *command.split(), str(options.folder)]
        print("| `poise {}` | {:.1f} | {:.1f} | {:.2f} |".format(command, *measured(program)), flush=True)


if __name__ == "__main__":
    main()
