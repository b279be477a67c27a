"""Measures of conditional image leakage and of motion, without any weights."""

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
