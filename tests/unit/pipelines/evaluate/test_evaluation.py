import csv
import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError
from cil.generate import generate_latents
from cil.metrics.motion import motion_score
from cil.models import load
from pipelines.dataset import open_training_data
from pipelines.evaluate.arms import parse_arms
from pipelines.evaluate.evaluation import COLUMNS
from pipelines.validation_clips import sample_id
from pipelines.video_io import read_image


def test_every_arm_setting_clip_and_seed_has_a_row(finished):
    rows = finished.rows
    assert [row["arm"] for row in rows] == ["base"] * 16 + ["tuned"] * 16
    assert {(row["start_time"], row["analytic_init"]) for row in rows} == {(1.0, True), (0.9, True)}
    assert (
        len({(row["arm"], row["start_time"], row["clip_key"], row["seed"]) for row in rows}) == 32
    )
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert pq.ParquetFile(finished.folder / "per_clip.parquet").read().to_pylist() == rows
    with (finished.folder / "per_clip.csv").open() as file:
        assert [float(row["motion"]) for row in csv.DictReader(file)] == [r["motion"] for r in rows]


def test_a_video_is_what_the_library_samples_from_the_image(finished, other_model):
    row = next(row for row in finished.rows if row["arm"] == "tuned" and row["start_time"] == 0.9)
    torch.set_num_threads(1)
    model = load("tiny", other_model)
    (latents,) = generate_latents(
        model,
        read_image(finished.folder / row["image"]),
        seed=row["seed"],
        sample_ids=[sample_id(row["clip_key"])],
        start_time=0.9,
        analytic_init=AnalyticInit.load(other_model / "analytic_init.safetensors"),
        num_steps=2,
    )
    frames = np.load(finished.folder / row["video"])["frames"]
    assert np.array_equal(frames, model.first_stage.decode(latents))
    assert row["motion"] == motion_score(frames).value
    image = read_image(finished.folder / row["image"]) / 255
    assert row["alignment_mse"] == pytest.approx(np.mean((frames[0] / 255 - image) ** 2))


def test_seeds_of_a_clip_and_clips_of_a_seed_have_other_noise(finished):
    videos = [
        (finished.folder / row["video"]).read_bytes()
        for row in finished.rows
        if row["arm"] == "base" and row["start_time"] == 1.0
    ]
    assert len(set(videos)) == len(videos) == 8


def test_the_real_clip_is_the_same_for_all(finished):
    by_clip = {}
    for row in finished.rows:
        by_clip.setdefault(row["clip_key"], set()).add((row["motion_real"], row["video_real"]))
    assert all(len(found) == 1 for found in by_clip.values())
    row = finished.rows[0]
    real = np.load(finished.folder / row["video_real"])["frames"]
    assert row["motion_real"] == motion_score(real).value
    assert np.array_equal(read_image(finished.folder / row["image"]), real[0])


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished evaluation that a test may change."""
    folder = tmp_path / "evaluate"
    shutil.copytree(finished.folder, folder)
    return folder


@pytest.fixture
def settings(held_out_config, change):
    """What the finished evaluation was made with."""
    return change(held_out_config, evaluate={"seeds_per_clip": 2, "videos": "npz"})


STARTS = {"start_times": (1.0, 0.9), "analytic_init": (True,)}


def test_a_complete_evaluation_does_nothing(again, settings, two_arms, evaluate_here, finished):
    log = []
    found = evaluate_here(settings, two_arms, again, log=log, **STARTS)
    assert log == []
    assert found.reused
    assert found.rows == finished.rows
    assert found.metrics == finished.metrics


def test_what_is_missing_is_done_again_and_gives_the_same_bytes(
    again, settings, two_arms, evaluate_here, finished
):
    lost = sorted((again / "units").glob("*.parquet"))[3]
    name = lost.stem
    lost.unlink()
    (again / "per_clip.csv").unlink()
    log = []
    found = evaluate_here(settings, two_arms, again, log=log, **STARTS)
    assert [json.loads(row["unit"])["name"] for row in log] == [name]
    assert (found.num_done, found.reused) == (1, False)
    for file in ("per_clip.csv", "metrics.json", "set.json"):
        assert (again / file).read_bytes() == (finished.folder / file).read_bytes(), file


def test_a_lost_video_is_made_again(again, settings, two_arms, evaluate_here, finished):
    lost = again / finished.rows[5]["video"]
    content = np.load(lost)["frames"]
    lost.unlink()
    log = []
    evaluate_here(settings, two_arms, again, log=log, **STARTS)
    assert len(log) == 1
    assert np.array_equal(np.load(lost)["frames"], content)


def test_a_new_arm_leaves_the_others_alone(again, settings, two_arms, evaluate_here, model_folder):
    log = []
    third = parse_arms([f"again={model_folder}"], settings)
    found = evaluate_here(settings, [*two_arms, *third], again, log=log, **STARTS)
    assert log == []  # the same model: its units are there under the same names
    rows = {arm: [r for r in found.rows if r["arm"] == arm] for arm in ("base", "again")}
    assert [r["video"] for r in rows["base"]] == [r["video"] for r in rows["again"]]
    same = next(c for c in found.metrics["comparisons"] if c["arm"] == "again")
    assert same["differences"]["motion"]["mean"] == 0
    assert same["differences"]["motion"]["p"] == 1


def test_changed_weights_are_another_model(again, settings, evaluate_here, other_model, tmp_path):
    changed = tmp_path / "model"
    shutil.copytree(other_model, changed)
    (changed / "sampling.json").write_text(
        json.dumps({"start_time": 0.9, "analytic_init": True, "num_steps": 2})
    )
    log = []
    arms = parse_arms([f"tuned={changed}"], settings)
    evaluate_here(settings, arms, again, log=log, **STARTS)
    assert len(log) == 4


def test_arms_of_other_videos_are_refused_with_both_values(
    tmp_path, settings, evaluate_here, model_folder
):
    other = tmp_path / "model"
    shutil.copytree(model_folder, other)
    says = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**says, "num_frames": 16, "fps": 4.0}))
    arms = parse_arms([f"long={other}"], settings)
    with pytest.raises(
        ConfigError,
        match="arm long: its videos have num_frames 16 where the clips "
        "have 8, fps 4 where the clips have 8",
    ):
        evaluate_here(settings, arms, tmp_path / "evaluate")


def test_measures_have_intervals_and_absent_ones_their_reason(finished):
    results = finished.metrics["results"]
    assert [(r["arm"], r["start_time"]) for r in results] == [
        ("base", 1.0), ("base", 0.9), ("tuned", 1.0), ("tuned", 0.9),
    ]  # fmt: skip
    motion = results[0]["measures"]["motion"]
    own = [r["motion"] for r in finished.rows[:8]]
    assert motion["value"] == pytest.approx(np.mean(own))
    assert motion["low"] <= motion["value"] <= motion["high"]
    assert motion["n"] == 4
    fvd = results[0]["measures"]["fvd"]
    assert fvd["value"] is None
    assert fvd["absent"] == "evaluate.i3d is not set"
    against = [
        (c["arm"], c["start_time"], c["against"]["arm"], c["against"]["start_time"])
        for c in finished.metrics["comparisons"]
    ]
    assert against == [
        ("base", 0.9, "base", 1.0), ("tuned", 1.0, "base", 1.0), ("tuned", 0.9, "base", 0.9),
    ]  # fmt: skip
    assert finished.metrics["set"]["reference"] == "latents"


def test_a_network_that_gives_nan_is_flagged_and_has_no_numbers(
    settings, evaluate_here, other_model, tmp_path, change
):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(other_model, broken)
    (weights,) = (broken / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: value * float("nan") for name, value in tensors.items()}, weights)
    two = change(settings, evaluate={"num_clips": 2, "seeds_per_clip": 1})
    found = evaluate_here(two, parse_arms([f"broken={broken}"], two), tmp_path / "evaluate")
    assert [row["flags"] for row in found.rows] == ["not_finite"] * 2
    assert {row["motion"] for row in found.rows} == {row["video"] for row in found.rows} == {None}
    (result,) = found.metrics["results"]
    assert result["measures"]["motion"]["value"] is None
    assert result["flags"] == {"not_finite": 2}


def test_the_source_frames_can_be_the_real_clips(
    settings, evaluate_here, two_arms, encoded_run, tmp_path
):
    wanted = {"num_clips": 1, "reference": "source", "seeds_per_clip": 1}
    one = dataclasses.replace(settings, evaluate=dataclasses.replace(settings.evaluate, **wanted))
    found = evaluate_here(one, two_arms[:1], tmp_path / "evaluate")
    (row,) = found.rows
    (reader,) = open_training_data(one).held_out.values()
    record = reader.clip(reader.sample_keys().index(row["clip_key"])).record
    real = np.load(found.folder / row["video_real"])["frames"]
    assert np.array_equal(real, encoded_run.frames(record))
    assert np.array_equal(read_image(found.folder / row["image"]), real[0])
    assert found.metrics["set"]["reference"] == "source"
