"""Secrets in addresses and in other values of a config: found, so that they can be refused without being shown."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:(?:api|access|secret|private|auth)?(?:key|token)|secret|passw(?:or)?d|passphrase|pwd|auth|credentials?"
    r"|bearer|sig|signature)$",
    re.IGNORECASE,
)
"""The last part of a name: API_KEY and accessToken, not TOKENIZERS_PARALLELISM, KEY_FILE or max_new_tokens."""
# As services hand them out: OpenAI, Hugging Face, GitHub, GitLab, Slack, AWS, Google, and signed JSON.
_SECRET_VALUE = re.compile(
    r"\b(sk-(?:\w+-)*[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abp]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|AIza[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{10,})"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>;|]+")
# A lookahead, so that what is assigned is searched as well: export=API_KEY=...
_ASSIGNMENT = re.compile(r"(?<!\w)(?=(?P<name>[A-Za-z_][\w-]*)(?:=|:\s+)[\"']?(?P<value>[^\s;&|,\"']+))")
_HANDED_OVER = re.compile(
    r"(?<!\w)(?:login(?:\s+--?[\w-]+)*|Bearer|Authorization:\s*\w+|--?(?:token|api-?key|password))[\s=]+[\"']?"
    r"(?P<value>[^\s;&|\"']+)",
    re.IGNORECASE,
)
_LONG_RUN = re.compile(r"[A-Za-z0-9]{16,}")
_SHELL_TEXT = ("hardware.slurm.setup", "hardware.slurm.sbatch")


def secret_in_url(url: str) -> str | None:
    """What of an address seems secret, in words that do not show it; None where nothing does."""
    try:
        parts = urlsplit(url)
    except ValueError:  # as a bracket that is not closed
        return "a user name or password" if "@" in url else None
    user, at, _ = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    if at and not password.startswith("$") and (password or not (name.startswith("$") or "ssh" in parts.scheme)):
        return "a user name or password"
    for name, value in parse_qsl(parts.query, keep_blank_values=True) + parse_qsl(parts.fragment):
        named = _names_a_secret(name)
        if value and not value.startswith("$") and (named or _looks_drawn(value)):
            return f"a secret ({name if named else 'in its query'})"
    return "a secret" if _SECRET_VALUE.search(url) else None


def address(url: str) -> str:
    """Scheme, host and path of a URL, without a query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_this_machine(url: str) -> bool:
    """Whether an address is one of this machine, for which no proxy is asked."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    return number.is_loopback or number.is_unspecified


def secret_in(value: str, *, shell: bool = False) -> str | None:
    """As `secret_in_url`, of any text that a config may hold: addresses within it, keys, and what is assigned.

    Args:
        shell: the text is of a shell, where a shorter value that is assigned or handed over counts as well.
    """
    for url in _URL.findall(value):
        if secret := secret_in_url(url):
            return secret
    seems_secret = _looks_chosen if shell else _looks_drawn
    for assigned in _ASSIGNMENT.finditer(value):
        if _names_a_secret(assigned["name"]) and seems_secret(assigned["value"]):
            return f"a secret ({assigned['name']})"
    if any(seems_secret(handed["value"]) for handed in _HANDED_OVER.finditer(value)):
        return "a secret"
    return "a secret" if _SECRET_VALUE.search(value) else None


def secrets_in_config(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted paths of the options that seem to hold a secret, each with what it is."""
    secrets: dict[str, str] = {}
    for name, value in mapping.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            secrets |= secrets_in_config(value, f"{path}.")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (secret := secret_in(text, shell=path in _SHELL_TEXT)):
                secrets[path] = secret
    return secrets


def _names_a_secret(name: str) -> bool:
    return _SECRET_NAME.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)) is not None


def _looks_chosen(value: str) -> bool:
    """Whether a value may be a password: letters and digits mixed, neither a path nor what a shell puts in."""
    if value.startswith(("/", "~", ".")) or "$" in value or "`" in value:
        return False
    if "/" in value and (len(value) < 32 or "." in value):  # a path; a longer one may be base64
        return False
    return len(value) >= 8 and _is_mixed(value)


def _looks_drawn(value: str) -> bool:
    """Whether a value seems drawn at random: it has a long run of letters and digits mixed."""
    return _looks_chosen(value) and any(_is_mixed(run) for run in _LONG_RUN.findall(value))


def _is_mixed(text: str) -> bool:
    return any(c.isalpha() for c in text) and any(c.isdigit() for c in text)
