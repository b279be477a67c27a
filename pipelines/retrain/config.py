"""Settings of scheduled retraining."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

__all__ = ["RetrainConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainConfig:
    """The scheduled run, `cil retrain`; see docs/retraining.md."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    start_from: Literal["champion", "config"] = "champion"
    """Weights that training begins with: the champion's, or as `model` says (published weights, or
    fresh ones). Without a champion always the latter."""
    keep_nights: Annotated[int, Ge(1)] | None = 7
    """How many nights keep all of their files in OUTPUT/retrain; older ones keep their report and
    decision, those of the champion and the one before it keep all. None removes nothing."""
