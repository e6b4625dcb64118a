"""The evolution that this process runs, found by tasks through the path of its run directory.

Tasks are handed paths and names only, never the object: their parameters are stored and shown by Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poise_core.archive import Archive
from poise_core.config import Preset, load_preset
from poise_core.evolution import Event, Evolution, Observer
from poise_core.evolution.events import ignore
from poise_core.run_directory import RunDirectory, RunDirectoryError
from tasks.run_log import log_event

_open: dict[Path, Evolution] = {}


@contextmanager
def evolution_session(
    run_dir: str | Path,
    preset: Preset | str | None = None,
    *,
    observer: Observer = ignore,
    replay: Archive | None = None,
) -> Iterator[Evolution]:
    """The run's evolution for the length of the block; within another such block of this process, the same one.

    Whatever exception leaves the block first asks all running stages to end, so that nothing waits for them in vain.

    Args:
        run_dir: made where it is missing.
        preset: as loaded, or its name; not needed where the session is open already.
        observer: told what happens.
        replay: the archive of a recorded run to take all language models' answers from.

    Raises:
        RunDirectoryError: the directory cannot be used for this preset, or is in use.
        PresetError: the preset cannot be used.
    """
    path = Path(run_dir).absolute()
    if path in _open:
        with _stopping(_open[path]) as evolution:
            yield evolution
        return
    if preset is None:
        preset = RunDirectory.read(path).preset
    with RunDirectory.open(path, load_preset(preset) if isinstance(preset, str) else preset) as run:

        def tell(event: Event) -> None:
            observer(event)
            log_event(event)

        _open[path] = Evolution(run, observer=tell, replay=replay)
        try:
            with _stopping(_open[path]) as evolution:
                yield evolution
        finally:
            del _open[path]


def current_evolution(run_dir: str | Path) -> Evolution:
    """The evolution whose session is open.

    Raises:
        RunDirectoryError: none is open for this directory.
    """
    path = Path(run_dir).absolute()
    if path not in _open:
        raise RunDirectoryError(f"{path}: no evolution of this run is open in this process")
    return _open[path]


@contextmanager
def _stopping(evolution: Evolution) -> Iterator[Evolution]:
    try:
        yield evolution
    except BaseException:
        evolution.stop()
        raise


def retry_limit() -> int:
    """How often a stage may be retried after a fault of the machine, by the presets of the open sessions."""
    return max((evolution.preset.resources.infrastructure_retries for evolution in _open.values()), default=0)


def parallel_candidates() -> int:
    """How many candidates may be worked on side by side, by the presets of the open sessions."""
    return max((evolution.preset.resources.parallel_candidates for evolution in _open.values()), default=1)
