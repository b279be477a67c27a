"""Measures of conditional image leakage, on tensors and without any weights."""

from cil.metrics.leakage import (
    LeakageProbe,
    condition_dominance,
    frame_difference_ratio,
    motion_transfer_ratio,
    probe_leakage,
    reliance,
)

__all__ = [
    "LeakageProbe",
    "condition_dominance",
    "frame_difference_ratio",
    "motion_transfer_ratio",
    "probe_leakage",
    "reliance",
]
