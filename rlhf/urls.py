"""Secrets in addresses and in other values of a config: found, so that they can be refused without being shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_SECRET_NAME = re.compile(
    r"(?<![a-z])(api|access|secret|private)?[_-]?key(?![a-z])|token(?!s)|secret|passw|pwd|auth(?!or)|credential|bearer"
    r"|(?<![a-z])sig(nature)?(?![a-z])",
    re.IGNORECASE,
)
# As services hand them out: OpenAI, Hugging Face, GitHub, GitLab, Slack, AWS, Google, and signed JSON.
_SECRET_VALUE = re.compile(
    r"\b(sk-[\w-]{16,}|hf_\w{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abp]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{12,}|AIza[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{10,})"
)
_ASSIGNMENT = re.compile(r"(?:^|(?<=[\s;&|]))(?P<name>[A-Za-z_]\w*)=(?P<value>[^\s;&|]+)")


def secret_in_url(url: str) -> str | None:
    """What of an address seems secret, in words that do not show it; None where nothing does."""
    try:
        parts = urlsplit(url)
        userinfo = "@" in parts.netloc
    except ValueError:  # as a bracket that is not closed
        return "a user name or password" if "@" in url else None
    if userinfo:
        return "a user name or password"
    for name, value in parse_qsl(parts.query, keep_blank_values=True) + parse_qsl(parts.fragment):
        if value and (_SECRET_NAME.search(name) or _looks_drawn(value)):
            return f"a secret ({name if _SECRET_NAME.search(name) else 'in its query'})"
    return "a secret" if _SECRET_VALUE.search(url) else None


def secret_in(value: str) -> str | None:
    """As `secret_in_url`, of any text that a config may hold: addresses within it, keys, and what a shell assigns."""
    for word in value.split():
        if "://" in word and (found := secret_in_url(word)):
            return found
    for assigned in _ASSIGNMENT.finditer(value):
        own = assigned["value"].strip("\"'")
        if _SECRET_NAME.search(assigned["name"]) and own and not own.startswith(("$", "`", "/", "~", ".")):
            return f"a secret ({assigned['name']})"
    return "a secret" if _SECRET_VALUE.search(value) else None


def secrets_in_config(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted paths of the options that seem to hold a secret, each with what it is."""
    found: dict[str, str] = {}
    for name, value in mapping.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= secrets_in_config(value, f"{path}.")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (secret := secret_in(text)):
                found[path] = secret
    return found


def _looks_drawn(value: str) -> bool:
    """Whether a value seems drawn at random: long, without blanks, letters and digits mixed."""
    letters, digits = any(c.isalpha() for c in value), any(c.isdigit() for c in value)
    return len(value) >= 20 and letters and digits and not any(c.isspace() for c in value)
