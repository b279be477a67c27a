"""Settings of scheduled retraining."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

__all__ = ["RetrainConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainConfig:
    """The scheduled run, `cil retrain`; see docs/retraining.md."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    start_from: Literal["champion", "config"] = "champion"
    """Weights that training begins with: the champion's, or as `model` says (published weights, or
    fresh ones). Without a champion always the latter."""
