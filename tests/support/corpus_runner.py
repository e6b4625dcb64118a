"""Running the hostile corpus in the sandbox, with and without the language check, and looking for traces outside.

``python tests/support/corpus_runner.py`` prints the table of docs/verification.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from hostile_corpus import ADMITTED, CORPUS, OUT_OF_MEMORY, REJECTED, SECRET_VARIABLE, TIMED_OUT, Hostile

from poise_core.failures import FailureKind, InfrastructureError
from poise_core.verification import verify
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.report import VerificationReport

OUTCOMES = {
    FailureKind.REJECTED: REJECTED,
    FailureKind.DUPLICATE: REJECTED,
    FailureKind.TIMED_OUT: TIMED_OUT,
    FailureKind.OUT_OF_MEMORY: OUT_OF_MEMORY,
    None: ADMITTED,
}


@dataclass
class Surroundings:
    """What a hostile candidate would like to reach, and the traces that it would leave."""

    folder: Path
    secret: str = field(default_factory=lambda: secrets.token_hex(12))
    mark: int = field(default_factory=lambda: 86_400_000 + secrets.randbelow(10**6))
    port: int = 0
    connections: list[object] = field(default_factory=list)

    def fill_in(self, source: str) -> str:
        """The source with its placeholders replaced."""
        replacements = {
            "@READ@": str(self.folder / "secret-answers.json"),
            "@WRITE@": str(self.folder / "written"),
            "@PORT@": str(self.port),
            "@MARK@": str(self.mark),
        }
        for old, new in replacements.items():
            source = source.replace(old, new)
        return source

    def traces(self) -> list[str]:
        """What a candidate managed to do outside."""
        found = []
        if (self.folder / "written").exists():
            found.append("a file was written")
        if not (self.folder / "secret-answers.json").exists():
            found.append("a file was deleted")
        if self.connections:
            found.append("a connection was made")
        found.extend(
            f"process {process.pid} is still there"
            for process in psutil.process_iter(["cmdline"])
            if str(self.mark) in " ".join(process.info["cmdline"] or [])
        )
        return found


@contextlib.contextmanager
def surroundings() -> Iterator[Surroundings]:
    """A secret file, a secret variable and a listening port."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        around = Surroundings(Path(folder), port=server.getsockname()[1])
        (around.folder / "secret-answers.json").write_text(around.secret)
        before = os.environ.get(SECRET_VARIABLE)
        os.environ[SECRET_VARIABLE] = around.secret

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    around.connections.append(connection)

        threading.Thread(target=listen, daemon=True).start()
        try:
            yield around
        finally:
            if before is None:
                del os.environ[SECRET_VARIABLE]
            else:
                os.environ[SECRET_VARIABLE] = before


def refused_by_language(hostile: Hostile) -> str:
    """The language check's message, or "" where it lets the candidate pass."""
    try:
        check_language(hostile.source)
    except LanguageError as error:
        return str(error)
    return ""


def run_all(corpus: Sequence[Hostile], around: Surroundings, *, static: bool) -> list[VerificationReport]:
    """One report per candidate from the real gate, two side by side; what needs the machine for itself comes after."""
    with ThreadPoolExecutor(2) as pool:
        together = {
            hostile.label: pool.submit(run_alone, hostile, around, static=static, seconds=_patience(hostile))
            for hostile in corpus
            if not hostile.alone
        }
    return [
        run_alone(hostile, around, static=static) if hostile.alone else together[hostile.label].result()
        for hostile in corpus
    ]


def _patience(hostile: Hostile) -> float:
    """Seconds: a machine that is busy must not look like a candidate that takes too long."""
    return 8 if TIMED_OUT in hostile.dynamic else 60


def run_alone(hostile: Hostile, around: Surroundings, *, static: bool, seconds: float = 20) -> VerificationReport:
    """The report of the real gate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{hostile.name}.py"
        path.write_text(around.fill_in(hostile.source), encoding="utf-8")
        for _ in range(2):  # a machine that is too busy is nobody's fault
            with contextlib.suppress(InfrastructureError):
                return verify.verify_file(path, timeout_seconds=seconds, static=static)
        return verify.verify_file(path, timeout_seconds=3 * seconds, static=static)


def outcome(report: VerificationReport) -> str:
    """The report's outcome in the corpus's words."""
    return OUTCOMES[report.failure]


def main() -> None:
    """Print what became of the corpus."""
    with surroundings() as around:
        started = time.monotonic()
        refused = [hostile for hostile in CORPUS if refused_by_language(hostile)]
        static_seconds = time.monotonic() - started
        passed = [hostile for hostile in CORPUS if hostile not in refused]
        later = run_all(passed, around, static=True)
        started = time.monotonic()
        bare = run_all(CORPUS, around, static=False)
        bare_seconds = time.monotonic() - started
        traces = around.traces()
        loot = [h.label for h, r in zip(CORPUS, bare, strict=True) if around.secret in r.to_json()]
    families = sorted({hostile.family for hostile in CORPUS}, key=lambda name: (name == "careless", name))
    print("| family | candidates | refused by the language check | caught by a later check or limit | admitted |")
    print("|---|---|---|---|---|")
    kinds = {hostile.label: outcome(report) for hostile, report in zip(passed, later, strict=True)}
    for family in [*families, "all"]:
        members = [hostile for hostile in CORPUS if family in (hostile.family, "all")]
        static = sum(hostile in refused for hostile in members)
        admitted = sum(kinds.get(hostile.label) == ADMITTED for hostile in members)
        print(f"| {family} | {len(members)} | {static} | {len(members) - static - admitted} | {admitted} |")
    print(f"\nlanguage check: {1000 * static_seconds / len(CORPUS):.1f} ms per candidate")
    print(f"without the language check: {dict(Counter(outcome(report) for report in bare))}, {bare_seconds:.0f} s")
    print(f"traces outside: {traces or 'none'}; secrets in reports: {loot or 'none'}")
    for hostile, report in zip(CORPUS, bare, strict=True):
        if outcome(report) not in hostile.dynamic:
            print(f"UNEXPECTED {hostile.label}: {outcome(report)}: {report.message}")
    for hostile, report in zip(passed, later, strict=True):
        if outcome(report) != hostile.static:
            print(f"UNEXPECTED with the language check {hostile.label}: {outcome(report)}: {report.message}")


if __name__ == "__main__":
    main()
