"""The admission gate, which checks candidate code in a confined process before it trains.

The names below are loaded when they are first used, because the launcher of every confined process imports this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise_core.verification.report import CheckResult, Conditions, VerificationReport
    from poise_core.verification.verify import verify_file

__all__ = ["CheckResult", "Conditions", "VerificationReport", "verify_file"]

_MODULES = {
    "CheckResult": "report",
    "Conditions": "report",
    "VerificationReport": "report",
    "verify_file": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
