import numpy as np
import pytest

from cil.metrics.frechet import frechet_distance
from cil.metrics.inception import inception_score
from pipelines.evaluate.arms import Arm
from pipelines.evaluate.clip_set import EvaluationSet
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.summary import summarise

REASONS = {
    name: f"evaluate.{name} is not set"
    for name in ("i3d", "videomae", "features", "c3d", "raft", "clip", "dino")
}


def row(arm, clip, seed=0, *, motion=1.0, real=2.0, flags="", flags_real="", **more):
    values = dict.fromkeys(
        ("motion_median", "first_transition", "jump", "consistent_share", "ssim", "histogram",
         "alignment_mse", "luminance", "luminance_real"), 0.5,
    )  # fmt: skip
    return {
        **values,
        "arm": arm,
        "start_time": 1.0,
        "analytic_init": True,
        "clip_key": clip,
        "seed": seed,
        "motion": motion,
        "motion_consistent": motion / 2,
        "motion_real": real,
        "motion_real_consistent": real / 2,
        "moves": motion > 1,
        "moves_real": True,
        "flags": flags,
        "flags_real": flags_real,
        **more,
    }


def summary(rows, features=None, **extractors):
    clips = tuple(dict.fromkeys(row["clip_key"] for row in rows))
    chosen = EvaluationSet(
        clips=clips, seeds=(0,), bucket="8x8x8", fps=8.0, reference="latents", chosen_from={}
    )
    names = dict.fromkeys(row["arm"] for row in rows)
    known = {name: {"sha256": "a" * 64, "preprocessing": "plain"} for name in extractors}
    return summarise(
        rows,
        features or {},
        EvaluateConfig(bootstrap_samples=100, inception_splits=2),
        chosen=chosen,
        arms=[Arm(name=n, kind="model", folder=None, identity=n) for n in names],
        extractors=known,
        absent={name: text for name, text in REASONS.items() if name not in known},
        seed=0,
    )


def measures(found, number=0):
    return found["results"][number]["measures"]


def test_seeds_of_a_clip_count_once():
    rows = [row("a", "x", 0, motion=1.0), row("a", "x", 1, motion=3.0), row("a", "y", motion=6.0)]
    motion = measures(summary(rows))["motion"]
    assert motion["value"] == pytest.approx(4.0)
    assert motion["n"] == 2


def test_motion_is_compared_with_the_real_clip():
    rows = [row("a", "x", motion=1.0, real=2.0), row("a", "y", motion=6.0, real=4.0)]
    found = measures(summary(rows))
    assert found["motion_error"]["value"] == pytest.approx(0.5)
    assert found["motion_error_absolute"]["value"] == pytest.approx(1.5)
    assert found["motion_error_consistent"]["value"] == pytest.approx(0.75)
    assert found["motion_ratio"]["value"] == pytest.approx(7 / 6)
    assert found["dynamic_degree_dis"]["value"] == pytest.approx(0.5)


def test_still_clips_have_no_ratio_and_never_a_zero():
    found = measures(summary([row("a", "x", real=0.0), row("a", "y", real=0.0)]))
    assert found["motion_ratio"]["value"] is None
    assert found["motion_ratio"]["absent"] == "no real clip moves"


def test_unusable_videos_are_counted_and_in_no_mean():
    nothing = dict.fromkeys(("motion", "motion_consistent", "ssim", "jump"))
    rows = [
        row("a", "x", motion=1.0),
        row("a", "y", motion=99.0, flags="black flat"),
        {**row("a", "z", flags="not_finite"), **nothing},
        row("a", "w", motion=3.0, flags="jump"),
    ]
    found = summary(rows)
    motion = measures(found)["motion"]
    assert motion["value"] == pytest.approx(2.0)
    assert motion["n"] == 2
    assert "2 of 4 videos are black or not finite and not in it" in motion["warnings"]
    assert any("1 of 2 videos are flagged jump" in warning for warning in motion["warnings"])
    assert found["results"][0]["flags"] == {"black": 1, "flat": 1, "jump": 1, "not_finite": 1}


def test_a_black_real_clip_is_not_compared_with():
    rows = [row("a", "x", motion=1.0), row("a", "y", motion=5.0, real=0.1, flags_real="black")]
    found = measures(summary(rows))
    assert found["motion_error"]["value"] == pytest.approx(-1.0)
    assert found["motion"]["value"] == pytest.approx(3.0)


def test_nothing_usable_is_absent():
    rows = [row("a", "x", flags="black"), row("a", "y", flags="black")]
    found = measures(summary(rows))
    assert found["motion"]["value"] is None
    assert "every video" in found["motion"]["absent"]


def test_arms_are_compared_pair_by_pair():
    base = [row("a", clip, motion=1.0 + number) for number, clip in enumerate("uvwxyz")]
    tuned = [row("b", clip, motion=2.0 + number) for number, clip in enumerate("uvwxyz")]
    tuned[-1]["flags"] = "black"
    (found,) = summary([*base, *tuned[::-1]])["comparisons"]
    assert (found["arm"], found["against"]["arm"]) == ("b", "a")
    motion = found["differences"]["motion"]
    assert motion["mean"] == pytest.approx(1.0)
    assert (motion["low"], motion["high"]) == pytest.approx((1.0, 1.0))
    assert motion["n"] == motion["num_positive"] == 5
    assert motion["p"] == pytest.approx(2 * 0.5**5)
    assert motion["left_out"] == 1


@pytest.fixture
def sets():
    """Features of 20 real clips and of two videos of each."""
    generator = np.random.default_rng(0)
    rows = [row("a", f"clip {number}", seed) for number in range(20) for seed in (0, 1)]
    real, made = generator.normal(size=(20, 3)), generator.normal(size=(40, 3)) + 1
    return rows, real, made


def test_distances_take_one_video_of_each_clip(sets):
    rows, real, made = sets
    features = {"real": {"i3d": real}, "a|1|1": {"i3d": made}}
    fvd = measures(summary(rows, features, i3d=True))["fvd"]
    assert fvd["value"] == pytest.approx(frechet_distance(real, made[::2]))
    assert (fvd["n"], fvd["ddof"]) == (20, 0)
    assert (fvd["extractor_sha256"], fvd["preprocessing"]) == ("a" * 64, "plain")


def test_a_video_that_is_not_finite_takes_its_clip_out_of_both_sets(sets):
    rows, real, made = sets
    made[6] = np.nan
    features = {"real": {"i3d": real}, "a|1|1": {"i3d": made}}
    fvd = measures(summary(rows, features, i3d=True))["fvd"]
    kept = [number for number in range(20) if number != 3]
    assert fvd["value"] == pytest.approx(frechet_distance(real[kept], made[::2][kept]))
    assert any("1 of 20 clips are left out" in warning for warning in fvd["warnings"])


def test_too_few_clips_make_a_distance_absent_with_the_reason(sets):
    rows, real, made = sets
    features = {"real": {"i3d": real[:1]}, "a|1|1": {"i3d": made[:2]}}
    found = measures(summary(rows[:2], features, i3d=True))
    assert found["fvd"]["value"] is None
    assert "at least 2 clips" in found["fvd"]["absent"]
    assert found["videomae_frechet"]["absent"] == "evaluate.videomae is not set"


def test_the_inception_score_takes_all_videos(sets):
    rows, real, made = sets
    scores = np.exp(made) / np.exp(made).sum(axis=1, keepdims=True)
    features = {"real": {"c3d": real}, "a|1|1": {"c3d": scores}}
    found = measures(summary(rows, features, c3d=True))["inception_score"]
    own = inception_score(scores, splits=2, probabilities=True, seed=0)
    assert found["value"] == pytest.approx(own.value)
    assert found["n"] == 40
