"""Names of videos as they are shown: printable, and different for different files."""

import hashlib
import re

__all__ = ["fingerprint", "name_of_url", "printable", "shortened"]

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MAX_LENGTH = 1000


def printable(path: str) -> str:
    r"""Escape what cannot be shown, so that different paths stay different.

    Args:
        path: a path as `os.fsdecode` returns it: bytes that are not UTF-8 are surrogates.

    Returns:
        The path with a backslash as ``\\``, a line feed as ``\n``, a byte that is not UTF-8 as
        ``\xff``, and other characters that are not printable (control, direction, odd spaces) as
        ``\x07``, ``\u202e`` or ``\U000e0001``.
    """
    if path.isprintable() and "\\" not in path:
        return path
    return "".join(_escaped(character) for character in path)


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shortened(name: str) -> str:
    """Cut a name that a damaged table made endless; only for refused files."""
    return name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}…"


def fingerprint(text: str) -> str:
    """Return eight hex digits of a text's hash, to tell equal names apart."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def name_of_url(url: str) -> str:
    """Name a video by its URL: scheme/host/path.

    A query or a user name is not shown, as it may be a secret; a short hash of it keeps names
    apart.
    """
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, _, host = host.rpartition("@")
    path, *query = re.split(r"[?#]", path, maxsplit=1) if scheme.startswith("http") else [path]
    hidden = "\0".join([user, *query])
    mark = f"~{fingerprint(hidden)}" if hidden else ""
    return printable(f"{scheme}/{host}{slash}{path}") + mark
