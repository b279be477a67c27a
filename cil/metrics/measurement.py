"""One number of an evaluation with all that is needed to judge and repeat it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from cil.errors import ConfigError, DataError
from cil.metrics.resampling import Interval

__all__ = ["Measurement", "check_comparable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A metric of one arm; or why there is none, and then it has no value, never 0.

    Raises:
        ConfigError: a value and a reason for its absence, or neither.
        DataError: a value that is not finite.
    """

    value: float | None = None
    """In the unit of the metric; None where it is absent."""
    n: int = 0
    """Independent clips behind it; for distances of sets the clips of the smaller set."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    level: float | None = None
    """Of the interval, such as 0.95."""
    ddof: int | None = None
    """Of the covariance or standard deviation in it, where there is one."""
    extractor_sha256: str | None = None
    """Of the weight file or folder, 64 hex digits."""
    preprocessing: str | None = None
    """Name of what frames go through before the extractor."""
    seed: int | None = None
    """Of the resampling or of the draw of subsets."""
    absent: str | None = None
    """Why there is no value."""
    warnings: tuple[str, ...] = ()
    """What to know before the value is used."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.absent is None):
            raise ConfigError(
                "a measurement has a value or a reason why it is absent, got "
                f"value={self.value} and absent={self.absent!r}"
            )
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise DataError(f"{name} must be finite, got {number}; name the reason instead")

    @classmethod
    def missing(cls, reason: str, **known: Any) -> Self:
        """Make a measurement without a value, such as ``missing("evaluate.i3d is not set")``."""
        return cls(absent=reason, **known)

    @classmethod
    def of(cls, interval: Interval, **known: Any) -> Self:
        """Make a measurement of an interval; its reason for having no ends becomes a warning."""
        warnings = tuple(known.pop("warnings", ()))
        if interval.reason:
            warnings = (*warnings, f"no interval: {interval.reason}")
        known.setdefault("seed", interval.seed)
        return cls(
            value=interval.value,
            n=interval.n,
            low=interval.low,
            high=interval.high,
            level=interval.level,
            warnings=warnings,
            **known,
        )

    def warned(self, *warnings: str) -> Self:
        """Return the same with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `as_dict`.

        Raises:
            DataError: a name that a measurement does not have.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise DataError(
                f"a measurement has no {sorted(unknown)}; is the file of a later version?"
            )
        return cls(**{**values, "warnings": tuple(values.get("warnings", ()))})


def check_comparable(name: str, first: Measurement, second: Measurement) -> None:
    """Refuse to compare two distances of sets that were not measured alike.

    Args:
        name: of the metric, for the message.
        first: of one arm.
        second: of another arm.

    Raises:
        DataError: one is absent, or they differ in the number of clips, ddof, extractor or
            preprocessing.
    """
    for item in (first, second):
        if item.absent is not None:
            raise DataError(f"{name} cannot be compared: it is absent in an arm ({item.absent})")
    for field in ("n", "ddof", "extractor_sha256", "preprocessing"):
        one, other = getattr(first, field), getattr(second, field)
        if one != other:
            raise DataError(
                f"{name} cannot be compared: {field} differs between the arms, {one} and {other}; "
                "evaluate both on the same clips with the same files"
            )
