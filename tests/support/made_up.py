"""An evolution as ``poise evolve`` runs it, with a real flow and a real server, whose trainings are made up.

    python made_up.py FOLDER SECONDS [PATIENCE]

``SECONDS`` is how long a training takes, ``PATIENCE`` how long a server is waited for. Prints what the command would: its
status lines and, in the end, ``done``, or one line of a fault, with its exit status.
"""

import sys
import time
from pathlib import Path

import pytest
from laboratory import Laboratory, make_preset


def main(folder: str, seconds: float, patience: float = 600.0) -> int:
    import flows.server
    from flows.local import evolve_here
    from poise_core.failures import InfrastructureError
    from poise_core.tracking.sync import SyncReport, Tracker

    def say(text: str) -> None:
        print(text, flush=True)

    def before_training(name: str) -> None:
        say(f"training {name}")
        time.sleep(seconds)

    with pytest.MonkeyPatch.context() as patch, Laboratory(before_training=before_training):
        patch.setattr(Tracker, "sync_archive", lambda *_, **__: SyncReport())
        patch.setattr(flows.server, "START_SECONDS", patience)
        try:
            evolve_here(make_preset(generations=1), Path(folder), observer=lambda event: None, say=say)
        except InfrastructureError as error:
            say(f"fault: {str(error).splitlines()[0]}")
            return 3
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
