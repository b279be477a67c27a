"""golden/metrics: distances of sets, Inception Score, cosines, motion error and the probe."""

import itertools
import json

import numpy as np
import pytest
import torch

from cil.metrics import (
    FeatureStatistics,
    condition_dominance,
    fit_line,
    frame_difference_ratio,
    frechet_distance,
    image_alignment,
    inception_score,
    kernel_distance,
    motion_error,
    motion_transfer_ratio,
    subject_consistency,
    temporal_consistency,
)

SETS = ("well", "n_lt_d", "i3d_like", "identical", "constant_dims", "big_offset")
TOLERANCE = {"well": 1e-7, "constant_dims": 1e-7, "big_offset": 1e-5}


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "metrics" / "expected.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "metrics" / "arrays.npz") as loaded:
        return dict(loaded)


def statistics(rows, bounds=(0, None)):
    return [
        FeatureStatistics().update(rows[start:end]) for start, end in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("merged", [False, True])
def test_frechet_distance(arrays, expected, name, ddof, merged):
    real, fake = arrays[f"{name}_real"], arrays[f"{name}_fake"]
    if merged:
        real, fake = statistics(real)[0], statistics(fake)[0]
    truth = expected["frechet"][name][f"ddof{ddof}"]
    assert frechet_distance(real, fake, ddof=ddof) == pytest.approx(
        truth, rel=TOLERANCE.get(name, 1e-6), abs=1e-6 if name == "identical" else 0
    )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["unbiased", "biased"])
def test_kernel_distance(arrays, expected, name, kind):
    found = kernel_distance(
        arrays[f"{name}_real"], arrays[f"{name}_fake"], unbiased=kind == "unbiased"
    )
    relative = 1e-3 if name == "big_offset" else 1e-8
    assert found == pytest.approx(expected["kvd"][name][kind], rel=relative, abs=1e-12)


def test_extrapolation_to_infinitely_many_clips(arrays, expected):
    truth, sizes = expected["fvd_inf"], arrays["fvdinf_n"].astype(int)
    ends = np.cumsum(sizes)
    values = [
        frechet_distance(
            arrays["well_real"][arrays["fvdinf_real_idx"][end - size : end]],
            arrays["well_fake"][arrays["fvdinf_fake_idx"][end - size : end]],
            ddof=1,
        )
        for size, end in zip(sizes, ends, strict=True)
    ]
    assert values == pytest.approx(truth["values"], rel=1e-6)
    intercept, slope = fit_line(sizes, values)
    assert (intercept, slope) == pytest.approx((truth["intercept"], truth["slope"]), rel=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_merging_shards(arrays, expected, order):
    rows = arrays["i3d_like_real"][:, :24]
    shards = statistics(rows, expected["merge"]["shard_bounds"])
    assert sorted(shard.count for shard in shards)[:2] == [0, 1]
    whole = FeatureStatistics()
    for place in order:
        whole.merge(shards[place])
    wide = rows.astype(np.float64)
    assert whole.count == len(rows)
    np.testing.assert_allclose(whole.mean, wide.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(whole.covariance(1), np.cov(wide.T), rtol=1e-10, atol=1e-12)
    truth = expected["merge"]
    assert whole.mean[:4] == pytest.approx(truth["mean_first4"], rel=1e-10)
    assert np.trace(whole.covariance(0)) == pytest.approx(truth["cov_ddof0_trace"], rel=1e-10)
    assert np.linalg.norm(whole.covariance(1)) == pytest.approx(truth["cov_ddof1_fro"], rel=1e-10)


@pytest.mark.parametrize("case", ["plain", "saturated", "uniform", "collapsed"])
def test_inception_score(arrays, expected, case):
    for name, truth in expected["inception_score"][case].items():
        score = inception_score(arrays[f"logits_{case}"], splits=int(name.removeprefix("splits")))
        assert score.per_split == pytest.approx(truth["per_split"], rel=1e-8)
        assert score.value == pytest.approx(truth["mean"], rel=1e-8)
        assert score.std_ddof0 == pytest.approx(truth["std_ddof0"], rel=1e-8, abs=1e-12)
        assert score.std_ddof1 == (
            truth["std_ddof1"] and pytest.approx(truth["std_ddof1"], rel=1e-8)
        )


def test_cosines(arrays, expected):
    frames, image, truth = arrays["emb_frames"], arrays["emb_cond"], expected["cosine"]
    assert image_alignment(frames, image) == pytest.approx(truth["image_alignment"], abs=1e-9)
    assert temporal_consistency(frames) == pytest.approx(truth["temporal_consistency"], abs=1e-9)
    assert subject_consistency(frames) == pytest.approx(
        truth["vbench_style_subject_consistency"], abs=1e-9
    )


def test_motion_error(arrays, expected):
    found, truth = motion_error(arrays["ms_in"], arrays["ms_out"]), expected["motion_error"]
    assert found.mean == pytest.approx(truth["mean_error"], rel=1e-12)
    assert found.mean_absolute == pytest.approx(truth["mean_abs_error"], rel=1e-12)
    assert found.sem == pytest.approx(truth["sem"], rel=1e-12)
    assert found.ratio_of_means == pytest.approx(truth["mean_ratio_of_means"], rel=1e-12)
    assert found.pearson == pytest.approx(truth["pearson"], abs=1e-12)


def test_probe(arrays, expected):
    x0, y, p, ps, py, px = (
        torch.from_numpy(arrays[f"probe_{name}"]) for name in ("x0", "y", "p", "ps", "py", "px")
    )
    truth = expected["probe"]
    assert float(motion_transfer_ratio(p, ps, x0, y)) == pytest.approx(truth["mtr"], rel=1e-6)
    assert float(condition_dominance(p, py, px)) == pytest.approx(truth["cond_dominance"], rel=1e-6)
    assert float(frame_difference_ratio(p, x0)) == pytest.approx(
        truth["frame_diff_ratio"], rel=1e-6
    )
