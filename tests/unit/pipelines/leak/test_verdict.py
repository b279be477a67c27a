"""The rules of the verdict on made-up contrasts, and on made-up series whose leak is known."""

import numpy as np
import pytest

from pipelines.leak.evidence import Contrast, ControlShare, Evidence, Resampling, gather
from pipelines.leak.probe_table import probe_table
from pipelines.leak.resamples import Estimate
from pipelines.leak.verdict import Outcome, decide, summarise


def estimate(value, reach=0.05):
    return Estimate(value=value, low=value - reach, high=value + reach, n=20)


def contrast(difference, reach=0.05):
    return Contrast(
        arm=estimate(0.5 + difference),
        reference=estimate(0.5),
        difference=estimate(difference, reach),
        p=0.01,
    )


def evidence(transfer, dominance, *, controls=(), **more):
    contrasts = {
        "motion_transfer_ratio": contrast(transfer),
        "condition_dominance": contrast(dominance),
        "one_step_mse": contrast(0.0),
        **{name: contrast(value) for name, value in more.items()},
    }
    return Evidence(arm="tuned", reference="base", contrasts=contrasts, controls=tuple(controls))


@pytest.mark.parametrize(
    ("transfer", "dominance", "outcome"),
    [
        (0.2, -0.2, Outcome.LOWER),
        (0.2, 0.0, Outcome.LOWER),
        (-0.2, 0.2, Outcome.HIGHER),
        (-0.2, 0.0, Outcome.HIGHER),
        (0.2, 0.2, Outcome.CONTRADICTORY),
        (-0.2, -0.2, Outcome.CONTRADICTORY),
        (0.02, -0.4, Outcome.SAME),  # condition dominance alone decides nothing
        (0.02, 0.4, Outcome.SAME),
        (0.04, -0.04, Outcome.SAME),
    ],
)
def test_the_leak(transfer, dominance, outcome):
    verdict = decide(evidence(transfer, dominance))
    assert verdict.leak is outcome
    assert verdict.findings[0].about == "leak"


def test_dominance_alone_is_explained():
    text = decide(evidence(0.0, -0.4)).findings[0].text
    assert "alone it decides nothing" in text
    assert "decides nothing" not in decide(evidence(0.0, 0.0)).findings[0].text


@pytest.mark.parametrize(
    ("measure", "difference", "outcome", "words"),
    [
        ("alignment_mse", 0.2, Outcome.HIGHER, "The price"),
        ("alignment_mse", -0.2, Outcome.LOWER, "more closely"),
        ("alignment_mse", 0.01, Outcome.SAME, "No price in image alignment is visible"),
        ("motion", 0.2, Outcome.HIGHER, "move more"),
        ("motion", 0.01, Outcome.SAME, "No difference in the motion"),
        ("motion_error", -0.2, Outcome.LOWER, "nearer"),
        ("one_step_mse", 0.2, Outcome.HIGHER, "worse"),
    ],
)
def test_every_other_finding_is_the_sign_of_one_interval(measure, difference, outcome, words):
    found = decide(evidence(0.2, -0.2, **{measure: difference})).findings
    (finding,) = [each for each in found if words in each.text]
    assert finding.outcome is outcome
    assert f"{difference:+.3g}" in finding.text
    assert "n 20" in finding.text


def test_what_was_not_measured_is_said():
    found = {each.about: each for each in decide(evidence(0.2, -0.2)).findings}
    for about in ("alignment", "motion", "motion error"):
        assert found[about].outcome is Outcome.NOT_MEASURED
        assert "not measured" in found[about].text


def share(left):
    return ControlShare(
        control="fixed",
        preset="constant",
        motion_transfer=estimate(0.8, 0.1),
        dominance=estimate(0.7, 0.1),
        left=contrast(left),
        left_dominance=contrast(0.0),
    )


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (0.1, "adds motion transfer: +0.1"),
        (0.01, "cannot be told from nothing"),
        (-0.1, "costs motion transfer"),
    ],
)
def test_controls_are_stated_where_there_is_a_gain(left, words):
    (finding,) = [
        each
        for each in decide(evidence(0.2, -0.2, controls=[share(left)])).findings
        if each.about == "control"
    ]
    assert words in finding.text
    assert "80% [70, 90] of the gain in motion transfer" in finding.text
    assert "a constant noise of the same mean" in finding.text
    same = decide(evidence(0.0, 0.0, controls=[share(left)]))
    assert not [each for each in same.findings if each.about == "control"]


# -- from series to words -------------------------------------------------------------------------


def judged(rows_of, strength, **made):
    rows, keys = rows_of(strength, **made)
    arms = [
        Plain(name, None if number == 0 else next(iter(strength)))
        for number, name in enumerate(strength)
    ]
    (found,) = gather(arms, probe_table(rows, keys), None, Resampling(seed=0, num=400, level=0.95))
    return decide(found)


class Plain:
    """An arm as far as `gather` looks at it."""

    preset = "mild"
    controls = ()

    def __init__(self, name, reference):
        self.name, self.reference = name, reference


def test_series_that_differ_are_told_apart_and_equal_ones_are_not(rows_of):
    assert judged(rows_of, {"base": 0.3, "tuned": 0.6}).leak is Outcome.LOWER
    assert judged(rows_of, {"base": 0.6, "tuned": 0.3}).leak is Outcome.HIGHER
    assert judged(rows_of, {"base": 0.5, "tuned": 0.5}).leak is Outcome.SAME


def test_few_clips_decide_nothing(rows_of):
    assert judged(rows_of, {"base": 0.3, "tuned": 0.6}, clips=8).leak is Outcome.LOWER
    assert judged(rows_of, {"base": 0.3, "tuned": 0.6}, clips=7).leak is Outcome.SAME


def test_by_chance_equal_arms_are_told_apart_about_as_often_as_the_level_says(rows_of):
    wrong = 0
    for seed in range(40):
        strength = {f"base{seed}": 0.5, f"tuned{seed}": 0.5}
        wrong += judged(rows_of, strength, seed=seed, clips=12).leak is not Outcome.SAME
    assert wrong <= 8  # 5% of 40 are 2; small samples make intervals a little short


def test_the_share_of_a_control_is_that_of_the_series(make_study, arm_folders, tmp_path):
    from pipelines.config import RunConfig

    study = make_study(arm_folders, RunConfig(), tmp_path)
    found = next(each for each in study.evidence if each.arm == "timenoise")
    by_name = {each.control: each for each in found.controls}
    assert set(by_name) == {"constant", "shuffled"}
    assert by_name["constant"].motion_transfer.value == pytest.approx(0.32 / 0.40, abs=0.08)
    assert by_name["shuffled"].motion_transfer.value == pytest.approx(0.33 / 0.40, abs=0.08)
    text = next(v for v in study.verdicts if v.arm == "timenoise").findings[-1].text
    assert "with t shuffled" in text


def test_arms_of_a_seed_are_compared_with_the_reference_of_that_seed(
    make_study, arm_folders, tmp_path
):
    from pipelines.config import RunConfig

    names = ("none/seed-0", "timenoise/seed-0", "none/seed-1", "timenoise/seed-1")
    study = make_study(arm_folders, RunConfig(), tmp_path, names=names)
    assert {v.arm: v.reference for v in study.verdicts} == {
        "timenoise/seed-0": "none/seed-0",
        "timenoise/seed-1": "none/seed-1",
    }
    assert study.headline == "Against none: timenoise (in 2 of 2 trainings) leaks less."


def test_the_head_of_the_page():
    def verdict(arm, leak):
        return decide(evidence(*{"lower": (0.2, -0.2), "same": (0.0, 0.0)}[leak])).__class__(
            arm=arm,
            reference="none",
            leak=Outcome.LOWER if leak == "lower" else Outcome.SAME,
            findings=(),
        )

    groups = {"a": "a", "b": "b", "c": "c", "none": "none"}
    text = summarise([verdict("a", "lower"), verdict("b", "lower"), verdict("c", "same")], groups)
    assert text == "Against none: a and b leak less; c cannot be told apart."
    assert "was not asked" in summarise([], groups)


def test_a_number_that_is_missing_is_refused(rows_of):
    from cil.errors import DataError

    rows, keys = rows_of({"base": 0.5}, times=(0.7, 0.8, 0.9))
    rows[1]["sums"]["one_step_mse"][0][2] = np.nan
    with pytest.raises(DataError, match=r"one_step_mse of arm base at t 0\.8"):
        probe_table(rows, keys)
