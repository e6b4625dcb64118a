"""Shares of the machines that trainings hold, as slots of a global concurrency limit on the Prefect server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from poise_core.failures import Cancelled, InfrastructureError
from tasks.server_faults import infrastructure_faults

POLL_SECONDS = 3.0
"""How long one request for slots may wait before ``should_stop`` is asked again."""

LEASE_SECONDS = 60.0
"""Slots of a process that was killed are free again after this time; living ones renew their lease."""


@contextmanager
def hold_slots(limit: str | None, count: int, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Wait for slots and hold them for the length of the block.

    Args:
        limit: name of the limit; nothing is held where there is none.
        count: slots.
        should_stop: ends the wait.

    Raises:
        InfrastructureError: there is no such limit, or the server does not answer.
        Cancelled: ``should_stop`` returned true.
    """
    if limit is None:
        yield
        return
    with ExitStack() as held:
        while not _acquired(held, limit, count):
            if should_stop():
                raise Cancelled(f"stopped while waiting for {count} of {limit}")
        yield


def _acquired(held: ExitStack, limit: str, count: int) -> bool:
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    logging.getLogger("prefect._internal.concurrency").addFilter(_no_refusal)
    slots = concurrency(
        limit,
        occupy=count,
        timeout_seconds=POLL_SECONDS,
        lease_duration=LEASE_SECONDS,
        strict=True,
        raise_on_lease_renewal_failure=False,  # a server that is away for a while must not end a training
    )
    try:
        with infrastructure_faults():
            held.enter_context(slots)
    except TimeoutError:
        return False
    except ConcurrencySlotAcquisitionError as error:
        raise InfrastructureError(
            f"no slot of {limit!r}: {error}; make it with 'prefect gcl create {limit} --limit N'"
        ) from error
    return True


def _no_refusal(record: logging.LogRecord) -> bool:
    """Prefect logs an error for each request that was not granted in time; it raises as well, so the line says nothing more."""
    return not (isinstance(record.args, tuple) and "ConcurrencySlotAcquisitionWithLeaseService" in record.args)
