"""Packages that tests need and the project's environment must not have: made once into folders of the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def cache_folder() -> Path:
    """Where tests keep what is made once from packages of the index."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "poise-tests"


def kept_packages(name: str, packages: Sequence[str]) -> Path:
    """A folder with these packages and nothing that they need, to be put on a path; the test is skipped where pip cannot get them.

    Parameters
    ----------
    name
        The beginning of the folder's name, with a version.
    packages
        What pip installs, each with its version. Another list or another Python is another folder.
    """
    digest = hashlib.sha256(repr((tuple(packages), sys.version_info[:2])).encode()).hexdigest()[:8]
    folder, work = cache_folder() / f"{name}-{digest}", cache_folder() / f"making-{name}-{os.getpid()}"
    if not folder.is_dir():
        try:
            pip("install", "--no-deps", "--quiet", "--target", str(work), *packages)
            if not folder.exists():  # whole, or absent; another process may have been faster
                work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def pip(*arguments: str) -> None:
    """Run pip; the test is skipped where it cannot get the last package."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, timeout=600)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = next((line for line in reversed(lines) if line.startswith("ERROR")), (lines or ["pip is missing"])[-1])
        pytest.skip(f"needs {arguments[-1]} from the package index, which pip cannot get: {why}")
