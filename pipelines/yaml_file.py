"""Reading a YAML file of settings: a mapping, of a size that people write.

In: the path of a file. Out: plain data, made by PyYAML's safe loader. A `ConfigError` names what is
not text, not YAML, has a key twice, or would take more time and memory than settings can need: a
file that is too large, aliases that multiply, or that lead back to themselves.
"""

from pathlib import Path
from typing import Any

import yaml

from cil.errors import ConfigError
from pipelines.shown_text import shortened

__all__ = ["read_mapping"]

_MOST_BYTES = 2**18
"""Of a file. The longest of ours has 3 KB; PyYAML reads about 100 KB a second."""
_MOST_CHARACTERS = 2**20
"""Of all that a file says, with what its aliases stand for written out."""
_MOST_LEVELS = 50


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, without looking at what it says.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        if isinstance(error, UnicodeDecodeError) and len(content) > _MOST_BYTES:
            raise _too_large(path) from error
        raise ConfigError(f"cannot read the config file {str(path)!r}: {error}") from error
    if len(content) > _MOST_BYTES:
        raise _too_large(path)
    try:
        raw = _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {shortened(str(error), 1000)}") from error
    except Exception as error:  # of int(), of dates, of dictionaries: PyYAML lets them all through
        what = shortened(f"{type(error).__name__}: {error}")
        raise ConfigError(f"{path} is not valid YAML: a value cannot be read ({what})") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(raw).__name__}")
    return raw


def _too_large(path: str | Path) -> ConfigError:
    return ConfigError(
        f"{path} has more than {_MOST_BYTES // 1024} KiB, which is no file of settings; give a "
        "YAML file as those in configs/"
    )


class _Loader(yaml.SafeLoader):
    """A key that stands twice is an error, not the last one's victory; so is deep nesting.

    PyYAML's time for a token grows with its depth.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _MOST_LEVELS:
            raise yaml.composer.ComposerError(
                None, None, "it is nested too deeply", self.get_mark()
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        scalars = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key in scalars:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > _MOST_CHARACTERS:
            raise yaml.constructor.ConstructorError(
                None, None, "its aliases stand for too much; write less", node.start_mark
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Count the characters of a node with its aliases written out; None marks what is begun."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.constructor.ConstructorError(
                None, None, "an alias leads back to what it is in", node.start_mark
            )
        return size
    known[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
    own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
    size = 1 + own + sum(_written_out(part, known) for part in parts)
    known[id(node)] = size
    return size
