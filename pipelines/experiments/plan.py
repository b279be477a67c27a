"""What an experiment is: commands for each seed, the reports they leave, and columns of a table.

In: a YAML file of configs/experiments. Out: an `Experiment`, whose commands and reports of a seed
have its number and folder put in.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from cil.errors import ConfigError
from pipelines.yaml_file import read_mapping

__all__ = ["Column", "Experiment", "Source", "read_experiment"]

_STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
_PROGRAMS = {"cil": ["-m", "pipelines"], "python": []}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Reports of each seed, and the arms that are taken from them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    reports: tuple[str, ...]
    """Paths of a leak.json, and of files with further rows of the same arms."""
    arms: Mapping[str, str]
    """Name in the table by name in the report, in the order of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A number of the leak report: a measure at a rank t, or of videos from a start time."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    measure: str
    """As leak.json names it."""
    t: float | None = None
    """Rank of a one-step measure."""
    start: float | None = None
    """Start time M of sampled videos."""
    analytic_init: bool = False
    """Whether their first latents are of the Analytic-Init Gaussian."""
    relative_to: str | None = None
    """Arm of the table whose value, of the same seed, it is divided by."""
    digits: int = 2
    """Decimals that are shown."""
    in_table: bool = True
    """Whether the table shows it; the file of results has all."""
    in_figure: bool = False
    """Whether the figure shows it."""

    def __post_init__(self) -> None:
        """Check that it names one place."""
        if (self.t is None) == (self.start is None):
            raise ConfigError(
                f"a column is of a rank t or of a start time, got {self.t} and {self.start}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment; texts hold {folder} and {seed}."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    title: str
    """For people."""
    folder: str
    """Of the results of all seeds; a seed has a folder in it."""
    seeds: tuple[int, ...]
    """Each has its own data, trainings and evaluation."""
    commands: tuple[str, ...]
    """Run one after the other for each seed; each goes on where it was stopped."""
    sources: tuple[Source, ...]
    """Where the numbers are."""
    columns: Mapping[str, Column]
    """By the heading of the table."""

    def __post_init__(self) -> None:
        """Check what depends on each other."""
        names = [name for source in self.sources for name in source.arms.values()]
        if len(set(names)) < len(names) or not names:
            raise ConfigError(f"the arms of a table must have names of their own, got {names}")
        for heading, column in self.columns.items():
            if column.relative_to not in (None, *names):
                raise ConfigError(
                    f"column {heading}: relative_to must be one of {names}, got "
                    f"{column.relative_to!r}"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different numbers, got {list(self.seeds)}")
        for command in self.commands:
            if command.split()[0] not in _PROGRAMS:
                raise ConfigError(f"commands begin with {' or '.join(_PROGRAMS)}, got {command!r}")

    def filled(self, text: str, seed: int) -> str:
        """Put the seed and its folder into a text."""
        return text.format(seed=seed, folder=f"{self.folder}/seed-{seed}")

    def arguments(self, seed: int) -> list[list[str]]:
        """Return the commands of a seed as arguments of a process."""
        found = []
        for command in self.commands:
            program, *rest = shlex.split(self.filled(command, seed))
            found.append([sys.executable, *_PROGRAMS[program], *rest])
        return found

    @classmethod
    def of(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """Check plain data and make an experiment of it.

        Raises:
            ConfigError: something in it is wrong.
        """
        try:
            found: Self = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            lines = [
                f"  {'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
                for each in error.errors()
            ]
            raise ConfigError(f"{source} is no experiment:\n" + "\n".join(lines)) from error
        return found


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    return Experiment.of(read_mapping(path), source=str(path))
