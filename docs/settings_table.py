"""Put a table of all settings where a page of the documentation says `<!-- settings -->`.

mkdocs calls it as a hook. Names, types, ranges and defaults come from the dataclasses of
`pipelines.config`, texts from the docstring under each field, so nothing is written twice.
Print the tables with: python docs/settings_table.py
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).parents[1]
MARK = "<!-- settings -->"
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark; mkdocs calls this for every page."""
    return markdown.replace(MARK, settings_tables()) if MARK in markdown else markdown


def settings_tables() -> str:
    """Return one Markdown section for each section of the configuration."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from pipelines.config import RunConfig

    top = [item for item in dataclasses.fields(RunConfig) if not is_section(item)]
    parts = [section("Top level", RunConfig, "", top)]
    for item in dataclasses.fields(RunConfig):
        if is_section(item):
            fields = list(dataclasses.fields(item.type))
            parts.append(section(f"`{item.name}`", item.type, f"{item.name}.", fields))
    return "\n".join(parts)


def is_section(item: "dataclasses.Field[Any]") -> bool:
    """Tell whether a field is a group of settings."""
    return dataclasses.is_dataclass(item.type)


def section(title: str, owner: Any, prefix: str, fields: list[Any]) -> str:
    """Render a heading, the first line of the class's docstring and a table of fields."""
    texts = field_docstrings(owner)
    intro = inspect.cleandoc(owner.__doc__).splitlines()[0]
    lines = [f"### {title}", "", intro, "", "| setting | type | default | meaning |"]
    lines.append("|---|---|---|---|")
    for item in fields:
        cells = [f"`{prefix}{item.name}`", describe(item.type), default_of(item), texts[item.name]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def field_docstrings(owner: Any) -> dict[str, str]:
    """Return the text under each field of a dataclass.

    Raises:
        ValueError: a field has none.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[field.target.id] = " ".join(str(after.value.value).split())
    missing = {item.name for item in dataclasses.fields(owner)} - set(texts)
    if missing:
        raise ValueError(f"{owner.__name__} has fields without a docstring: {sorted(missing)}")
    return texts


def describe(annotation: Any) -> str:
    """Say a type and its range in words, such as `integer >= 1, or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = ", ".join(limits_of(arguments[1:]))
        return f"{describe(arguments[0])} {limits}".strip()
    if origin in (Union, types.UnionType):
        kinds = [describe(kind) for kind in arguments if kind is not type(None)]
        return ", or ".join([*kinds, "null"] if type(None) in arguments else kinds)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {describe(arguments[0])}"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}[annotation]


def limits_of(metadata: tuple[Any, ...]) -> Iterator[str]:
    """Yield the limits of an annotated type."""
    for limit in metadata:
        for name, sign in SIGNS.items():
            if hasattr(limit, name):
                value = getattr(limit, name)
                yield f"{sign} 2^63" if value == 2**63 else f"{sign} {value}"
        if hasattr(limit, "min_length"):
            yield f"({limit.min_length} or more)"


def default_of(item: "dataclasses.Field[Any]") -> str:
    """Return a field's default as it stands in YAML."""
    value = item.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"{list(value)}"
    return '""' if value == "" else str(value)


if __name__ == "__main__":
    sys.stdout.write(settings_tables() + "\n")
