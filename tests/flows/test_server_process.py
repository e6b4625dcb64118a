"""The database of a private Prefect server: its tables are made once for all runs, and copied."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import server_process

ROOT = Path(__file__).parents[2]

GIVE = """
import os
from pathlib import Path
from flows import server_process
from prefect.server.database.interface import PrefectDBInterface
made, usual = [], PrefectDBInterface.create_db
async def create_db(self):
    made.append(1)
    await usual(self)
PrefectDBInterface.create_db = create_db
server_process.give_tables(Path(os.environ["PREFECT_HOME"]))
print(len(made))
"""


def give(home: Path, cache: Path) -> int:
    """How often the tables were made by Prefect's migrations for this home."""
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own |= {"PREFECT_HOME": str(home), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", GIVE], cwd=ROOT, env=own, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def content(database: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The definitions of a database, and how many rows its tables have."""
    with closing(sqlite3.connect(database)) as opened:
        parts = opened.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        tables = [name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        return parts, {one: opened.execute(f'SELECT count(*) FROM "{one}"').fetchone()[0] for one in tables}


def test_what_is_no_database_has_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("text")
    sqlite3.connect(tmp_path / "empty.db").close()
    for name in ("nowhere.db", "text.db", "empty.db"):  # relative, as a cache may be
        assert not server_process._has_tables(Path(name))


@pytest.mark.slow
def test_tables_are_made_once_and_copied(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert give(tmp_path / "first", cache) == 1
    assert give(tmp_path / "second", cache) == 0
    first, second = (content(tmp_path / name / "prefect.db") for name in ("first", "second"))
    assert first == second
    assert second[1]["alembic_version"] == 1
    assert second[1]["flow_run"] == second[1]["configuration"] == 0, "nothing of the first run's"
    (template,) = (cache / "poise").iterdir()
    template.write_bytes(template.read_bytes()[:5000])  # damaged
    assert give(tmp_path / "third", cache) == 1
    assert content(template) == content(tmp_path / "third" / "prefect.db"), "mended"
    assert content(template)[1] == first[1]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert give(tmp_path / "home", tmp_path / "cache") == 1
    assert content(tmp_path / "home" / "prefect.db")[1]["alembic_version"] == 1
