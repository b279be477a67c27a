"""Made-up measurements of four arms, with a leak that is known, and the study made of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cil.noise_schedule import EDMSchedule
from cil.time_noise import TimeNoiseConfig
from pipelines.evaluate.arms import parse_arms
from pipelines.leak import density
from pipelines.leak.arms import describe_arms
from pipelines.leak.command import warnings_of
from pipelines.leak.evidence import Resampling, compared_start, gather
from pipelines.leak.gallery import video_rows
from pipelines.leak.probe_table import probe_table
from pipelines.leak.report import Study
from pipelines.leak.sample_table import sample_table
from pipelines.leak.series import points_of_probe, points_of_samples
from pipelines.leak.verdict import decide, summarise
from pipelines.leak.words import limits

PRESETS = {"none": "none", "constant": "constant", "shuffled": "shuffled", "timenoise": "mild"}
STRENGTH = {"none": 0.3, "constant": 0.62, "shuffled": 0.63, "timenoise": 0.7}
"""Motion transfer of each arm in the middle of t."""
TIMES = (0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
STARTS = ((1.0, False), (0.9, False), (0.7, False), (0.9, True), (0.7, True))


def made_rows(strength, *, clips=24, seed=0, times=TIMES):
    """Rows of a probe whose measures are known functions of t and of the arm's strength."""
    keys = [f"{number:032x}" for number in range(clips)]
    rows = []
    for arm, strong in strength.items():
        generator = np.random.default_rng(seed)  # the same clips and noise for every arm
        own = np.random.default_rng(sum(arm.encode()))
        motion = generator.uniform(0.5, 2.0, clips)
        for time in times:
            left = strong * (1 - time**3)
            wobble = generator.normal(0, 0.05, (4, clips)) + own.normal(0, 0.03, (4, clips))
            rows.append(
                {
                    "arm": arm,
                    "time": time,
                    "level": 10 * time,
                    "keys": keys,
                    "sums": {
                        "motion_transfer_ratio": (motion * (left + wobble[0]), motion),
                        "condition_dominance": ((1 - left) + wobble[1], np.ones(clips)),
                        "one_step_mse": (
                            100 * (1.1 - strong + wobble[2]) * time,
                            np.full(clips, 100.0),
                        ),
                        "frame_zero_mse": (
                            10 * (0.1 + 0.1 * strong) + wobble[3],
                            np.full(clips, 10.0),
                        ),
                        "frame_difference_ratio": (motion * left, motion),
                        **(
                            {"one_step_motion": (motion * left, motion)}
                            if time in (0.5, 0.7, 0.8, 0.9)
                            else {}
                        ),
                    },
                }
            )
    return rows, keys


def made_videos(strength, keys, *, seed=0, folder=None):
    """Rows of an evaluation: better arms move more like the clips and follow the image less."""
    rows = []
    for arm, strong in strength.items():
        generator = np.random.default_rng(seed)
        for start, gaussian in STARTS:
            for number, key in enumerate(keys):
                real = float(generator.uniform(1, 4))
                motion = real * (0.4 + 0.6 * strong) * (1.6 - 0.6 * start)
                motion += float(generator.normal(0, 0.1)) - 0.2 * gaussian
                row = {
                    "arm": arm,
                    "start_time": start,
                    "analytic_init": gaussian,
                    "clip_key": key,
                    "seed": 0,
                    "motion_consistent": max(motion, 0.0),
                    "motion_real_consistent": real,
                    "alignment_mse": 0.02
                    + 0.05 * strong
                    + 0.002 * number
                    + float(generator.normal(0, 0.003)),
                    "ssim": 0.9 - 0.2 * strong,
                    "flags": "jump" if (arm, number, start) == ("none", 3, 1.0) else "",
                    "flags_real": "",
                    "video": None,
                    "video_real": None,
                }
                if folder is not None and start == 1.0 and number >= len(keys) - 3:
                    row["video"] = moving_dot(
                        folder, f"{arm.replace('/', '-')}-{number}", motion / 4
                    )
                    row["video_real"] = moving_dot(folder, f"real-{number}", real / 4)
                rows.append(row)
    return rows


def moving_dot(folder, name, speed):
    """Write a small video of a bright square; returns its name."""
    frames = np.full((8, 32, 32, 3), 30, np.uint8)
    for index, frame in enumerate(frames):
        left = int(4 + 4 * speed * index) % 24
        frame[10:18, left : left + 8] = (220, 180, 90)
    np.savez_compressed(folder / f"{name}.npz", frames=frames)
    return f"{name}.npz"


@pytest.fixture(scope="session")
def rows_of():
    """Maker of rows of a probe: strength by arm -> rows, keys."""
    return made_rows


@pytest.fixture(scope="session")
def videos_of():
    """Maker of rows of an evaluation: strength by arm, keys -> rows."""
    return made_videos


@pytest.fixture(scope="session")
def arm_folders(tmp_path_factory):
    """Model folders that say what they were trained with; they hold no network."""
    root = tmp_path_factory.mktemp("arms")
    for name, preset in PRESETS.items():
        (root / name).mkdir()
        (root / name / "model.json").write_text(json.dumps({"family": "tiny", "name": name}))
        noise = dataclasses.asdict(TimeNoiseConfig(preset=preset))
        (root / name / "time_noise.json").write_text(json.dumps(noise))
    return root


def made_study(folders, config, folder, *, names=tuple(PRESETS), clips=24, strength=None):
    """Return the study of made-up arms; ``names`` may have seeds, as ``none/seed-1``."""
    base = {name: (strength or STRENGTH)[name.partition("/")[0]] for name in names}
    rows, keys = made_rows(base, clips=clips)
    places = {name: folders / name.partition("/")[0] for name in names}
    arms = describe_arms(parse_arms([f"{name}={place}" for name, place in places.items()], config))
    probe = probe_table(rows, keys)
    videos = made_videos(base, keys[: clips // 2], folder=folder)
    samples = sample_table(videos)
    resampling = Resampling(seed=0, num=400, level=0.95)
    references = {arm.name: arm.reference for arm in arms}
    start = compared_start(samples)
    evidence = gather(arms, probe, samples, resampling)
    verdicts = [decide(each) for each in evidence]
    shown, left_out = video_rows(videos, folder, start=start, arms=list(names), fps=8.0, most=4)
    schedule = EDMSchedule(p_mean=1.0, p_std=1.4)
    return Study(
        arms=arms,
        probed=keys,
        probe=points_of_probe(probe, references, resampling),
        sampled=points_of_samples(samples, references, resampling),
        samples=samples,
        start=start,
        evidence=evidence,
        verdicts=verdicts,
        headline=summarise(verdicts, {arm.name: arm.group for arm in arms}),
        limits=limits(
            num_probed=len(keys),
            num_sampled=len(samples.keys),
            level=0.95,
            seeds=[arm.seed for arm in arms],
            num_arms=len(arms),
        ),
        warnings=warnings_of(arms, keys, samples, start),
        densities={arm.name: density.density_of(arm.noise, schedule) for arm in arms},
        videos=shown,
        videos_left_out=left_out,
        settings={"seed": 0, "num": 400, "level": 0.95, "times": list(TIMES)},
        dataset={"place": "/data/<b>clips</b>", "fingerprint": "f" * 64},
    )


@pytest.fixture(scope="session")
def study(arm_folders, tmp_path_factory):
    """The study of four arms of one seed."""
    from pipelines.config import RunConfig

    return made_study(arm_folders, RunConfig(), tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def make_study():
    """Maker of studies."""
    return made_study


@pytest.fixture(scope="session")
def written(study, tmp_path_factory) -> Path:
    """Folder of the report of the study; tests must not change it."""
    from pipelines.leak.report import write

    folder = tmp_path_factory.mktemp("report") / "leak"
    write(study, folder)
    return folder
