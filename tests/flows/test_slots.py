"""Slots of a global concurrency limit: held by one at a time, given back, and not waited for in vain."""

import logging
import threading
import time

import pytest

from poise_core.failures import Cancelled, InfrastructureError
from tasks.slots import hold_slots

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("prefect")]


@pytest.fixture
def limit(prefect_server: None) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    name = f"gpu-{time.time_ns()}"
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=2))
    return name


def never() -> bool:
    return False


def test_nothing_is_asked_without_a_limit() -> None:
    with hold_slots(None, 8, never):
        pass


@pytest.mark.exhaustive
def test_who_comes_second_waits(limit: str) -> None:
    inside, held = [], threading.Event()

    def second() -> None:
        with hold_slots(limit, 1, never):
            inside.append("second")

    with hold_slots(limit, 2, never):
        waiting = threading.Thread(target=second)
        waiting.start()
        held.wait(5)  # seconds in which it would have got in
        inside.append("first")
    waiting.join(120)
    assert inside == ["first", "second"]


def test_a_stop_ends_the_wait_and_a_missing_limit_is_named(limit: str, caplog: pytest.LogCaptureFixture) -> None:
    prefect_log = logging.getLogger("prefect._internal.concurrency")
    prefect_log.addHandler(caplog.handler)
    with (
        hold_slots(limit, 2, never),
        pytest.raises(Cancelled, match=f"waiting for 1 of {limit}"),
        hold_slots(limit, 1, lambda: True),
    ):
        pass
    with (
        pytest.raises(InfrastructureError, match="prefect gcl create no-such-limit"),
        hold_slots("no-such-limit", 1, never),
    ):
        pass
    prefect_log.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
