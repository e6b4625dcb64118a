"""A simulated kill of the process after its last write, within the test's own process."""

import os
from collections.abc import Callable
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def dies_after_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every durable write of a run ends in a link or a rename; the first of them is the last thing that is done."""

    def last(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_and_die(source: Any, target: Any, **options: Any) -> None:
            write(source, target, **options)
            raise Killed(str(target))

        return write_and_die

    monkeypatch.setattr(os, "link", last(os.link))
    monkeypatch.setattr(os, "replace", last(os.replace))
