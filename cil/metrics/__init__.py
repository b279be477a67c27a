"""Measures of leakage, motion, alignment and of sets of videos; see docs/evaluation.md.

Nothing here needs weights but what reads a file that the user supplies (`extractors`, `embeddings`,
`raft`).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.metrics.alignment import (
        alignment_mse,
        histogram_overlap,
        image_alignment,
        image_subject_consistency,
        ssim,
        subject_consistency,
        temporal_consistency,
        temporal_flickering,
    )
    from cil.metrics.features import FeatureStatistics
    from cil.metrics.flow import DISFlow, FlowMethod
    from cil.metrics.frechet import FrechetLine, fit_line, frechet_distance, frechet_infinity
    from cil.metrics.inception import InceptionScore, inception_score
    from cil.metrics.kernel import kernel_distance
    from cil.metrics.leakage import (
        LeakageProbe,
        condition_dominance,
        frame_difference_ratio,
        motion_transfer_ratio,
        probe_leakage,
        reliance,
    )
    from cil.metrics.measured import (
        measure_frechet,
        measure_frechet_infinity,
        measure_inception,
        measure_kernel,
        measure_mean,
    )
    from cil.metrics.measurement import Measurement, check_comparable
    from cil.metrics.motion import MotionAccumulator, MotionScore, motion_score
    from cil.metrics.motion_judgement import (
        DynamicDegree,
        MotionError,
        dynamic_degree,
        luminance,
        motion_error,
        motion_flags,
    )
    from cil.metrics.resampling import (
        Interval,
        PairedDifference,
        bootstrap_interval,
        jackknife_interval,
        paired_difference,
        ratio_of_sums,
        sign_test,
    )

__all__ = [
    "DISFlow",
    "DynamicDegree",
    "FeatureStatistics",
    "FlowMethod",
    "FrechetLine",
    "InceptionScore",
    "Interval",
    "LeakageProbe",
    "Measurement",
    "MotionAccumulator",
    "MotionError",
    "MotionScore",
    "PairedDifference",
    "alignment_mse",
    "bootstrap_interval",
    "check_comparable",
    "condition_dominance",
    "dynamic_degree",
    "fit_line",
    "frame_difference_ratio",
    "frechet_distance",
    "frechet_infinity",
    "histogram_overlap",
    "image_alignment",
    "image_subject_consistency",
    "inception_score",
    "jackknife_interval",
    "kernel_distance",
    "luminance",
    "measure_frechet",
    "measure_frechet_infinity",
    "measure_inception",
    "measure_kernel",
    "measure_mean",
    "motion_error",
    "motion_flags",
    "motion_score",
    "motion_transfer_ratio",
    "paired_difference",
    "probe_leakage",
    "ratio_of_sums",
    "reliance",
    "sign_test",
    "ssim",
    "subject_consistency",
    "temporal_consistency",
    "temporal_flickering",
]

_HOMES = {
    "alignment": "alignment_mse histogram_overlap image_alignment image_subject_consistency ssim "
    "subject_consistency temporal_consistency temporal_flickering",
    "features": "FeatureStatistics",
    "flow": "DISFlow FlowMethod",
    "frechet": "FrechetLine fit_line frechet_distance frechet_infinity",
    "inception": "InceptionScore inception_score",
    "kernel": "kernel_distance",
    "leakage": "LeakageProbe condition_dominance frame_difference_ratio motion_transfer_ratio "
    "probe_leakage reliance",
    "measured": "measure_frechet measure_frechet_infinity measure_inception measure_kernel "
    "measure_mean",
    "measurement": "Measurement check_comparable",
    "motion": "MotionAccumulator MotionScore motion_score",
    "motion_judgement": "DynamicDegree MotionError dynamic_degree luminance motion_error "
    "motion_flags",
    "resampling": "Interval PairedDifference bootstrap_interval jackknife_interval "
    "paired_difference ratio_of_sums sign_test",
}
"""Public names by the module that defines them."""


def __getattr__(name: str) -> Any:
    """Import a measure when it is first used: most of them need no torch."""
    for module, names in _HOMES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"cil.metrics.{module}"), name)
    raise AttributeError(f"module 'cil.metrics' has no attribute {name!r}")
