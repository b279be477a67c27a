import dataclasses
from pathlib import Path

import pytest

from cil.errors import ConfigError
from pipelines.config import dataset_of
from pipelines.dataset_identity import settings_identity
from pipelines.tracking import tracking_uri


def refused(make_sweep, arms, **more):
    with pytest.raises(ConfigError) as caught:
        make_sweep(arms, **more)
    return str(caught.value)


def test_each_arm_and_seed_is_a_run_of_its_own_on_the_same_data(make_sweep, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = make_sweep({"naive": {"time_noise.preset": "none"}, "base": {}}, seeds=[1, 0])
    # seed after seed, so that what is done first is a whole comparison
    assert [(run.arm, run.seed) for run in sweep.runs] == [
        ("naive", 1),
        ("base", 1),
        ("naive", 0),
        ("base", 0),
    ]
    arms = tmp_path / "out" / "sweep" / "arms"
    assert sweep.runs[0].folder == arms / "naive" / "seed-1"
    assert len({run.folder for run in sweep.runs}) == 4
    for run in sweep.runs:
        assert run.shares_data
        assert dataset_of(run.config) == dataset_of(sweep.base)
        assert tracking_uri(run.config) == tracking_uri(sweep.base)
        assert run.config.read.cache == str(tmp_path / "out" / "cache")
        assert run.config.train == sweep.base.train
    assert sweep.runs[0].config.time_noise.preset == "none"
    assert sweep.runs[1].config.time_noise == sweep.base.time_noise


def test_what_differs_is_named(make_sweep):
    sweep = make_sweep({"a": {"time_noise.preset": "cdm", "model.layers_per_block": 2}, "b": {}})
    first, second = sweep.arms
    assert {each.setting: (each.base, each.arm) for each in first.differences} == {
        "time_noise.preset": ("mild", "cdm"),
        "model.layers_per_block": (sweep.base.model.layers_per_block, 2),
    }
    assert first.unfair == []
    assert second.differences == ()


@pytest.mark.parametrize(
    "setting",
    [
        {"train.num_steps": 5},
        {"train.global_batch_size": 8},
        {"seed": 1},
        {"data.height": 64},
        {"decode.backend": "pyav"},
        {"select.min_motion": 1.0},
        {"encode.latents_dtype": "float32"},
        {"first_stage.latent_channels": 3},
        {"model.cross_attention_dim": 16},
        {"train.bucket": "32x32x8"},
        {"validate.held_out_fraction": 0.2},
        {"validate.num_clips": 3},
    ],
)
def test_an_unfair_arm_is_refused_unless_it_is_meant(make_sweep, setting):
    (name,) = setting
    message = refused(make_sweep, {"other": setting, "base": {}})
    assert "arm other would not be compared fairly" in message
    assert f"\n  {name}: " in message
    assert "allow_different: true" in message
    sweep = make_sweep({"other": setting, "base": {}}, allow_different=True)
    assert sweep.arms[0].unfair == [name]


def test_settings_that_decide_the_data_set_are_all_unfair(make_sweep):
    """Against the identity of the data set: what is in it must not pass as fair."""
    base = make_sweep({"a": {}}).base
    fair = make_sweep(
        {
            "a": {
                "time_noise.preset": "cdm",
                "train.learning_rate": 1e-4,
                "sample.start_time": 0.5,
                "model.p_mean": 0.1,
                "train.zero_stage": 1,
            }
        }
    )
    assert settings_identity(fair.runs[0].config) == settings_identity(base)
    changes = {
        "data.fps": 4.0,
        "data.buckets": ["32x32x8"],
        "data.num_frames": 4,
        "data.clip_stride": 2,
        "select.score_only": True,
        "encode.posterior": "mean",
        "encode.videos_per_shard": 3,
        "first_stage.patch_size": 8,
        "first_stage.fit_videos": 3,
    }
    for name, value in changes.items():
        sweep = make_sweep({"a": {name: value}}, allow_different=True)
        if settings_identity(sweep.runs[0].config) != settings_identity(base):
            assert sweep.arms[0].unfair == [name]
            assert not sweep.runs[0].shares_data
        assert name in refused(make_sweep, {"a": {name: value}})


def test_an_arm_with_other_data_gets_its_own_data_set(make_sweep, tmp_path):
    sweep = make_sweep({"wide": {"data.width": 64}, "base": {}}, allow_different=True, seeds=[0, 1])
    places = {(run.arm, dataset_of(run.config)) for run in sweep.runs}
    assert places == {
        ("wide", str(tmp_path / "out" / "sweep" / "arms" / "wide" / "dataset")),
        ("base", str(tmp_path / "out" / "dataset")),
    }


def test_an_arm_with_its_own_seed_is_trained_with_that_alone(make_sweep):
    sweep = make_sweep({"a": {"seed": 5}, "b": {}}, allow_different=True, seeds=[0, 1])
    assert [(run.arm, run.seed) for run in sweep.runs] == [("a", 5), ("b", 0), ("b", 1)]


@pytest.mark.parametrize(
    "setting", ["output.dir", "output.dataset", "tracking.model_name", "cluster.address"]
)
def test_places_are_not_for_arms(make_sweep, setting):
    message = refused(make_sweep, {"a": {setting: "x"}}, allow_different=True)
    assert f"arm a: {setting} cannot differ between arms" in message


def test_all_arms_are_looked_at_and_named(make_sweep):
    message = refused(
        make_sweep,
        {"first": {"time_nose.preset": "none"}, "ok": {}, "third": {"train.learning_rate": -1}},
    )
    assert "arm first" in message
    assert "time_nose: unknown key; did you mean time_noise?" in message
    assert "arm third" in message
    assert "train.learning_rate: must be greater than 0, got -1" in message


def test_two_arms_that_are_the_same_are_refused(make_sweep):
    message = refused(make_sweep, {"a": {}, "b": {"train.num_steps": 4}})
    assert "the arms a and b are the same" in message


def test_the_example_is_a_sweep():
    from pipelines.sweep.arms import plan_sweep
    from pipelines.sweep.sweep_file import read_sweep_file

    file = read_sweep_file(Path(__file__).parents[4] / "configs" / "compare.yaml")
    sweep = plan_sweep(file, file.base)
    presets = {run.config.time_noise.preset for run in sweep.runs}
    assert {
        "none",
        "constant",
        "lognormal",
        "cdm",
        "shuffled",
        "mild",
        "paper-svd-fixed",
    } <= presets
    for run in sweep.runs:
        same = dataclasses.replace(run.config, time_noise=sweep.base.time_noise)
        assert same.train == sweep.base.train
        assert same.seed == sweep.base.seed


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("demo_arms", ["none", "constant", "shuffled", "mild"]),
        ("demo_quick", ["none", "mild"]),
    ],
)
def test_the_demo_compares_laws_of_noise_and_nothing_else(name, presets):
    from pipelines.sweep.arms import plan_sweep
    from pipelines.sweep.sweep_file import read_sweep_file

    file = read_sweep_file(Path(__file__).parents[4] / "configs" / f"{name}.yaml")
    sweep = plan_sweep(file, file.base)
    assert [run.config.time_noise.preset for run in sweep.runs] == presets
    for arm in sweep.arms:
        assert {each.setting.partition(".")[0] for each in arm.differences} <= {"time_noise"}
    assert sweep.arms[-1].name == "timenoise"
    assert sweep.arms[-1].differences == ()
    laws = {run.config.time_noise.law() for run in sweep.runs}
    assert len(laws) == len(presets)
