"""Text of others in messages: without secrets, not too long, and unable to move the cursor.

In: values of settings and files, messages that hold them. Out: what can be shown and saved.
"""

import re

__all__ = ["redact_uri", "shortened"]

_SHOWN = 300
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&;][\w-]*(?:password|passwd|pwd|token|secret|signature|sig|api[_-]?key|access[_-]?key)=)"
    r"[^&;#\s'\"]*"
)
_WORD = re.compile(r"[^\s'\"]+")
_AUTHORITY = re.compile(r"://(?!/)")


def redact_uri(uri: str) -> str:
    """Replace passwords and tokens in the URIs of a text, so that it can be shown.

    A password may hold any sign, also / and @: all before the last @ of a URI is hidden, unless it
    names no host, as sqlite:///me@home.db.
    """
    return _SECRET_PARAMETER.sub(r"\1***", _WORD.sub(_redact_userinfo, uri))


def _redact_userinfo(match: re.Match[str]) -> str:
    """Look at each word once: a pattern for all of it takes the square of the time."""
    word = match.group()
    last = word.rfind("@")
    start = _AUTHORITY.search(word, 0, last) if last > 0 else None
    if start is None:
        return word
    user, colon, _ = word[start.end() : last].partition(":")
    return word[: start.end()] + (f"{user}:***" if colon else "***") + word[last:]


def shortened(text: str, most: int = _SHOWN) -> str:
    """Make a text fit to be shown in a message.

    Args:
        text: anything.
        most: characters that are kept.

    Returns:
        The text without secrets (they go first: half a URI shows what its end would have hidden),
        cut with a note, and with signs that cannot be printed escaped, but for line ends.
    """
    text = redact_uri(text)
    cut = text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode()
        for sign in cut
    )
