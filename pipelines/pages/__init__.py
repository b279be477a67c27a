"""What the pages of reports share: their look, and how numbers and names are shown.

A page is one HTML file without scripts that needs no network. Names and messages come from
outside: everything is escaped, and the page forbids scripts. A template begins with
``{% set title = "..." %}{% include "head.html" %}`` and closes the head, after more styles if it
has some.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["page_environment"]

_LONGEST_NAME = 64
_LONGEST_MESSAGE = 200


def page_environment(package: str) -> "Environment":
    """Return where the templates of a package are read, with the filters of all pages.

    Args:
        package: dotted name of the package whose folder holds the templates.
    """
    import jinja2

    loaders = [jinja2.PackageLoader(name, "") for name in (package, __name__)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (_count, _share, _size, _duration, _number, _name, _message, _setting)
    environment.filters.update({each.__name__.removeprefix("_"): each for each in filters})
    return environment


def _printable(value: Any) -> Any:
    """Show what cannot be printed (line ends, direction marks, odd bytes) as escapes."""
    if not isinstance(value, str) or value.isprintable() or hasattr(value, "__html__"):
        return value
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in value
    )


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    """Return a share in percent; only nothing is 0%, and only all is 100%."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if part and percent < 0.1:
        return "<0.1%"
    if part < whole and percent > 99.9:
        return ">99.9%"
    return f"{percent:.0f}%" if part in (0, whole) else f"{percent:.1f}%"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.3g} {unit}"


def _duration(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds / 60:.3g} min"
    return f"{hours:,.1f} h"


def _number(value: float | None) -> str:
    """Return a measure with three digits, without an exponent."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"


def _name(value: str) -> str:
    """Shorten a long name in its middle, where it matters least."""
    return _shortened(value, _LONGEST_NAME)


def _message(value: str) -> str:
    return _shortened(value, _LONGEST_MESSAGE)


def _shortened(value: str, longest: int) -> str:
    text = str(_printable(value))
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not set"
    return str(value)
