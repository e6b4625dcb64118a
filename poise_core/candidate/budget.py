"""The time that one call into candidate code may take."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

CALL_SECONDS = 30.0
"""Wall time of one call in the gate and in training; an honest call takes milliseconds."""


class CallTimedOut(Exception):
    """The candidate took longer than a call may take; the message is a sentence for its author."""


class Expired(BaseException):
    """Raised in the middle of the call; not an Exception, so that nothing between takes it for an error of its own."""


def within_budget(what: str, call: Callable[[], Any], seconds: float | None = None) -> Any:
    """The result of a call that an alarm ends after ``seconds`` (by default ``CALL_SECONDS``).

    Python's own loops and its arithmetic with large integers are interrupted at once, an operator of torch and the
    loop within a built-in function such as ``sum`` when they return. Only a process's main thread has an alarm: on
    another thread, and inside a call that has one already, the call is made without. A timer that ran before goes
    on afterwards.

    Raises:
        CallTimedOut: the time was over.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGALRM) is _expire:
        return call()
    allowed = CALL_SECONDS if seconds is None else seconds
    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, _expire)
    before, interval = signal.setitimer(signal.ITIMER_REAL, allowed)
    try:
        if 0.0 < before < allowed:
            signal.setitimer(signal.ITIMER_REAL, before)
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    except Expired:
        raise CallTimedOut(
            f"{what} takes longer than {allowed:g} seconds; do its work with a few operations on whole tensors"
        ) from None
    finally:
        signal.signal(signal.SIGALRM, handler if handler is not None else signal.SIG_DFL)
        if before:
            remaining = before - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(remaining, 1e-3), interval)


def _expire(*_: object) -> NoReturn:
    raise Expired
