"""Writes docs/agents/exchanges.md: whole exchanges, one per role and one answer to a failed training, of a run against the
loopback server.

``python tests/support/write_exchanges.py``
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from laboratory import Laboratory, evolve, open_evolution
from llm_server import LoopbackServer
from script import diverging_at_first, good_answers, preset_for, softened_when_told

PAGE = Path(__file__).parents[2] / "docs" / "agents" / "exchanges.md"

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


def main() -> None:
    """Run, and write the page."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LoopbackServer(good_answers()) as server,
        Laboratory() as laboratory,
    ):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(recorded_page(Path(folder) / "run", server, laboratory))


if __name__ == "__main__":
    main()
