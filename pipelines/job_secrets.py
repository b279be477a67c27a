"""Secrets in what a job takes along, which the dashboard would show.

In: a runtime environment of Ray. Out: the first place in it that holds a secret, by the name of a
variable or by an address with a password.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.shown_text import redact_uri

__all__ = ["place_of_secret"]

_SECRET_NAME = re.compile(
    r"PASSW(OR)?D|PASSPHRASE|SECRET|CREDENTIAL|TOKEN(?!IZER)|AUTHORIZATION|CONNECTION_STRING"
    r"|(KEYS?|AUTH|(?<!BY)PASS)(_|$)|_PWD(_|$)",
    re.IGNORECASE,
)
_HARMLESS_NAMES = ("RAY_AUTH_MODE",)
_GIT_REVISION = re.compile(
    r"git\+(?:https?|ssh)://(?:git@)?[\w.-]+(?::\d+)?/[\w./-]*(?:@[\w./-]+)?(?=[\s'\"#]|$)"
)


def place_of_secret(runtime_env: dict[str, Any]) -> str | None:
    """Return where a runtime environment holds a secret, without the secret; None if nowhere."""
    for name in runtime_env.get("env_vars", {}):
        if _SECRET_NAME.search(name) and name.upper() not in _HARMLESS_NAMES:
            return f"env_vars.{name}"
    for place, text in _texts(runtime_env, ""):
        plain = _GIT_REVISION.sub("", text)  # @ stands before a revision there
        if redact_uri(plain) != plain:
            return place
    return None


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Go through all texts, also keys, and the file of requirements that Ray reads."""
    if isinstance(value, dict):
        for key, each in value.items():
            inside = redact_uri(f"{place}.{key}".lstrip("."))
            yield inside, str(key)
            yield from _texts(each, inside)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each, place)
    elif isinstance(value, str):
        yield place, value
        if place == "pip" and Path(value).is_file():
            yield f"{place} ({value})", Path(value).read_text(encoding="utf-8", errors="replace")
