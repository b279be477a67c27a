"""`cil leak` from models to files, with its workers in this process."""

import csv
import dataclasses
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest

from cil.errors import ConfigError
from cil.time_noise import TimeNoiseConfig
from pipelines.config import RunConfig, validate_config
from pipelines.evaluate import evaluation
from pipelines.evaluate.arms import parse_arms
from pipelines.evaluate.options import EvaluateOptions
from pipelines.leak import probe_units
from pipelines.leak.arms import describe_arms
from pipelines.leak.command import run_command


@pytest.fixture(scope="module")
def config(encoded_run):
    config = encoded_run.config
    return dataclasses.replace(
        config,
        validate=dataclasses.replace(config.validate, held_out_fraction=0.6),
        evaluate=dataclasses.replace(config.evaluate, bootstrap_samples=100),
        leak=dataclasses.replace(
            config.leak,
            times=(0.7, 0.8, 0.9),
            motion_times=(0.8,),
            clips_per_unit=3,
            num_sampled_clips=2,
            start_times=(1.0, 0.8),
            num_steps=2,
            num_shown=1,
        ),
    )


@pytest.fixture(scope="module")
def models(model_folder, tmp_path_factory):
    """Two models that say what they were trained with; the second has other weights."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("models")
    for name, preset, factor in (("none", "none", 1.0), ("timenoise", "mild", 0.5)):
        shutil.copytree(model_folder, root / name)
        noise = dataclasses.asdict(TimeNoiseConfig(preset=preset))
        (root / name / "time_noise.json").write_text(json.dumps(noise))
        (weights,) = (root / name / "unet").glob("*.safetensors")
        save_file({key: factor * value for key, value in load_file(weights).items()}, weights)
    return root


@pytest.fixture(scope="module")
def leak(config, models):
    """Runner of the command: folder -> report, units that were worked on."""

    def run(folder, names=("none", "timenoise")):
        worked = []

        def map_rows(rows, work, *, settings, **_):
            for row in rows:
                worked.append(row)
                columns = {k: np.array([v], dtype=object) for k, v in row.items()}
                yield work(columns, **settings)

        arms = tuple(f"{name}={models / name}" for name in names)
        with pytest.MonkeyPatch.context() as patch:
            for module in (probe_units, evaluation):
                patch.setattr(module, "map_rows", map_rows)
                patch.setattr(module, "ray_session", lambda *_, **__: nullcontext())
            return run_command(config, EvaluateOptions(arms=arms, out=str(folder))), worked

    return run


@pytest.fixture(scope="module")
def finished(leak, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leak") / "out"
    return folder, *leak(folder)


def test_everything_is_measured_and_written(finished):
    folder, report, _ = finished
    for name in ("report", "numbers", "table"):
        assert (folder / report.outputs[name].rpartition("/")[2]).stat().st_size > 500
    with (folder / "leak.csv").open() as file:
        rows = list(csv.DictReader(file))
    starts = {(r["start_time"], r["analytic_init"]) for r in rows if r["start_time"]}
    assert starts == {("1.0", "False"), ("0.8", "False"), ("0.8", "True")}  # M 1 once
    assert {r["t"] for r in rows if r["measure"] == "one_step_motion"} == {"0.8"}
    assert all(np.isfinite(float(r["value"])) for r in rows if r["value"])
    page = (folder / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == 3
    assert "Against none: timenoise" in page
    data = json.loads((folder / "leak.json").read_text())
    assert data["clips"]["sampled"] == data["clips"]["probed"][:2]


def test_the_second_command_does_nothing_again(finished, leak):
    folder, report, worked = finished
    assert worked
    assert not report.reused
    before = (folder / "leak.json").read_bytes()
    again, worked = leak(folder)
    assert again.reused
    assert worked == []
    assert (folder / "leak.json").read_bytes() == before


def test_one_arm_less_needs_no_work(finished, leak):
    folder, _, _ = finished
    _, worked = leak(folder, names=("timenoise",))
    assert worked == []
    leak(folder)


def test_videos_have_no_leak(config, tmp_path):
    arms = parse_arms([f"other=videos:{tmp_path}"], config)
    with pytest.raises(ConfigError, match="compare videos by `cil evaluate`"):
        describe_arms(arms)


def test_controls_are_known_by_what_they_were_trained_with(models, config, tmp_path):
    folders = {}
    for name, noise in {
        "reference": TimeNoiseConfig(preset="none"),
        "mine": TimeNoiseConfig(preset="mild", beta_m=2.0),
        "fixed": TimeNoiseConfig(preset="constant", beta_m=2.0),
        "mixed": TimeNoiseConfig(preset="shuffled", beta_m=2.0),
        "other": TimeNoiseConfig(preset="shuffled", beta_m=3.0),
    }.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "model.json").write_text(json.dumps({"family": "tiny"}))
        (folders[name] / "time_noise.json").write_text(json.dumps(dataclasses.asdict(noise)))
    arms = describe_arms(parse_arms([f"{n}={p}" for n, p in folders.items()], config))
    controls = {arm.name: arm.controls for arm in arms}
    assert controls.pop("mine") == ("fixed", "mixed")
    assert set(controls.values()) == {()}


def test_settings_that_do_not_fit_are_named_together():
    with pytest.raises(ConfigError) as caught:
        validate_config(
            {"leak": {"times": [0.7, 0.8, 0.8], "motion_times": [0.5]}}, source="the test"
        )
    text = str(caught.value)
    assert "leak.times must contain 0.7, 0.8 and 0.9" in text
    assert "add 0.9" in text
    assert "leak.motion_times must be among" in text
    assert "leak.times must differ" in text
    assert set(RunConfig().leak.motion_times) <= set(RunConfig().leak.times)
