"""Writes the exchanges at the end of docs/agents.md: one per role, of a run against the loopback server.

``python tests/agents/write_exchanges.py``
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "evolution")]

from laboratory import Laboratory, evolve, open_evolution  # noqa: E402
from llm_server import LoopbackServer  # noqa: E402
from script import good_answers  # noqa: E402
from test_llm_evolution import preset_for  # noqa: E402

MARK = "<!-- exchanges: python tests/agents/write_exchanges.py -->\n"
SHOWN = 12  # lines of a data block that are printed
ROLES = ("proposer", "screener", "implementer", "reflector")


def shortened(text: str) -> str:
    """Data blocks cut to their first lines, for the page; what was sent was whole."""

    def cut(block: re.Match[str]) -> str:
        lines = block.group(2).splitlines()
        more = [f"[... {len(lines) - SHOWN} more lines]"] if len(lines) > SHOWN + 2 else []
        return "\n".join([block.group(1), *(lines[:SHOWN] if more else lines), *more, "</data>"])

    return re.sub(r'(<data name="[^"]*">)\n(.*?)\n</data>', cut, text, flags=re.DOTALL)


def page(rows: list[dict[str, Any]]) -> str:
    parts = []
    for role in ROLES:
        row = next(row for row in rows if row["role"] == role and (row["generation"] == 1))
        request, answer = json.loads(row["request"]), json.loads(row["answer"])
        form = json.loads(answer["arguments"] or answer["text"])
        title = (
            f"### {role}\n\nCall `{row['call_id']}`, prompt `{row['prompt']}`, {row['input_tokens']} tokens in, "
            f"{row['output_tokens']} out."
        )
        told = "\n".join(f"--- {who}\n{shortened(text)}" for who, text in request["messages"])
        source = form.pop("source", "")
        shown = json.dumps(form, indent=1)
        code = f"\n\nIts `source`:\n\n```python\n{source}```" if source else ""
        parts.append(f"{title}\n\n````text\n{told}\n````\n\n```json\n{shown}\n```{code}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run, and rewrite the page's end."""
    patch = pytest.MonkeyPatch()
    Laboratory().install(patch)
    with tempfile.TemporaryDirectory() as folder, LoopbackServer(good_answers()) as server:
        evolution = open_evolution(Path(folder) / "run", preset_for(server))
        evolve(evolution)
        text = page(evolution.run.archive.rows("calls"))
    patch.undo()
    path = HERE.parents[1] / "docs" / "agents.md"
    path.write_text(path.read_text().split(MARK)[0] + MARK + "\n" + text)


if __name__ == "__main__":
    main()
