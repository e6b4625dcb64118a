"""Keeping keys out of everything that is sent, stored, logged or raised."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(
    r"(?:^|_)(?:API|PG)?(?:KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASS|PWD|CREDENTIALS?|AUTH)(?:$|_)", re.IGNORECASE
)
_SHORTEST = 8  # shorter values occur in ordinary text

MARK = "[secret]"

# Every expression begins where its own characters cannot stand before it, and repeats without limit only what no later part
# of it takes, so that each reads any text once.
_SHAPES: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        # private keys in PEM and of PGP; one without an end is taken to the end of the text
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        # OpenAI, Anthropic, OpenRouter, Stripe, also shortened with stars: a word and something with a digit or a star in it
        r"(?<![A-Za-z0-9_\-])(?:sk|pk|rk)[-_](?=[A-Za-z_\-]{0,80}[0-9*])[A-Za-z0-9_\-*]{8,}",
        # GitHub, GitLab, Hugging Face, npm, PyPI, Docker, Groq, Perplexity, NVIDIA, xAI, Replicate, DigitalOcean, Databricks
        r"(?<![A-Za-z0-9_])(?:gh[pousr]|github_pat|hf|npm|gsk|r8|dop_v1|dckr_pat)_[A-Za-z0-9_\-]{12,}",
        r"(?<![A-Za-z0-9_\-])(?:glpat|pypi|pplx|nvapi|xai)-[A-Za-z0-9_\-]{16,}",
        r"(?<![A-Za-z0-9])dapi[0-9a-f]{32}(?![A-Za-z0-9])",
        # AWS: the id of a key, whose secret has no shape of its own and is found by its name below
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|AIPA|ANPA|ANVA)[A-Z0-9]{16}(?![A-Za-z0-9])",
        # Google: keys, access tokens, secrets of clients
        r"(?<![A-Za-z0-9_\-])AIza[A-Za-z0-9_\-]{20,}",
        r"(?<![A-Za-z0-9_\-])(?:ya29\.|GOCSPX-)[A-Za-z0-9_\-]{16,}",
        # Slack: tokens and hooks
        r"(?<![A-Za-z0-9_\-])(?:xox[a-z]|xapp)-[A-Za-z0-9\-]{8,}",
        r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{8,}",
        # SendGrid; JSON web tokens, which begin with an object in base64
        r"(?<![A-Za-z0-9_\-])SG\.[A-Za-z0-9_\-]{16,64}\.[A-Za-z0-9_\-]{16,64}",
        r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{6,}\.[A-Za-z0-9_\-]{6,}(?:\.[A-Za-z0-9_\-]*)?",
        # headers
        r"(?<=[Bb]earer )[A-Za-z0-9._~+/=\-]{8,}",
        r"(?i:(?<=authorization: basic )|(?<=authorization: token ))[A-Za-z0-9._~+/=\-]{4,}",
        # user and password, or a long token alone, before the host of a URL
        r"(?<=://)[^/\s:@]{0,200}:[^/\s@]{1,400}(?=@)",
        r"(?<=://)[A-Za-z0-9_\-]{16,200}(?=@)",
    )
)
# what stands behind a name: a header's or a variable's, a key of JSON or YAML, an argument of a URL
_SECRET_WORD = (
    r"(?:PASSWORD|PASSWD|PASSPHRASE|PWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|CREDENTIALS?)"
)
_NAMED: tuple[re.Pattern[str], ...] = (
    # PGPASSWORD=x, MYSQL_PWD: "x"; numbers and names of other variables are no secrets
    re.compile(
        rf"((?<![A-Za-z0-9_])(?:[A-Z][A-Z0-9_]{{0,60}}?)??{_SECRET_WORD}[\"']?(?:=|:[ \t]?|[ \t]=[ \t](?=[\"']))[\"']?)"
        r"(?![\d.]+(?:[\s,;)]|$))(?!\$)([^\s\"',;&<>\[\]()]{3,})"
    ),
    # aws_secret_access_key = x, "api_key": "x", password=x
    re.compile(
        r"((?<![A-Za-z0-9_])(?:aws_secret_access_key|aws_session_token|secretaccesskey|sessiontoken|accountkey|api[_\-]?key|"
        r"x-api-key|x-goog-api-key|access[_\-]?token|refresh[_\-]?token|auth[_\-]?token|id[_\-]?token|client[_\-]?secret|"
        r"secret[_\-]?key|private[_\-]?key|passwd|password|passphrase|pwd)[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?)"
        r"(?=[A-Za-z_./+~\-=]{0,80}[0-9])([A-Za-z0-9_./+~\-=!@#$%^*]{6,})",
        re.IGNORECASE,
    ),
    re.compile(r"((?<![A-Za-z0-9_])(?:password|passwd|pwd)=)(?![A-Za-z_]+[,)])([^\s\"',;&()]{3,})", re.IGNORECASE),
    # ?token=x&signature=x
    re.compile(
        r"([?&;](?:access_token|refresh_token|id_token|auth_token|token|api_?key|key|auth|sig|signature|secret|client_secret|"
        r"password|passwd|pwd|code|x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature)=)([^\s\"'&#<>]{4,})",
        re.IGNORECASE,
    ),
)


def unwrapped(value: str) -> str:
    """The key in the value of a variable, without the line end or the quotes of the file that it came from; so keys are sent."""
    key = value.strip().strip("\ufeff").strip()
    if len(key) > 1 and key[0] == key[-1] and key[0] in "\"'":
        key = key[1:-1].strip()
    return key


def _is_path(value: str) -> bool:
    """Whether a value is no secret but leads to one: to a file of credentials, to an agent's socket. Keys may begin with / too."""
    return value.startswith("/") and os.path.lexists(value)


def redact(text: str, *more: str) -> str:
    """The text with every secret of the environment, and whatever looks like a key, replaced by a mark.

    Digests, identifiers and ordinary code do not look like one. The time is linear in the length.

    Args:
        text: anything on its way out of the process.
        *more: further values to hide, for example a key that was read from elsewhere.
    """
    held = [value for name, value in os.environ.items() if _NAMES.search(name)]
    found = {*held, *map(unwrapped, held), *more}
    for value in sorted(found, key=len, reverse=True):
        if len(value) >= _SHORTEST and not _is_path(value):
            text = text.replace(value, MARK)
    for shape in _SHAPES:
        text = shape.sub(MARK, text)
    for named in _NAMED:
        text = named.sub(rf"\g<1>{MARK}", text)
    return text
