"""Prompts: versioned Markdown files with a system and a user part, filled with blocks of delimited data.

A file begins with ``version: N`` and has the headings ``# system`` and ``# user``; ``$name`` is filled in. A file of the same
name in ``agents.prompts_folder`` replaces a shipped one. Every row that was made with a file holds the hash of the file.

Whatever comes from logs, from candidates or from a model is data: ``data_block`` limits its length, marks where it begins
and ends with a tag that it cannot close, and the system part says that nothing between such tags is an instruction.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from poise_core.agents.llm.secrets import redact
from poise_core.escaping import prompt_data

SHIPPED = ("proposer", "screener", "implementer", "reflector")

CHARACTERS_PER_TOKEN = 3.0
"""For estimates before a call: low for English and for code, so that estimates err upwards."""


class PromptError(ValueError):
    """A prompt file cannot be used; one line that names it."""


@dataclass(frozen=True)
class Prompt:
    """One prompt file."""

    name: str
    version: str
    system: Template
    user: Template
    digest: str  # 12 hex digits of SHA-256 of the file

    @property
    def label(self) -> str:
        """For rows: ``proposer.md v1 @0123456789ab``."""
        return f"{self.name}.md v{self.version} @{self.digest}"

    def fill(self, **values: str) -> tuple[str, str]:
        """System and user text; what is filled in is not read for placeholders again.

        Raises:
            PromptError: the file has a placeholder that cannot be filled.
        """
        try:
            return redact(self.system.substitute(values)), redact(self.user.substitute(values))
        except (KeyError, ValueError) as error:
            known = ", ".join(sorted(values))
            raise PromptError(f"{self.name}.md: placeholder {error} cannot be filled; there are {known}") from error


def load_prompt(name: str, folder: str | None = None) -> Prompt:
    """A prompt by the name of its role; the user's file where the folder has one.

    Raises:
        PromptError: the folder is missing, or the file is not of the form described above.
    """
    if folder is not None and not Path(folder).is_dir():
        raise PromptError(f"agents.prompts_folder: {folder} is not a folder")
    own = Path(folder) / f"{name}.md" if folder is not None else None
    if own is not None and own.is_file():
        try:
            text, where = own.read_text(encoding="utf-8-sig"), str(own)
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{own}: cannot be read as UTF-8 text: {error}") from error
    else:
        source = resources.files("poise_core") / "agents" / "llm" / "templates" / f"{name}.md"
        text, where = source.read_text(encoding="utf-8"), f"{name}.md"
    found = re.fullmatch(r"version: (\S+)\n+# system\n(.*?)\n# user\n(.*)", text, re.DOTALL)
    if found is None:
        raise PromptError(f"{where}: expected 'version: N', then the headings '# system' and '# user'")
    version, system, user = found.groups()
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Prompt(name, version, Template(system.strip()), Template(user.strip()), digest)


def estimate_tokens(text: str) -> int:
    """Tokens of a text, estimated upwards (no tokenizer fits every model)."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def data_block(name: str, text: str, max_characters: int = 20_000) -> str:
    """A text as data: cut to length, without hidden characters, between tags that it cannot close itself."""
    if len(text) > max_characters:
        text = f"{text[:max_characters]}\n[cut: {len(text) - max_characters} more characters]"
    return f'<data name="{name}">\n{prompt_data(text).strip()}\n</data>'
