"""Patterns for paths: brace lists as in shards/{000..003}.tar, and wildcards as in day-*/**/*.mp4.

Wildcards are matched folder by folder, so that a walk enters only folders that can match.
"""

import fnmatch
import re
from collections.abc import Iterator

from cil.errors import ConfigError

__all__ = ["MAX_BRACE_NAMES", "Pattern", "State", "expand_braces", "fixed_folder", "has_wildcards"]

MAX_BRACE_NAMES = 1_000_000

_BRACES = re.compile(r"\{([^{},]*(?:,[^{},]*)+|-?\d+\.\.-?\d+)\}")


def has_wildcards(text: str) -> bool:
    """Tell whether a path is a pattern; brace lists do not count."""
    return any(character in text for character in "*?[")


def expand_braces(text: str, *, at_most: int = MAX_BRACE_NAMES) -> list[str]:
    """Write out brace lists: {a,b} and {000..003}, where leading zeros keep the width.

    Raises:
        ConfigError: more names than ``at_most``.
    """
    pieces = _BRACES.split(text)  # text, list, text, list, ..., text
    names = [pieces[0]]
    for inside, after in zip(pieces[1::2], pieces[2::2], strict=True):
        choices = inside.split(",") if "," in inside else _numbers(inside)
        if len(names) * len(choices) > at_most:
            raise ConfigError(
                f"data.videos: {text} stands for more than {at_most} names; give a folder"
            )
        names = [f"{name}{choice}{after}" for name in names for choice in choices]
    return names


class _Numbers:
    """The numbers of a range as text; counted before they are written out."""

    def __init__(self, first: str, last: str) -> None:
        padded = [item for item in (first, last) if re.match(r"-?0\d", item)]
        self._width = max(map(len, padded), default=0)
        low, high = int(first), int(last)
        self._range = range(low, high + 1) if low <= high else range(low, high - 1, -1)

    def __len__(self) -> int:
        return min(len(self._range), MAX_BRACE_NAMES + 1)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self._width}d}" for number in self._range)


def _numbers(inside: str) -> _Numbers:
    first, last = inside.split("..")
    if max(len(first), len(last)) > 15:
        raise ConfigError(f"data.videos: {{{inside[:40]}}} is too long a number for a brace list")
    return _Numbers(first, last)


def fixed_folder(pattern: str) -> str:
    """Return the folder before the first component with a wildcard or a brace list."""
    found = re.search(r"[*?\[]", pattern)
    braces = _BRACES.search(pattern)
    ends = [match.start() for match in (found, braces) if match]
    start = min(ends, default=len(pattern))
    return pattern[: pattern.rfind("/", 0, start) + 1]


State = frozenset[tuple[int, int]]
"""Where each alternative of a pattern stands after some components: (alternative, component)."""


class Pattern:
    """Relative paths with wildcards, any of which may match.

    ``**`` alone stands for any number of folders, ``*``, ``?`` and ``[...]`` for parts of a name.
    """

    def __init__(self, *texts: str) -> None:
        self._parts = [[p for p in text.split("/") if p not in ("", ".")] for text in texts]

    def start(self) -> State:
        """Return the state before the first component of a path."""
        return self._with_skips({(which, 0) for which in range(len(self._parts))})

    def step(self, state: State, component: str) -> State:
        """Return the state after one more component; an empty one can match nothing below."""
        after = set()
        for which, number in state:
            parts = self._parts[which]
            if number == len(parts):
                continue
            if parts[number] == "**":
                after.add((which, number))
                if number == len(parts) - 1:
                    after.add((which, number + 1))
            elif fnmatch.fnmatchcase(component, parts[number]):
                after.add((which, number + 1))
        return self._with_skips(after)

    def is_match(self, state: State) -> bool:
        """Tell whether the components so far are a whole match."""
        return any(number == len(self._parts[which]) for which, number in state)

    def matches(self, path: str) -> bool:
        """Tell whether a relative path matches."""
        state = self.start()
        for component in path.split("/"):
            state = self.step(state, component)
        return self.is_match(state)

    def _with_skips(self, state: set[tuple[int, int]]) -> State:
        """Add the states in which a ``**`` stands for no folder."""
        pending = list(state)
        while pending:
            which, number = pending.pop()
            parts = self._parts[which]
            if number < len(parts) - 1 and parts[number] == "**":
                state.add((which, number + 1))
                pending.append((which, number + 1))
        return frozenset(state)
