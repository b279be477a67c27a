"""What is compared: models by their folders, and folders of videos made elsewhere.

In: ``NAME=PLACE`` of the command line, or a sweep. Out: `Arm`s with an identity, which is a hash of
what decides their videos.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cil.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.model_place import find_model_folder
from pipelines.register import REGISTER_FOLDER
from pipelines.selection.bucket import Bucket
from pipelines.storage import hash_of_folder, read_json

if TYPE_CHECKING:
    from pipelines.evaluate.clip_set import EvaluationSet
    from pipelines.sweep.arms import Sweep

__all__ = [
    "OWN_ARM",
    "VIDEOS_PREFIX",
    "Arm",
    "check_model",
    "check_names",
    "located_arm",
    "own_arm",
    "parse_arms",
    "refuse_other",
    "sampling_settings",
    "sweep_arms",
]

OWN_ARM = "model"
"""Name of the run's own model where no arm is given."""
VIDEOS_PREFIX = "videos:"
_FPS_TOLERANCE = 0.01
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One thing that is evaluated."""

    name: str
    kind: Literal["model", "videos"]
    folder: Path
    """Model folder, or folder of videos."""
    identity: str
    """Hash of the folder's content; of videos, of the files that the set needs."""


def parse_arms(texts: Sequence[str], config: RunConfig) -> list[Arm]:
    """Read ``NAME=PLACE`` and find the places.

    Args:
        texts: PLACE is a model folder, models:/NAME@ALIAS, or videos:FOLDER.
        config: the run, for its MLflow store.

    Raises:
        ConfigError: a name or place that cannot be used, or a name that stands twice.
        StageError: MLflow failed.
    """
    arms: list[Arm] = []
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise ConfigError(f"--arm must be NAME=PLACE, as timenoise=build/model, got {text!r}")
        arms.append(_arm(name, place, config))
    check_names(arms)
    return arms


def check_names(arms: Sequence[Arm]) -> None:
    """Refuse names that cannot be told apart, or that cannot be files.

    Raises:
        ConfigError: one of them is such a name, or there is no arm.
    """
    seen: set[str] = set()
    for arm in arms:
        if not _SAFE_NAME.fullmatch(arm.name):
            raise ConfigError(
                "the name of an arm must be letters, digits, dots, dashes and underscores, with at "
                f"most one slash, got {arm.name!r}"
            )
        if arm.name in seen:
            raise ConfigError(f"the arm {arm.name} stands twice; give each its own name")
        seen.add(arm.name)
    if not arms:
        raise ConfigError("there is no arm to evaluate; give --arm NAME=PLACE")


def own_arm(config: RunConfig) -> Arm:
    """Return the run's own registered model as an arm.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(config.output.dir) / REGISTER_FOLDER / "model"
    if not (folder / "model.json").exists():
        raise ConfigError(
            f"there is no model in {folder}; run `cil register` first, or give --arm NAME=PLACE"
        )
    return _arm(OWN_ARM, str(folder), config)


def sweep_arms(sweep: "Sweep") -> tuple[list[Arm], list[str]]:
    """Return the finished trainings of a sweep as arms, and the labels of those that are not.

    Raises:
        ConfigError: none is finished, or an arm has a data set of its own.
    """
    from pipelines.sweep.results import finished_training

    arms, missing = [], []
    for arm in sweep.arms:
        for run in arm.runs:
            folder = run.folder / REGISTER_FOLDER / "model"
            name = arm.name if len(arm.runs) == 1 else f"{arm.name}/seed-{run.seed}"
            if not (folder / "model.json").exists() or finished_training(run.config) is None:
                missing.append(run.label)
            elif not run.shares_data:
                raise ConfigError(
                    f"the arm {run.label} has a data set of its own, so its held-out clips are not "
                    "those of the others; evaluate it by itself with --config and --arm"
                )
            else:
                arms.append(_arm(name, str(folder), run.config))
    if not arms:
        raise ConfigError(f"no arm of {sweep.file} is finished; run `cil sweep {sweep.file}` first")
    return arms, missing


def located_arm(arm: Arm) -> Arm:
    """Return the arm with an absolute folder, for workers."""
    return replace(arm, folder=arm.folder.absolute())


def check_model(arm: Arm, chosen: "EvaluationSet", *, as_clips: bool = False) -> None:
    """Refuse a model that makes other videos than the clips are.

    Args:
        arm: any; videos are let pass.
        chosen: the clips.
        as_clips: models of published families are told what the clips are, so let them pass.

    Raises:
        ConfigError: with both values.
    """
    if arm.kind != "model":
        return
    says = read_json(arm.folder / "model.json")
    if as_clips and says.get("family") != "tiny":
        return
    refuse_other(arm.name, says, chosen.size, chosen.fps)


def refuse_other(name: str, says: dict[str, Any], size: Bucket, fps: float) -> None:
    """Refuse videos of another size, length or rate than the clips.

    Args:
        name: of the arm.
        says: some of height, width, num_frames and fps of the arm's videos.
        size: of the clips.
        fps: of the clips, in Hz.

    Raises:
        ConfigError: with both values.
    """
    wanted = {"num_frames": size.num_frames, "height": size.height, "width": size.width}
    wrong = [
        f"{key} {says[key]:g} where the clips have {want:g}"
        for key, want in {**wanted, "fps": fps}.items()
        if isinstance(says.get(key), int | float)
        and abs(says[key] - want) > (_FPS_TOLERANCE * want if key == "fps" else 0)
    ]
    if wrong:
        raise ConfigError(
            f"arm {name}: its videos have {', '.join(wrong)}; motion per frame only compares at "
            "the same size, length and rate: evaluate it on a data set like that"
        )


def sampling_settings(folder: Path) -> dict[str, Any]:
    """Return how a model folder wants to be sampled: start_time, analytic_init, num_steps."""
    own = RunConfig().sample
    settings: dict[str, Any] = {
        "start_time": own.start_time,
        "analytic_init": own.analytic_init,
        "num_steps": own.num_steps,
    }
    path = folder / "sampling.json"
    written = read_json(path) if path.exists() else {}
    return {name: written.get(name, value) for name, value in settings.items()}


def _arm(name: str, place: str, config: RunConfig) -> Arm:
    if place.startswith(VIDEOS_PREFIX):
        folder = Path(place.removeprefix(VIDEOS_PREFIX))
        if not folder.is_dir():
            raise ConfigError(f"arm {name}: {folder} is not a folder of videos")
        return Arm(name=name, kind="videos", folder=folder, identity=hash_of_folder(folder))
    try:
        folder = find_model_folder(place, config)
    except ConfigError as error:
        raise ConfigError(f"arm {name}: {error}") from error
    return Arm(name=name, kind="model", folder=folder, identity=hash_of_folder(folder))
