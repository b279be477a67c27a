"""The rules of the gate, written once: measures of two models in, passed or refused and why out.

Every rule has three parts, and all must hold: the measure is there and finite; it is within its
absolute bound, if one is set; and, against a champion, it is not worse beyond noise, which is to
say that the interval of the paired difference is not wholly on the wrong side of the tolerance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.gate.config import GateConfig

__all__ = ["Decision", "Measured", "Ruling", "decide", "rules_of"]

Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One measure of the challenger, and of the champion if there is one, on the same clips."""

    name: str
    challenger: float | None
    """None if it was not measured."""
    champion: float | None = None
    low: float | None = None
    """Ends of the interval of challenger minus champion."""
    high: float | None = None
    n: int = 0
    """Clips."""
    absent: str | None = None
    """Why there is no number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    title: str
    better: Better
    tolerance: float
    """Share of the champion's value."""
    bound: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """What the gate says about one measure."""

    name: str
    passed: bool
    text: str
    """For people, with all numbers."""
    measured: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What the gate says."""

    passed: bool
    against: str | None
    """Version of the champion; None if there was none."""
    rulings: tuple[Ruling, ...]

    @property
    def reason(self) -> str:
        """One line: what decided."""
        failed = [ruling.text for ruling in self.rulings if not ruling.passed]
        if failed:
            return "; ".join(failed)
        return "; ".join(ruling.text for ruling in self.rulings)


def rules_of(config: GateConfig, *, distances: Sequence[str] = ()) -> dict[str, _Rule]:
    """Return the rules by the name of their measure.

    Args:
        config: of the gate.
        distances: names of the distances whose extractor is set.
    """
    rules = {
        "motion_error": _Rule(
            title="motion error",
            better="lower",
            tolerance=config.motion_error_tolerance,
            bound=config.max_motion_error,
        ),
        "motion_transfer_ratio": _Rule(
            title="motion transfer",
            better="higher",
            tolerance=config.leak_tolerance,
            bound=config.min_motion_transfer,
        ),
        "alignment_mse": _Rule(
            title="alignment error",
            better="lower",
            tolerance=config.alignment_tolerance,
            bound=config.max_alignment_error,
        ),
    }
    for name in distances:
        bound = config.max_distance if name == "fvd" else None
        rules[name] = _Rule(
            title=name.upper(), better="lower", tolerance=config.distance_tolerance, bound=bound
        )
    return rules


def decide(
    measured: Sequence[Measured],
    config: GateConfig,
    *,
    champion: str | None,
    distances: Sequence[str] = (),
) -> Decision:
    """Apply all rules.

    Args:
        measured: of both models; what is missing fails.
        config: of the gate.
        champion: its version; None judges by bounds alone.
        distances: names of the distances whose extractor is set.
    """
    by_name = {each.name: each for each in measured}
    rulings = []
    for name, rule in rules_of(config, distances=distances).items():
        one = by_name.get(name) or Measured(name=name, challenger=None, absent="it was not taken")
        rulings.append(_ruling(one, rule, against_champion=champion is not None))
    return Decision(
        passed=all(ruling.passed for ruling in rulings), against=champion, rulings=tuple(rulings)
    )


def _ruling(one: Measured, rule: _Rule, *, against_champion: bool) -> Ruling:
    passed, text = _alone(one, rule)
    if passed and against_champion:
        passed, text = _compared(one, rule)
    return Ruling(name=one.name, passed=passed, text=f"{rule.title} {text}", measured=one)


def _alone(one: Measured, rule: _Rule) -> tuple[bool, str]:
    """Judge the challenger's value by its bound."""
    value = one.challenger
    if value is None or not math.isfinite(value):
        return False, f"is missing: {one.absent or 'it is not a finite number'}"
    if rule.bound is None:
        return True, f"{value:.4g} (no bound is set, there is no champion)"
    if _is_beyond(value, rule.bound, rule.better):
        side = "above" if rule.better == "lower" else "below"
        return False, f"{value:.4g} is {side} its bound {rule.bound:.4g}"
    return True, f"{value:.4g} (bound {rule.bound:.4g}, there is no champion)"


def _compared(one: Measured, rule: _Rule) -> tuple[bool, str]:
    """Judge the difference from the champion."""
    value, other = one.challenger, one.champion
    if other is None or not math.isfinite(other):
        return False, f"{value:.4g}: the champion's is missing, so they cannot be compared"
    if one.low is None or one.high is None or not math.isfinite(one.low + one.high):
        return False, f"{value:.4g} against {other:.4g}: there is no interval, n {one.n}"
    numbers = f"{value:.4g} against {other:.4g}, difference [{one.low:+.3g}, {one.high:+.3g}]"
    slack = rule.tolerance * abs(other)
    worse = one.low > slack if rule.better == "lower" else one.high < -slack
    if worse:
        return False, f"is worse beyond noise and tolerance: {numbers}, n {one.n}"
    return True, f"{numbers}, n {one.n}"


def _is_beyond(value: float, bound: float, better: Better) -> bool:
    return value > bound if better == "lower" else value < bound
