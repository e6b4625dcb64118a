"""The GPUs of a machine, handed out so that no two candidates share one, whatever commands they belong to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from poise_core.failures import Cancelled, InfrastructureError

GPU_POLL_SECONDS = 0.2


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    numbers = (re.fullmatch(r"nvidia(\d+)", name) for name in os.listdir("/dev"))
    return sorted((found[1] for found in numbers if found), key=int)


@contextmanager
def held_gpus(count: int | None, should_stop: Callable[[], bool] | None = None) -> Iterator[dict[str, str]]:
    """Have so many GPUs for the length of the block, which no other block of this user has, in this or another process.

    Waits until they are free; meanwhile it holds none. Locks of files end with the process, however it ends.

    Yields:
        The variable that shows a process these GPUs alone; none where ``count`` is None.

    Raises:
        Cancelled: ``should_stop`` returned True.
        InfrastructureError: the machine has fewer.
    """
    if count is None:
        yield {}
        return
    gpus = visible_gpus()
    if len(gpus) < count:
        raise InfrastructureError(f"resources.gpus_per_candidate is {count} and this process may use {len(gpus)} GPUs")
    folder = Path(tempfile.gettempdir()) / f"poise-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        with contextlib.ExitStack() as held:
            own: list[str] = []
            for gpu in gpus:
                stream = (folder / re.sub(r"[^\w-]", "_", gpu)).open("ab")
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    stream.close()
                    continue
                held.enter_context(stream)
                own.append(gpu)
                if len(own) == count:
                    yield {"CUDA_VISIBLE_DEVICES": ",".join(own)}
                    return
        if should_stop is not None and should_stop():
            raise Cancelled("stopped while GPUs are awaited")
        time.sleep(GPU_POLL_SECONDS)
