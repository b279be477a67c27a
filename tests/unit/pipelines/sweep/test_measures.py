import math

import numpy as np
import pytest

from pipelines.config import RunConfig, validate_config
from pipelines.sweep.measures import MEASURES, Measure, measures_of, over_seeds


def record(num_videos=4, *, still=False, leak=True):
    generator = np.random.default_rng(3)
    videos = [
        {
            "motion_real": 0.0 if still else float(real),
            "motion_sample": float(made),
            "consistent_share": 0.9,
        }
        for real, made in generator.uniform(1, 3, (num_videos, 2))
    ]
    real = np.array([video["motion_real"] for video in videos])
    made = np.array([video["motion_sample"] for video in videos])
    metrics = {"val_loss": 0.5, "val_loss_error": 0.05, "val_loss_clean": 0.4}
    metrics["val_loss_clean_error"] = 0.04
    if leak:
        for name in ("val_motion_transfer", "val_condition_dominance", "val_one_step_motion"):
            metrics[name] = 0.3
    if num_videos:
        metrics["val_motion_real"] = real.mean()
        metrics["val_motion_sample"] = made.mean()
        metrics["val_consistent_share"] = 0.9
    if num_videos and not still:
        metrics["val_motion_ratio"] = made.mean() / real.mean()
        metrics["val_motion_error"] = np.abs(made - real).mean() / real.mean()
    counts = {"loss": 16, "leak": 16 if leak else 0, "videos": num_videos}
    return {"metrics": metrics, "n": counts, "videos": videos}


def found(validation, **settings):
    config = validate_config(settings, source="test")
    return measures_of(config, [4.0] * 90 + [1.0] * 10, validation, "no clips are held out")


def test_every_measure_is_there_with_its_number():
    measures = found(record())
    assert list(measures) == ["train_loss", *[name for name in MEASURES if name != "train_loss"]]
    assert (measures["train_loss"].value, measures["train_loss"].n) == (1.0, 10)
    assert measures["train_loss"].error is None
    assert "not independent" in measures["train_loss"].absent
    clean = measures["val_loss_clean"]
    assert (clean.value, clean.error, clean.n, clean.over) == (0.4, 0.04, 16, "clips")
    assert measures["val_motion_transfer"].error is None
    assert "one ratio of sums" in measures["val_motion_transfer"].absent
    assert all(each.value is not None for each in measures.values())


def jackknife(values, statistic):
    """Standard error by leaving one out, which knows nothing of the formula under test."""
    left_out = [statistic(np.delete(values, index, axis=0)) for index in range(len(values))]
    count = len(values)
    spread = np.sum((np.array(left_out) - np.mean(left_out)) ** 2)
    return math.sqrt((count - 1) / count * spread)


def test_errors_of_ratios_are_those_of_the_jackknife():
    validation = record(400)
    measures = found(validation)
    pairs = np.array([(v["motion_sample"], v["motion_real"]) for v in validation["videos"]])
    expected = {
        "val_motion_ratio": jackknife(pairs, lambda v: v[:, 0].mean() / v[:, 1].mean()),
        "val_motion_error": jackknife(
            pairs, lambda v: np.abs(v[:, 0] - v[:, 1]).mean() / v[:, 1].mean()
        ),
        "val_motion_real": jackknife(pairs, lambda v: v[:, 1].mean()),
        "val_motion_sample": jackknife(pairs, lambda v: v[:, 0].mean()),
    }
    for name, error in expected.items():
        assert measures[name].error == pytest.approx(error, rel=0.01), name
        assert (measures[name].n, measures[name].over) == (400, "videos")


def test_samples_in_proportion_to_the_real_motion_have_a_ratio_without_error():
    validation = record(5)
    for video in validation["videos"]:
        video["motion_sample"] = 0.5 * video["motion_real"]
    assert found(validation)["val_motion_ratio"].error == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("validation", "settings", "name", "words"),
    [
        (None, {}, "val_loss_clean", "no clips are held out"),
        (record(0), {"validate.num_videos": 0}, "val_motion_ratio", "validate.num_videos is 0"),
        (record(still=True), {}, "val_motion_ratio", "no real clip moves"),
        (record(leak=False), {}, "val_motion_transfer", "two held-out clips"),
    ],
)
def test_what_is_absent_says_why(validation, settings, name, words):
    nested = {"validate": {key.partition(".")[2]: value for key, value in settings.items()}}
    measure = found(validation, **nested)[name]
    assert measure.value is None
    assert measure.error is None
    assert words in measure.absent


def test_one_video_has_no_standard_error():
    measure = found(record(1))["val_motion_sample"]
    assert measure.value is not None
    assert measure.error is None
    assert "one video" in measure.absent


def test_seeds_are_averaged_with_the_error_between_them():
    measures = [Measure(value=value, error=9.0, n=16, over="clips") for value in (1.0, 2.0, 6.0)]
    total = over_seeds(measures)
    assert (total.value, total.n, total.over) == (3.0, 3, "seeds")
    assert total.error == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert over_seeds(measures[:1]) == measures[0]


def test_a_seed_without_the_measure_is_left_out():
    none = Measure(value=None, absent="why")
    assert over_seeds([none, none]) == none
    assert over_seeds([none, Measure(value=2.0)]).n == 1
    assert over_seeds([Measure(value=1.0), none, Measure(value=2.0)]).n == 2


def test_a_training_without_metrics_says_so():
    measure = measures_of(RunConfig(), [], None, "x")["train_loss"]
    assert measure.value is None
    assert "gone" in measure.absent
