"""Measures of conditional image leakage and of motion, without any weights."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.metrics.leakage import (
        LeakageProbe,
        condition_dominance,
        frame_difference_ratio,
        motion_transfer_ratio,
        probe_leakage,
        reliance,
    )
    from cil.metrics.motion import MotionAccumulator, MotionScore, motion_score

__all__ = [
    "LeakageProbe",
    "MotionAccumulator",
    "MotionScore",
    "condition_dominance",
    "frame_difference_ratio",
    "motion_score",
    "motion_transfer_ratio",
    "probe_leakage",
    "reliance",
]

_OF_MOTION = ("MotionAccumulator", "MotionScore", "motion_score")


def __getattr__(name: str) -> Any:
    """Import a measure when it is first used: that of motion needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'cil.metrics' has no attribute {name!r}")
    module = "cil.metrics.motion" if name in _OF_MOTION else "cil.metrics.leakage"
    return getattr(importlib.import_module(module), name)
