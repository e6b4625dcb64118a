"""Known algorithms as candidate files, one per file: seeds for the search and yardsticks for what it finds.

A file here is data to the rest of the system: it is read by path, checked by the same gate as a generated candidate and
run where candidates run. Importing this package therefore loads none of them, and not torch either.
"""

from __future__ import annotations

from pathlib import Path


def list_algorithms() -> list[str]:
    """Names of the shipped algorithms, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def display_name(name: str) -> str:
    """The name under which a run knows a shipped algorithm: ``DR-GRPO`` for ``dr_grpo``."""
    return name.upper().replace("_", "-")


def algorithm_path(name: str) -> Path:
    """The candidate file of a shipped algorithm.

    Raises:
        ValueError: if there is no such algorithm; the message lists the names.
    """
    names = list_algorithms()
    if name not in names:
        raise ValueError(f"no algorithm {name!r}; the shipped ones are {', '.join(names)}")
    return Path(__file__).parent / f"{name}.py"
