"""A private Prefect server; ends when its standard input does, that is when the process that started it ends."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

from poise_core.files import write_atomically
from poise_core.surroundings import cache_folder


def main(port: int) -> None:
    """Serve the API on a port of the loopback interface."""
    os.environ.update(PREFECT__SERVER_EPHEMERAL="1", PREFECT__SERVER_FINAL="1", PREFECT_UI_ENABLED="0")
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, port=port, log_level="error", lifespan="on"
    )
    server = uvicorn.Server(config)

    def follow_parent() -> None:
        while os.read(0, 4096):  # not through a buffer, whose lock a thread must not hold at the end of the process
            pass
        server.should_exit = True
        threading.Timer(5.0, os._exit, [1]).start()  # open connections are not waited for longer than this

    threading.Thread(target=follow_parent, daemon=True).start()
    give_tables(Path(os.environ["PREFECT_HOME"]))
    server.run()
    if not server.started:
        sys.exit(3)


def give_tables(home: Path) -> None:
    """Give a home without a database one with Prefect's tables.

    Prefect makes them by all migrations that it has ever had, which takes six seconds for every new run. So an empty database is
    kept in the user's cache, for each version of Prefect, and copied. Where that cannot be the server makes its tables itself.

    Args:
        home: PREFECT_HOME of this process, without settings of another database.
    """
    database = home / "prefect.db"
    if database.exists():
        return
    import prefect

    template = cache_folder() / f"prefect-{prefect.__version__}.db"
    if _has_tables(template):
        with suppress(OSError, sqlite3.Error):
            _copy(template, database)
        return
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    with suppress(OSError, sqlite3.Error):
        template.parent.mkdir(parents=True, exist_ok=True)
        _copy(database, template)


def _has_tables(template: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{template.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            sound = opened.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            return sound and len(opened.execute("SELECT * FROM alembic_version").fetchall()) == 1
    except sqlite3.Error:
        return False


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all, with what is still in the source's write-ahead log."""
    with closing(sqlite3.connect(source)) as opened:
        write_atomically(target, opened.serialize())


if __name__ == "__main__":
    main(int(sys.argv[1]))
