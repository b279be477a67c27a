"""Names of files in a store: relative, with forward slashes, and never a way out of it."""

import re

from cil.errors import DataError

__all__ = ["checked_name", "is_temporary"]

_TEMPORARY = re.compile(r"(^|/)\.[^/]*\.tmp(/|$)")


def is_temporary(name: str) -> bool:
    """Tell whether a name is of a file that is not finished, or in a folder of such files."""
    return bool(_TEMPORARY.search(name))


def checked_name(name: str) -> str:
    """Return a name if it stays inside the store.

    Raises:
        DataError: it is empty, absolute, or has a component that is no name.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or not name.isprintable() or "\\" in name:
        raise DataError(
            f"{name!r} is no name of a file in a store; names are relative, printable, and have "
            "no '..'"
        )
    return name
