"""The clips that an evaluation is of, frozen in ``set.json`` when it begins.

In: a data set and the settings of evaluation. Out: an `EvaluationSet`: clips by key in an order
that new videos do not change, seeds, size and rate. A folder that has a set keeps it; a data set
that lost one of its clips is refused.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, DataError
from pipelines.config import RunConfig, content_hash
from pipelines.dataset import TrainingData, open_training_data
from pipelines.held_out import none_held_out
from pipelines.selection.bucket import Bucket
from pipelines.storage import read_json, write_json
from pipelines.validation_clips import ClipPlace, clips_in_order

__all__ = ["SET_FILE", "EvaluationSet", "clip_places", "freeze_images", "open_set"]

SET_FILE = "set.json"
_VERSION = 1
_LARGEST_SEED = 2**63


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSet:
    """What every arm is measured on."""

    clips: tuple[str, ...]
    """Keys, in order."""
    seeds: tuple[int, ...]
    """Of the start noise; every clip is sampled with each."""
    bucket: str
    """HEIGHTxWIDTHxFRAMES of the clips."""
    fps: float
    """Frames per second of the clips, in Hz."""
    reference: str
    """latents or source; see `EvaluateConfig.reference`."""
    chosen_from: dict[str, Any]
    """Settings that decided which clips these are."""

    @property
    def size(self) -> Bucket:
        """Size of the clips."""
        return Bucket.parse(self.bucket)

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return content_hash(asdict(self))


def open_set(config: RunConfig, folder: Path) -> EvaluationSet:
    """Return the set of an evaluation folder, and choose it if the folder has none.

    Args:
        config: the run.
        folder: of the evaluation; ``set.json`` is written there.

    Raises:
        ConfigError: no clips are held out.
        DataError: clips of the frozen set are no longer in the data set, or the file is damaged.
    """
    places = clip_places(config)
    settings = config.evaluate
    seeds = tuple((config.seed + k) % _LARGEST_SEED for k in range(settings.seeds_per_clip))
    bucket = _bucket(config)
    chosen_from = {
        "clips": settings.clips,
        "num_clips": settings.num_clips,
        "held_out_fraction": config.validate.held_out_fraction,
        "seed": config.seed,
    }
    frozen = _read(folder / SET_FILE)
    same = frozen is not None and (
        (frozen.chosen_from, frozen.bucket, frozen.reference)
        == (chosen_from, bucket, settings.reference)
    )
    if frozen is not None and same:
        _check_still_there(frozen, set(places), folder)
        keys = frozen.clips
    else:
        keys = tuple(list(places)[: settings.num_clips])
    first = places[keys[0]]
    chosen = EvaluationSet(
        clips=keys,
        seeds=seeds,
        bucket=bucket,
        fps=first.reader.clip(first.index).record.fps,
        reference=settings.reference,
        chosen_from=chosen_from,
    )
    if frozen != chosen:
        _write(folder / SET_FILE, chosen, {})
    return chosen


def clip_places(config: RunConfig) -> dict[str, ClipPlace]:
    """Find the clips that may be evaluated on, by key, in the order of the hashes of their keys.

    Raises:
        ConfigError: no clips are held out, and held-out ones are asked for.
    """
    data = open_training_data(config, num_sharers=config.evaluate.num_workers)
    bucket = data.largest.bucket
    readers = [data.held_out[bucket]] if bucket in data.held_out else []
    if config.evaluate.clips == "all":
        readers += [data.readers[bucket]]
    if not readers:
        raise ConfigError(_no_clips(config, data, bucket))
    return {place.key: place for place in clips_in_order(readers)}


def freeze_images(folder: Path, chosen: EvaluationSet, images: dict[str, str]) -> None:
    """Write the hashes of the conditioning images into ``set.json``, or compare them.

    Args:
        folder: of the evaluation.
        chosen: its set.
        images: sha256 of each clip's conditioning image, by key.

    Raises:
        DataError: an image is not the one that was frozen.
    """
    path = folder / SET_FILE
    known = read_json(path).get("images", {})
    for key, sha256 in images.items():
        if known.get(key, sha256) != sha256:
            raise DataError(
                f"the conditioning image of clip {key} is not the one that {path} was frozen with: "
                "the first stage or the source changed; evaluate into another folder"
            )
    if known != images:
        _write(path, chosen, images)


def _bucket(config: RunConfig) -> str:
    return open_training_data(config).largest.bucket


def _no_clips(config: RunConfig, data: TrainingData, bucket: str) -> str:
    fraction = config.validate.held_out_fraction
    if not fraction:
        why = "validate.held_out_fraction is 0, so all clips are trained on"
    elif data.held_out:
        why = f"no clip of the bucket {bucket} is held out"
    else:
        why = none_held_out(fraction)
    return (
        f"there are no held-out clips to evaluate on: {why}; train with a larger "
        "validate.held_out_fraction, or set evaluate.clips to all and say so with the numbers"
    )


def _check_still_there(frozen: EvaluationSet, there: set[str], folder: Path) -> None:
    missing = [key for key in frozen.clips if key not in there]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(frozen.clips)} clips of {folder / SET_FILE} are no longer "
            f"among the data set's clips ({frozen.chosen_from['clips']}), the first is "
            f"{missing[0]}; restore the data set, or evaluate into another folder"
        )


def _write(path: Path, chosen: EvaluationSet, images: dict[str, str]) -> None:
    record = {
        "format_version": _VERSION,
        **asdict(chosen),
        "sha256": chosen.sha256,
        "images": images,
        "images_sha256": content_hash(images) if images else None,
    }
    write_json(path, record)


def _read(path: Path) -> EvaluationSet | None:
    if not path.exists():
        return None
    raw = read_json(path)
    try:
        if raw["format_version"] != _VERSION:
            raise DataError(f"{path} is of another version; evaluate into another folder")
        frozen = EvaluationSet(
            clips=tuple(raw["clips"]),
            seeds=tuple(raw["seeds"]),
            bucket=raw["bucket"],
            fps=raw["fps"],
            reference=raw["reference"],
            chosen_from=raw["chosen_from"],
        )
        intact = frozen.sha256 == raw["sha256"] and frozen.clips
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; delete it, or restore it") from error
    if not intact:
        raise DataError(f"{path} was changed by hand, its hash is not that of its clips; delete it")
    return frozen
