"""Importing the large libraries faster, and leaving a process without their slow clean-up.

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
    """Make the named packages appear not installed inside the block, unless they have been imported already.

    This skips optional imports that take long and are not used here. No other thread may import these packages meanwhile.
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
    """Import DeepSpeed without its log lines, and without MLflow, which takes longer than the rest of the import."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with skipped_imports("mlflow"):
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # its shared-memory all-reduce for CPUs needs a compiler at run time, which may be absent; gloo needs none
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def load_transformers() -> None:
    """Import the libraries that load a policy and its tokenizer, so that processes forked from this one have them."""
    with skipped_imports("scipy"):  # transformers imports it for a loss of object detection
        import transformers.modeling_utils
        import transformers.models.auto.tokenization_auto
        import transformers.models.qwen2.modeling_qwen2
        import transformers.tokenization_utils_fast  # noqa: F401
        from transformers import conversion_mapping

    # it compiles a thousand patterns at its first call, which would otherwise be made for the first policy
    conversion_mapping.get_checkpoint_conversion_mapping("qwen2")


def load_libraries() -> None:
    """Import the libraries of a training, so that processes forked from this one have them."""
    quiet_deepspeed()
    load_transformers()


def leave(status: int) -> NoReturn:
    """End the process at once, because the regular end of an interpreter with these libraries takes over a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
