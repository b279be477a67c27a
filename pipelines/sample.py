"""Sampling videos: the last stage of a run, and `cil sample` with any model and image.

cil sample --model models:/tiny-i2v@challenger --image photo.png --seed 3 --out video.mp4
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.generate import fit_image, generate
from cil.models import load
from cil.models.storage import read_json as read_object
from pipelines.config import RunConfig, config_to_yaml, content_hash
from pipelines.dataset import open_dataset
from pipelines.estimate import STATISTICS_FILE
from pipelines.model_place import find_model_folder
from pipelines.progress import console, stage_progress
from pipelines.register import REGISTER_FOLDER, conditioning_image
from pipelines.report import RunReport, Stopwatch
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.storage import check_writable, write_atomic
from pipelines.video_io import read_image, side_by_side, write_gif, write_mp4

__all__ = ["SAMPLE_FOLDER", "SampleArguments", "run", "run_command"]

SAMPLE_FOLDER = "sample"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleArguments:
    """What `cil sample` takes."""

    model: str
    """models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder."""
    image: str
    """Conditioning image: PNG, JPEG or WebP of any size; resized to cover, then cropped."""
    out: str = "video.mp4"
    """Video to write; a GIF of the same name is written beside it."""
    seed: int = 0
    """Seed of the start noise."""
    num_videos: int = 1
    """Videos from different noise, shown side by side."""
    prompt: str | None = None
    """Caption, for families that are told one; the model folder must hold the text encoder."""
    start_time: float | None = None
    """Start time M in (0, 1]; unset takes the model's own."""
    analytic_init: tyro.conf.Suppress[bool | None] = None
    """--analytic-init or --no-analytic-init: start from the Analytic-Init Gaussian or from
    N(0, sigma^2 I); unset: the model's own."""
    num_steps: int | None = None
    """Sampler steps; unset takes the model's own."""
    tracking_uri: str = ""
    """MLflow store of a models:/ URI; unset takes MLFLOW_TRACKING_URI."""


def run(config: RunConfig) -> RunReport:
    """Sample from the run's own model: the last stage of `cil run`.

    Args:
        config: the run.

    Returns:
        Paths of the mp4 and the GIF.
    """
    watch = Stopwatch()
    output = Path(config.output.dir)
    folder = output / SAMPLE_FOLDER
    model_folder = output / REGISTER_FOLDER / "model"
    registered = output / REGISTER_FOLDER / "report.json"
    if not registered.exists():
        raise DataError(f"register has not finished in {output}; run `cil register` first")
    identity = content_hash(
        {
            "model": RunReport.load(registered).inputs.get("identity"),
            "sample": asdict(config.sample),
            "seed": config.seed,
        }
    )
    done = folder / "report.json"
    report = RunReport.load(done) if done.exists() else None
    # not the report's paths: they are relative to where that command was run
    whole = all((folder / name).exists() for name in ("sample.mp4", "sample.gif"))
    if report is not None and report.inputs.get("identity") == identity and whole:
        return RunReport(**{**asdict(report), "reused": True, "seconds": watch.seconds()})
    write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
    image = conditioning_image(open_dataset(config), 0)
    outputs = _sample(
        model_folder,
        image,
        out=folder / "sample.mp4",
        seed=config.seed,
        num_videos=config.sample.num_videos,
        overrides={},
        show_image=True,
    )
    report = RunReport(
        stage="sample",
        reused=False,
        inputs={"identity": identity, "model": str(model_folder)},
        outputs=outputs,
        metrics={"videos": float(config.sample.num_videos)},
        seconds=watch.seconds(),
    )
    report.save(done)
    return report


def run_command(arguments: SampleArguments) -> RunReport:
    """Sample with any model folder or registered model.

    Args:
        arguments: parsed command line.

    Returns:
        Paths of the mp4 and the GIF.

    Raises:
        ConfigError: the image, the model or a setting cannot be used.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    if arguments.num_videos < 1:
        raise ConfigError(f"num_videos must be >= 1, got {arguments.num_videos}")
    if not 0 <= arguments.seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2**63), got {arguments.seed}")
    if arguments.num_steps is not None and arguments.num_steps < 1:
        raise ConfigError(f"num_steps must be >= 1, got {arguments.num_steps}; 20 is usual")
    if arguments.start_time is not None and not 0 < arguments.start_time <= 1:
        raise ConfigError(
            f"start_time must be in (0, 1], got {arguments.start_time}; 1 starts from pure noise"
        )
    out = Path(arguments.out)
    if out.suffix != ".mp4":
        raise ConfigError(f"out must end in .mp4, got {out}; a GIF is written beside it")
    check_writable(out.parent, "out")
    image = read_image(arguments.image)
    overrides = {
        name: getattr(arguments, name)
        for name in ("start_time", "num_steps", "analytic_init")
        if getattr(arguments, name) is not None
    }
    outputs = _sample(
        _model_folder(arguments),
        image,
        out=out,
        seed=arguments.seed,
        num_videos=arguments.num_videos,
        overrides=overrides,
        prompt=arguments.prompt,
    )
    return RunReport(
        stage="sample",
        reused=False,
        inputs={"model": arguments.model, "image": arguments.image, "seed": arguments.seed},
        outputs=outputs,
        metrics={"videos": float(arguments.num_videos)},
        seconds=watch.seconds(),
    )


def _model_folder(arguments: SampleArguments) -> Path:
    config = RunConfig(
        tracking=TrackingConfig(uri=arguments.tracking_uri), output=OutputConfig(dir=".")
    )
    return find_model_folder(arguments.model, config, needs_store=True)


def _sample(
    folder: Path,
    image: Any,
    *,
    out: Path,
    seed: int,
    num_videos: int,
    overrides: dict[str, Any],
    prompt: str | None = None,
    show_image: bool = False,
) -> dict[str, Any]:
    """Sample and write the mp4 and the GIF; returns their paths and the settings used.

    With ``show_image`` the conditioning image stands at the left of the videos, as a still.
    """
    family = str(read_object(folder / "model.json").get("family"))
    path = folder / "sampling.json"
    own = read_object(path) if path.exists() else {}
    settings = {**_library_defaults(), **own, **overrides}
    statistics = None
    if settings["analytic_init"]:
        statistics = AnalyticInit.load(folder / STATISTICS_FILE)
    model = load(family, folder)
    with stage_progress("sample: steps", settings["num_steps"]) as progress:
        videos = generate(
            model,
            image,
            seed=seed,
            num_videos=num_videos,
            start_time=settings["start_time"],
            num_steps=settings["num_steps"],
            analytic_init=statistics,
            prompt=prompt,
            progress=progress.update,
        )
    if show_image:
        still = fit_image(image, *videos.shape[2:4])
        videos = torch.cat([still.expand_as(videos[:1]), videos])
    shown = side_by_side(np.asarray(videos))
    gif = out.with_suffix(".gif")
    write_mp4(out, shown, fps=model.config.fps)
    write_gif(gif, shown, fps=model.config.fps)
    console.print(f"sampled {num_videos} video(s) from seed {seed} with {settings}", markup=False)
    return {"video": str(out), "gif": str(gif), **settings}


def _library_defaults() -> dict[str, Any]:
    settings = asdict(RunConfig().sample)
    settings.pop("num_videos")
    return settings
