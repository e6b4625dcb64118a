from __future__ import annotations

from pathlib import Path

from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.document import document

PAGE = Path(__file__).parents[2] / "docs" / "mechanisms.md"


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == document() + "\n", "run: python -m poise_core.mechanisms.document > docs/mechanisms.md"


def test_every_choice_has_a_row_and_no_row_breaks_the_table() -> None:
    text = document()
    for slot in SLOTS.values():
        for choice in slot.choices:
            assert f"| `{choice.name}` | {choice.tag} |" in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") in (4, 7), line
