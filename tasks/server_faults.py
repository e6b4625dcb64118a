"""A Prefect server that is away for a while is a fault of the machine: worth a retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from poise_core.escaping import without_credentials
from poise_core.failures import InfrastructureError


@contextmanager
def infrastructure_faults() -> Iterator[None]:
    """Raise what requests to the server fail of as faults of the machine.

    Raises:
        InfrastructureError: the server does not answer, or not with what was asked for.
    """
    import httpx
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    try:
        yield
    except (httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound) as error:
        said = without_credentials(f"{type(error).__name__}: {error}")
        raise InfrastructureError(f"the Prefect server: {said}") from error
