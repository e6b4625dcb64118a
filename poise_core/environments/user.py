"""A user's environment, loaded from the file that a preset names.

The file is trusted, because the user who starts the run has written it. It runs in the confined processes of training and
evaluation, which can read no other file beside it, so problems that are not generated must stand in the file itself.
"""

from __future__ import annotations

import importlib.util
import sys
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
    name = f"poise_environment_{digest}"
    spec = importlib.util.spec_from_file_location(name, file.path.absolute())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
        environment = getattr(module, file.class_name)()
    except Exception as error:
        sys.modules.pop(name, None)
        raise ValueError(f"{file.path}: {file.class_name} cannot be made: {type(error).__name__}: {error}") from error
    missing = [method for method in _METHODS if not callable(getattr(environment, method, None))]
    if missing:
        raise ValueError(
            f"{file.path}: {file.class_name} lacks {', '.join(missing)}; see poise_core.environments.base.Environment"
        )
    return cast(Environment, environment)
