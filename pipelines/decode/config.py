"""Settings of decoding."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

__all__ = ["DecodeConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Decoding, in processes with limits."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    backend: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    """Decoder of the frames that are encoded, where it is right for the file; auto prefers decord.
    Every video is scanned in order by PyAV first, which alone finds damage, and what is read later
    must equal what it saw."""
    timeout_s: Annotated[float, Gt(0)] = 1800.0
    """Wall-clock limit for one file, in seconds."""
    stall_s: Annotated[float, Gt(0)] = 60.0
    """Longest wait for the next frame of a file, in seconds; then the decoder hangs."""
    memory_limit_gib: Annotated[float, Gt(0)] = 4.0
    """How far the decoder's memory may grow over one file, in GiB."""
    max_attempts: Annotated[int, Ge(1)] = 2
    """How often a file may crash or hang a decoder before it is put in quarantine."""
