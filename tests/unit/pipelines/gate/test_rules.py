"""The gate's rules, on made-up measures."""

import dataclasses
import math

import pytest

from pipelines.gate.config import GateConfig
from pipelines.gate.rules import Measured, decide

SAME = {
    "motion_error": Measured(
        name="motion_error", challenger=0.5, champion=0.5, low=-0.1, high=0.1, n=16
    ),
    "motion_transfer_ratio": Measured(
        name="motion_transfer_ratio", challenger=0.4, champion=0.4, low=-0.05, high=0.05, n=64
    ),
    "alignment_mse": Measured(
        name="alignment_mse", challenger=0.02, champion=0.02, low=-0.001, high=0.001, n=16
    ),
    "fvd": Measured(name="fvd", challenger=300.0, champion=300.0, low=-20.0, high=20.0, n=64),
}
DISTANCES = ("fvd",)


def judged(config=None, champion="3", distances=DISTANCES, without=(), **changes):
    measured = {name: one for name, one in SAME.items() if name not in without}
    for name, change in changes.items():
        measured[name] = dataclasses.replace(measured[name], **change)
    decision = decide(
        list(measured.values()), config or GateConfig(), champion=champion, distances=distances
    )
    return decision.passed, [ruling.name for ruling in decision.rulings if not ruling.passed]


def test_an_equal_model_passes():
    assert judged() == (True, [])


@pytest.mark.parametrize(
    ("name", "worse", "better", "noise"),
    [
        ("motion_error", (0.01, 0.2), (-0.2, -0.01), (-0.01, 0.4)),
        ("motion_transfer_ratio", (-0.2, -0.01), (0.01, 0.2), (-0.4, 0.01)),
        ("alignment_mse", (0.003, 0.2), (-0.2, -0.003), (-0.001, 0.9)),
        ("fvd", (1.0, 50.0), (-50.0, -1.0), (-1.0, 500.0)),
    ],
)
def test_what_is_worse_beyond_noise_fails_and_only_that(name, worse, better, noise):
    assert judged(**{name: {"low": worse[0], "high": worse[1]}}) == (False, [name])
    assert judged(**{name: {"low": better[0], "high": better[1]}}) == (True, [])
    assert judged(**{name: {"low": noise[0], "high": noise[1]}}) == (True, [])


def test_a_tolerance_is_a_share_of_the_champions_value():
    worse = {"motion_error": {"low": 0.04, "high": 0.2}}
    assert judged(**worse) == (False, ["motion_error"])
    assert judged(GateConfig(motion_error_tolerance=0.07), **worse) == (False, ["motion_error"])
    assert judged(GateConfig(motion_error_tolerance=0.09), **worse) == (True, [])
    less = {"motion_transfer_ratio": {"low": -0.2, "high": -0.03}}
    assert judged(GateConfig(leak_tolerance=0.07), **less) == (False, ["motion_transfer_ratio"])
    assert judged(GateConfig(leak_tolerance=0.08), **less) == (True, [])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["challenger", "champion"])
def test_what_is_missing_or_not_finite_fails_on_either_side(value, side):
    assert judged(alignment_mse={side: value}) == (False, ["alignment_mse"])


@pytest.mark.parametrize("end", [None, math.nan, math.inf])
def test_a_difference_without_an_interval_fails(end):
    assert judged(motion_error={"high": end}) == (False, ["motion_error"])


def test_a_measure_that_was_not_taken_fails():
    assert judged(without=("motion_error",)) == (False, ["motion_error"])
    assert judged(without=("fvd",)) == (False, ["fvd"])
    assert judged(without=("fvd",), distances=()) == (True, [])


def test_the_first_model_is_judged_by_its_bounds():
    config = GateConfig(
        max_motion_error=0.6, min_motion_transfer=0.3, max_alignment_error=0.03, max_distance=400.0
    )
    alone = {name: {"champion": None, "low": None, "high": None} for name in SAME}
    assert judged(config, champion=None, **alone) == (True, [])
    beyond = {"motion_error": 0.61, "motion_transfer_ratio": 0.29, "alignment_mse": 0.031}
    for name, value in {**beyond, "fvd": 401.0}.items():
        changed = {**alone, name: {**alone[name], "challenger": value}}
        assert judged(config, champion=None, **changed) == (False, [name])
    assert judged(GateConfig(), champion=None, **alone) == (True, [])


def test_bounds_hold_against_a_champion_too():
    config = GateConfig(max_motion_error=0.4)
    assert judged(config, motion_error={"low": -0.9, "high": -0.8}) == (False, ["motion_error"])


def test_the_reason_names_what_failed_with_its_numbers():
    measured = [*SAME.values()]
    measured[0] = dataclasses.replace(measured[0], challenger=0.7, low=0.1, high=0.3)
    decision = decide(measured, GateConfig(), champion="3", distances=DISTANCES)
    assert decision.reason == (
        "motion error is worse beyond noise and tolerance: 0.7 against 0.5, "
        "difference [+0.1, +0.3], n 16"
    )
    assert decision.against == "3"
