"""Options of the command line into a settings class, by tyro, with no secret in what it says.

tyro repeats the value that it cannot take. Where a value holds a password, the mistake is explained
with the password replaced.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, TypeVar

from cil.errors import ConfigError
from pipelines.config import redact_uri

__all__ = ["parse_with_tyro"]

Settings = TypeVar("Settings")


def parse_with_tyro(kind: type[Settings], arguments: Sequence[str], **options: Any) -> Settings:
    """Parse options; tyro explains a mistake, or prints its help, and exits.

    Args:
        kind: the settings class.
        arguments: words of the command line.
        options: for tyro: ``prog``, ``description``, and ``default`` if there is one.

    Raises:
        SystemExit: with code 2 after a mistake, 0 after the help.
    """
    shown = [redact_uri(word) for word in arguments]
    if shown == list(arguments):
        return _parsed(kind, arguments, options)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return _parsed(kind, arguments, options)
        except SystemExit as error:
            if not error.code:
                raise
    _parsed(kind, shown, options)  # the same mistake, so it exits
    raise ConfigError("an option is wrong; see --help")


def _parsed(kind: type[Settings], arguments: Sequence[str], options: dict[str, Any]) -> Settings:
    import tyro

    parsed: Settings = tyro.cli(kind, args=arguments, **options)
    return parsed
