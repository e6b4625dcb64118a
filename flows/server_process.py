"""A private Prefect server; ends when its standard input does, that is when the process that started it ends."""

from __future__ import annotations

import os
import sys
import threading


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
    server.run()
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main(int(sys.argv[1]))
