"""A user's environment, loaded from the file that a preset names.

The file is trusted, because the user who starts the run has written it. It runs in the confined processes of training and
evaluation, which can read no other file beside it, so problems that are not generated must stand in the file itself.
"""

from __future__ import annotations

from typing import cast

from poise_core.config.environment_file import EnvironmentFile
from poise_core.environments.base import Environment

_METHODS = ("problems", "pool_size", "verify")


def load_environment(file: EnvironmentFile) -> Environment:
    """Import the file and make an environment of its class, which is called without arguments.

    Raises:
        ValueError: the file is missing or fails, has changed since the preset was loaded, or the class is no environment.
    """
    try:
        digest = file.present_digest()
    except OSError as error:
        raise ValueError(f"{file.path}: the environment cannot be read: {error.strerror or error}") from error
    if file.digest and digest != file.digest:
        raise ValueError(
            f"{file.path} has changed since this run began (digest {digest}, the run has {file.digest}); other problems make "
            "another protocol: restore the file, or begin a new run"
        )
    environment = file.instance(f"poise_environment_{digest}")
    missing = [method for method in _METHODS if not callable(getattr(environment, method, None))]
    if missing:
        raise ValueError(
            f"{file.path}: {file.class_name} lacks {', '.join(missing)}; see poise_core.environments.base.Environment"
        )
    return cast(Environment, environment)
