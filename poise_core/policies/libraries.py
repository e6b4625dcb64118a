"""What the heavy libraries cost the child processes, and how to pay less of it.

Importing this module is cheap.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def skipped_imports(*names: str) -> Iterator[None]:
    """Inside the block the named packages are as if not installed, unless they have been imported already.

    For optional imports that take long and bring nothing here. No other thread may be importing them meanwhile.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))  # an entry that is None makes the import fail
    try:
        yield
    finally:
        for name in hidden:
            modules.pop(name, None)


def quiet_deepspeed() -> Any:
    """DeepSpeed, imported without its banner of log lines, and without MLflow, which costs more than all the rest of it."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with skipped_imports("mlflow"):
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # its shared-memory all-reduce for CPUs is compiled at run time, by a compiler that may be absent; gloo does without
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def load_transformers() -> None:
    """Import what loading a policy and its tokenizer needs, so that processes forked from this one have it."""
    with skipped_imports("scipy"):  # for a loss of object detection
        import transformers.modeling_utils
        import transformers.models.auto.tokenization_auto
        import transformers.models.qwen2.modeling_qwen2
        import transformers.tokenization_utils_fast  # noqa: F401
        from transformers import conversion_mapping

    # compiles a thousand patterns at its first call, which is that of the first policy loaded
    conversion_mapping.get_checkpoint_conversion_mapping("qwen2")


def load_libraries() -> None:
    """Import what a training needs, so that processes forked from this one have it."""
    quiet_deepspeed()
    load_transformers()


def leave(status: int) -> NoReturn:
    """End the process at once: taking down an interpreter full of libraries takes over a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
