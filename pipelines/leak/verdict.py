"""The verdict of a leak report: rules, written once, from contrasts to words.

An arm leaks **lower** than its reference if its motion transfer is higher by an interval that
excludes 0, **higher** if it is lower by one. If the interval of condition dominance excludes 0 too
and says the opposite, the measures are **contradictory**. In every other case the leak is **not
distinguishable**: condition dominance alone never decides, as a network that ignores the condition
has the lowest.

Every other finding is the sign of one interval: lower, higher, or not distinguishable. An interval
of fewer than `FEWEST_CLIPS` clips decides nothing. The share of a gain that a control reaches is
stated only where there is a gain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipelines.leak.evidence import Contrast, ControlShare, Evidence
from pipelines.leak.resamples import Estimate

__all__ = ["Finding", "Outcome", "Verdict", "decide", "summarise"]


class Outcome(StrEnum):
    """Where a number went against the reference."""

    LOWER = "lower"
    HIGHER = "higher"
    SAME = "not distinguishable"
    CONTRADICTORY = "contradictory"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One sentence and what it says."""

    about: str
    """leak, one-step error, alignment, motion, motion error or control."""
    outcome: Outcome
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """All findings about one arm against its reference."""

    arm: str
    reference: str
    leak: Outcome
    findings: tuple[Finding, ...]


def decide(evidence: Evidence) -> Verdict:
    """Apply the rules to one arm."""
    leak = _leak(evidence)
    findings = [leak]
    for measure, about, texts in (
        ("one_step_mse", "one-step error", _ERROR),
        ("alignment_mse", "alignment", _ALIGNMENT),
        ("motion", "motion", _MOTION),
        ("motion_error", "motion error", _MOTION_ERROR),
    ):
        findings.append(_by_sign(evidence.contrasts.get(measure), about, texts))
    if leak.outcome is Outcome.LOWER:
        findings += [_control(each) for each in evidence.controls]
    return Verdict(
        arm=evidence.arm,
        reference=evidence.reference,
        leak=leak.outcome,
        findings=tuple(findings),
    )


def _leak(evidence: Evidence) -> Finding:
    transfer = evidence.contrasts["motion_transfer_ratio"]
    dominance = evidence.contrasts["condition_dominance"]
    up, down = transfer.difference.sign, -dominance.difference.sign
    if up and down == -up:
        outcome = Outcome.CONTRADICTORY
    elif up:
        outcome = Outcome.LOWER if up > 0 else Outcome.HIGHER
    else:
        outcome = Outcome.SAME
    words = {
        Outcome.LOWER: "leaks less than",
        Outcome.HIGHER: "leaks more than",
        Outcome.SAME: "cannot be told apart in leakage from",
        Outcome.CONTRADICTORY: "gives contradictory leak measures against",
    }[outcome]
    text = (
        f"{evidence.arm} {words} {evidence.reference}: motion transfer {_both(transfer)}, "
        f"condition dominance {_both(dominance)}."
    )
    if outcome is Outcome.SAME and down:
        text += (
            " Condition dominance differs, but alone it decides nothing: it also falls where a "
            "network ignores the image."
        )
    return Finding(about="leak", outcome=outcome, text=text)


_ERROR = {
    1: "Its one-step predictions are worse on held-out clips: squared error {}.",
    -1: "Its one-step predictions are better on held-out clips: squared error {}.",
    0: "No difference in the one-step error is visible: {}.",
    None: "The one-step error was not measured.",
}
_ALIGNMENT = {
    1: "The price: its videos follow the image less closely, first-frame squared error {}.",
    -1: "Its videos follow the image more closely, first-frame squared error {}.",
    0: "No price in image alignment is visible: first-frame squared error {}.",
    None: "The price in image alignment was not measured, as no videos were sampled.",
}
_MOTION = {
    1: "Its videos move more: {}.",
    -1: "Its videos move less: {}.",
    0: "No difference in the motion of its videos is visible: {}.",
    None: "The motion of videos was not measured.",
}
_MOTION_ERROR = {
    1: "Their motion is further from that of the real clips: error {}.",
    -1: "Their motion is nearer to that of the real clips: error {}.",
    0: "No difference in how far their motion is from that of the real clips: error {}.",
    None: "The motion error was not measured.",
}
_SIGNS = {1: Outcome.HIGHER, -1: Outcome.LOWER, 0: Outcome.SAME}


def _by_sign(contrast: Contrast | None, about: str, texts: Mapping[int | None, str]) -> Finding:
    if contrast is None or contrast.difference.value is None:
        return Finding(about=about, outcome=Outcome.NOT_MEASURED, text=texts[None])
    sign = contrast.difference.sign
    unit = " px/frame" if about.startswith("motion") else ""
    text = texts[sign].format(_both(contrast, unit))
    return Finding(about=about, outcome=_SIGNS[sign], text=text)


def _control(share: ControlShare) -> Finding:
    """Say how much of a gain needs no dependence on time."""
    left = share.left.difference
    outcome = _SIGNS[left.sign]
    what = {
        "constant": "a constant noise of the same mean",
        "shuffled": "the same noise with t shuffled",
    }.get(share.preset, "its control")
    text = (
        f"{share.control}, {what}, has {_percent(share.motion_transfer)} of the gain in motion "
        f"transfer and {_percent(share.dominance)} of that in condition dominance. "
    )
    if outcome is Outcome.HIGHER:
        text += f"The dependence on time adds motion transfer: {_signed(left)}."
    elif outcome is Outcome.LOWER:
        text += f"The dependence on time costs motion transfer: {_signed(left)}."
    else:
        text += (
            "What the dependence on time adds to motion transfer cannot be told from nothing: "
            f"{_signed(left)}."
        )
    return Finding(about="control", outcome=outcome, text=text)


def summarise(verdicts: Sequence[Verdict], groups: Mapping[str, str]) -> str:
    """Put the leak of all arms into one sentence for the head of the page.

    Args:
        verdicts: of all arms.
        groups: name without the seed by arm; trainings of one group are counted together.
    """
    if not verdicts:
        return "One arm alone is described here: whether it leaks less than another was not asked."
    counted: dict[str, dict[Outcome, int]] = {}
    for verdict in verdicts:
        own = counted.setdefault(groups[verdict.arm], {})
        own[verdict.leak] = own.get(verdict.leak, 0) + 1
    words = {
        Outcome.LOWER: ("leaks less", "leak less"),
        Outcome.HIGHER: ("leaks more", "leak more"),
        Outcome.SAME: ("cannot be told apart", "cannot be told apart"),
        Outcome.CONTRADICTORY: ("gives contradictory measures", "give contradictory measures"),
    }
    parts: dict[tuple[str, str], list[str]] = {}
    for group, own in counted.items():
        total = sum(own.values())
        for outcome, count in own.items():
            often = "" if total == 1 else f" (in {count} of {total} trainings)"
            parts.setdefault(words[outcome], []).append(f"{group}{often}")
    reference = groups[verdicts[0].reference]
    sentences = [f"{_listed(names)} {what[len(names) > 1]}" for what, names in parts.items()]
    return f"Against {reference}: {'; '.join(sentences)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _both(contrast: Contrast, unit: str = "") -> str:
    """Write both values and their difference."""
    return (
        f"{_number(contrast.arm.value)} against {_number(contrast.reference.value)}{unit} "
        f"(difference {_signed(contrast.difference)})"
    )


def _signed(estimate: Estimate) -> str:
    if estimate.value is None:
        return "without a value"
    text = f"{estimate.value:+.3g}"
    if estimate.low is None or estimate.high is None:
        return f"{text} (no interval, n {estimate.n})"
    return f"{text} [{estimate.low:+.3g}, {estimate.high:+.3g}], n {estimate.n}"


def _percent(estimate: Estimate) -> str:
    if estimate.value is None:
        return "an unknown share"
    text = f"{100 * estimate.value:.0f}%"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _number(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3g}"
