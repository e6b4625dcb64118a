"""Writes docs/agents/exchanges.md: whole exchanges, one per role and one answer to a failed training, of a run against the
loopback server; and reads and writes docs/agents/bridge-run.jsonl.xz, the record of a whole run by the bridge.

``python tests/support/write_exchanges.py`` writes the page; with a run directory it writes the record of that run in its place.
"""

import json
import lzma
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laboratory as laboratories
import pytest
from laboratory import Laboratory, evolve, open_evolution
from llm_server import LoopbackServer
from script import diverging_at_first, good_answers, preset_for, softened_when_told

from poise_core.agents.llm.forms import ImplementationForm, ProposalsForm, ReflectionForm, ScreeningForm
from poise_core.archive import Archive
from poise_core.config import Preset, load_preset
from poise_core.run_directory import RunDirectory

PAGE = Path(__file__).parents[2] / "docs" / "agents" / "exchanges.md"
RECORD = PAGE.with_name("bridge-run.jsonl.xz")

FORMS = {
    "proposer": ProposalsForm,
    "screener": ScreeningForm,
    "implementer": ImplementationForm,
    "reflector": ReflectionForm,
}
STEP = ("step", "reward_mean", "format_valid", "completion_length", "truncated", "entropy", "kl", "clip_fraction", "grad_norm",
        "loss", "all_fail_fraction", "all_pass_fraction", "learning_rate", "tokens")  # fmt: skip
SETTINGS = ["search.generations=1", "search.parents=2", "agents.context_tokens=16000"]
"""Of the recorded run, beside its preset; whoever answers files needs longer limits of time, too."""

HEAD = """# Exchanges

One whole exchange per role, nothing cut, then the implementer's answer to a training that failed in its first steps. They are from
a run of the tests' laboratory against their scripted server: the questions are what any model is asked, the answers are the
script's. `python tests/support/write_exchanges.py` writes this page; a test compares what is fixed in it.
"""


def exchange(title: str, row: dict[str, Any]) -> str:
    """One call: everything that was said, and the filled form."""
    request, answer = json.loads(row["request"]), json.loads(row["answer"])
    form = json.loads(answer["arguments"] or answer["text"])
    said = "\n".join(f"--- {who}\n{text}" for who, text in request["messages"])
    source = form.pop("source", "")
    code = f"\n\nIts `source`:\n\n```python\n{source}```" if source else ""
    head = (
        f"## {title}\n\nCall `{row['call_id']}`, prompt `{row['prompt']}`, {row['method']}, {row['input_tokens']} tokens in, "
        f"{row['output_tokens']} out."
    )
    return f"{head}\n\n`````text\n{said}\n`````\n\n```json\n{json.dumps(form, indent=1)}\n```{code}"


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page, from the calls of a run."""
    calls = sorted((row for row in rows if row["generation"] == 1), key=lambda row: row["created_at"])
    asked = {
        role: [row for row in calls if row["role"] == role]
        for role in ("proposer", "screener", "implementer", "reflector")
    }
    parts = [exchange(role, found[0]) for role, found in asked.items()]
    told = next(row for row in asked["implementer"] if "try_1_train_report" in row["request"])
    return "\n\n".join([HEAD.strip(), *parts, exchange("implementer, after a failed training", told)]) + "\n"


def recorded_page(folder: Path, server: LoopbackServer, laboratory: Laboratory) -> str:
    """The page of a run in which the first file diverges at its fourth step."""
    server.reset(softened_when_told())
    diverging_at_first(laboratory)
    evolution = open_evolution(folder, preset_for(server))
    evolve(evolution)
    return page(evolution.run.archive.rows("calls"))


# ---- the record of a run by the bridge


@dataclass(frozen=True)
class Recorded:
    """A question as it was asked in the recorded run, and the answer that was written."""

    form: str
    scope: str
    system: str
    user: str
    answer: dict[str, Any]

    @property
    def about(self) -> str:
        """What tells it from the other questions of its form: the words before the data, and whose proposals are judged."""
        return about(self.form, self.user)


def about(form: str, user: str) -> str:
    """See ``Recorded.about``."""
    named = re.findall(r"^name: (\S+)$", user, re.MULTILINE) if form == "ScreeningForm" else ()
    return " ".join([form, *user.split("<data")[0].split(), *named])


def sections(user: str) -> dict[str, str]:
    """The data of a question, by name."""
    return dict(re.findall(r'<data name="(\w+)">\n(.*?)\n</data>', user, re.DOTALL))


@dataclass(frozen=True)
class BridgeRun:
    """A whole run by the bridge: what was measured, what was asked, what was answered, and what came of it."""

    directive: str
    questions: list[Recorded]
    candidates: dict[str, str]  # id -> digest of its file
    trajectories: dict[str, dict[int, list[dict[str, float]]]]  # id -> seed -> steps
    correct: dict[str, dict[int, dict[str, list[int]]]]  # id -> seed -> benchmark -> right completions of every problem

    def preset(self, base_url: str) -> Preset:
        """Of the run."""
        own = [f"agents.steering.directive={json.dumps(self.directive)}", f"agents.base_url={base_url}"]
        return load_preset("smoke", [*SETTINGS, *own, "agents.model=openai:bridge"])

    def teach(self, laboratory: Laboratory, patch: pytest.MonkeyPatch) -> None:
        """Have the laboratory measure what was measured."""
        ids = {digest: name for name, digest in self.candidates.items()}
        patch.setattr(laboratories, "STEPS", len(next(iter(next(iter(self.trajectories.values())).values()))))

        def step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
            return self.trajectories[ids[digest]][seed][step]

        def counts(owner: str, job: Any, seed: int, spec: Any) -> list[int]:
            known = self.correct.get(owner) or next(
                one for name, one in self.correct.items() if name not in ids.values()
            )
            return known[seed][spec.name]

        laboratory.step = step  # type: ignore[method-assign]
        laboratory.counts = counts


def read_record() -> BridgeRun:
    """The committed record."""
    lines = [json.loads(line) for line in lzma.decompress(RECORD.read_bytes()).decode().splitlines()]
    head, rest = lines[0], lines[1:]
    measured = [one for one in rest if "steps" in one]
    trajectories: dict[str, dict[int, list[dict[str, float]]]] = {}
    correct: dict[str, dict[int, dict[str, list[int]]]] = {}
    for one in measured:
        if one["steps"]:
            trajectories.setdefault(one["candidate"], {})[one["seed"]] = one["steps"]
        correct.setdefault(one["candidate"], {})[one["seed"]] = one["correct"]
    questions = [Recorded(**one) for one in rest if "form" in one]
    return BridgeRun(head["directive"], questions, head["candidates"], trajectories, correct)


def record_lines(archive: Archive, directive: str) -> Iterable[dict[str, Any]]:
    """The record of a finished run: candidates, measurements, then the questions in the order of their places."""
    rows = {row["candidate_id"]: row for row in archive.rows("candidates")}
    own = {name: row["source_digest"] for name, row in rows.items() if row["arm"] == "evolution"}
    yield {"directive": directive, "candidates": own}
    evaluations = archive.rows("evaluations")
    for name, seed in sorted({(row["candidate_id"], row["seed"]) for row in evaluations}):
        steps = archive.rows("trajectories", candidate_id=name, seed=seed)
        yield {
            "candidate": name,
            "seed": seed,
            "steps": [{key: row[key] for key in STEP} for row in sorted(steps, key=lambda row: row["step"])],
            "correct": {
                row["benchmark"]: list(row["correct"])
                for row in evaluations
                if (row["candidate_id"], row["seed"]) == (name, seed)
            },
        }
    calls = [row for row in archive.rows("calls") if row["outcome"] == "ok"]
    for row in sorted(calls, key=lambda row: (row["generation"], row["scope"], row["created_at"])):
        said, told = (json.loads(row[key]) for key in ("request", "answer"))
        messages = dict(said["messages"])
        yield {
            "form": FORMS[row["role"]].__name__,
            "scope": row["scope"],
            "system": messages["system"],
            "user": messages["human"],
            "answer": json.loads(told["arguments"] or told["text"]),
        }


def write_record(archive: Archive, directive: str) -> None:
    """Write the committed record anew."""
    text = "".join(json.dumps(line) + "\n" for line in record_lines(archive, directive))
    RECORD.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    """Run, and write the page; or write the record of the run that is named."""
    if len(sys.argv) > 1:
        run = RunDirectory.read(Path(sys.argv[1]))
        write_record(run.archive, run.current_preset.agents.steering.directive)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        LoopbackServer(good_answers()) as server,
        Laboratory() as laboratory,
    ):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(recorded_page(Path(folder) / "run", server, laboratory))


if __name__ == "__main__":
    main()
