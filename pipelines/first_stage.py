"""Fit the first stage to the videos, or take a given one; then it belongs to the data set.

Fitting is a Ray Data pass: every video gives exact integer patch moments, the driver adds them and
solves one small eigenproblem. The result depends only on the videos, not on workers or order.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cil.errors import CilError, StageError
from cil.models import FirstStage, load_first_stage
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from pipelines.config import RunConfig, content_hash
from pipelines.dataset_identity import PLAN_NAME
from pipelines.decode.config import DecodeConfig
from pipelines.decode_ahead import PlannedVideo
from pipelines.planning import planned_input
from pipelines.progress import stage_progress
from pipelines.ray_map import map_rows
from pipelines.records import QuarantineRecord
from pipelines.scan import decoder_of
from pipelines.selection.bucket import Bucket
from pipelines.shards import FIRST_STAGE_NAME
from pipelines.source_state import SourceState, places
from pipelines.sources import local_file, scratch_folder
from pipelines.store import Store, read_json, write_json

__all__ = ["NoClipsError", "ensure_first_stage", "moments_of_video"]

_FIT_NAME = "fit.json"
"""What the first stage was made of; written after it."""


class NoClipsError(StageError):
    """No clip could be made of any video."""

    def __init__(self, refused: Sequence[QuarantineRecord], num_dropped: int) -> None:
        reasons = "; ".join(f"{record.path}: {record.message}" for record in refused[:3])
        chosen = f", selection dropped {num_dropped} clips" if num_dropped else ""
        super().__init__(
            f"there is no clip to encode: {len(refused)} videos were refused{chosen} "
            f"({reasons or 'see dropped.jsonl'}); every reason is in quarantine.jsonl and "
            "dropped.jsonl of the data set"
        )


def ensure_first_stage(
    config: RunConfig, store: Store, source: SourceState, settings: dict[str, Any]
) -> FirstStage:
    """Return the data set's first stage; fit it, or copy the configured one, if it has none.

    Args:
        config: the run.
        store: where the data set is.
        source: its videos and the chosen clips; the codec is fitted to what will be encoded.
        settings: what decides the bytes of the data set. A first stage that a killed run has left
            is used only if it was made of the same settings and videos.

    Raises:
        NoClipsError: there is nothing to encode, or nothing could be read again.
        StageError: Ray failed.
    """
    if not any(source.selection.kept.values()):
        raise NoClipsError(source.refused, len(source.selection.dropped))
    fit = content_hash(
        {
            "settings": settings,
            "videos": sorted(sha256 for sha256, clips in source.selection.kept.items() if clips),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        if not _is_settled(store, fit):
            made = Path(scratch) / "made"  # the store moves or copies it
            if config.first_stage.path is not None:
                load_first_stage(config.first_stage.path).save(made)
            else:
                _fit(config, source).save(made)
            store.put_folder(made, FIRST_STAGE_NAME)
            write_json(store, _FIT_NAME, {"fit": fit})
        return load_first_stage(store.local_folder(FIRST_STAGE_NAME, Path(scratch) / "cache"))


def _is_settled(store: Store, fit: str) -> bool:
    """Tell whether the data set has its first stage: shards are planned with it, or would be."""
    if not store.exists(f"{FIRST_STAGE_NAME}/first_stage.json"):
        return False
    if store.exists(PLAN_NAME):
        return True
    return store.exists(_FIT_NAME) and read_json(store, _FIT_NAME) == {"fit": fit}


def _fit(config: RunConfig, source: SourceState) -> PatchPCA:
    with_clips = [sha256 for sha256 in source.videos if source.selection.kept.get(sha256)]
    chosen = with_clips[: config.first_stage.fit_videos]
    moments = _moments_of_videos(config, source, chosen)
    if not moments.count:
        raise NoClipsError(source.refused, len(source.selection.dropped))
    return PatchPCA.fit(moments, latent_channels=config.first_stage.latent_channels)


def moments_of_video(
    batch: dict[str, npt.NDArray[Any]], *, decode: DecodeConfig, patch_size: int
) -> dict[str, npt.NDArray[Any]]:
    """Take the moments of the patches of the clips of one video.

    Args:
        batch: one row with the columns ``video``, an input of a `ShardSpec`, and ``place``, its
            `SourceVideo`, both as JSON.
        decode: limits of the decoder.
        patch_size: side of a patch in pixels.

    Returns:
        One row with count, total and second moment; a video that cannot be read again counts
        nothing: encoding it will say why.
    """
    torch.set_num_threads(1)
    (video_json,), (place_json,) = batch["video"], batch["place"]
    planned, place = json.loads(str(video_json)), json.loads(str(place_json))
    moments = PatchMoments(patch_size=patch_size)
    try:
        for bucket in sorted({clip["bucket"] for clip in planned["clips"]}):
            clips = [clip for clip in planned["clips"] if clip["bucket"] == bucket]
            video = PlannedVideo.of({**planned, "clips": clips}, place, Bucket.parse(bucket))
            with (
                scratch_folder() as scratch,
                local_file(video.place, scratch) as path,
            ):
                for clip in decoder_of(decode).clips(
                    path,
                    video.wanted,
                    sha256=planned["sha256"],
                ):
                    moments.update(clip.frames)
    except (CilError, OSError):
        moments = PatchMoments(patch_size=patch_size)
    return {
        "count": np.array([moments.count]),
        "total": moments.total.numpy()[None],
        "second": moments.second.numpy()[None],
    }


def _moments_of_videos(
    config: RunConfig, source: SourceState, chosen: Sequence[str]
) -> PatchMoments:
    where = places(source)
    # 1:1, a video becomes a few kilobytes of sums.
    results = map_rows(
        [
            {
                "video": json.dumps(planned_input(source.videos[sha], source.selection.kept[sha])),
                "place": json.dumps(asdict(where[sha])),
            }
            for sha in chosen
        ],
        moments_of_video,
        settings={"decode": config.decode, "patch_size": config.first_stage.patch_size},
        concurrency=config.encode.num_workers,
        max_retries=config.encode.max_retries,
        doing="fitting the first stage",
    )
    total = PatchMoments(patch_size=config.first_stage.patch_size)
    with stage_progress("encode: fit the first stage", len(chosen)) as progress:
        for row in results:
            total.merge(_part(row, config.first_stage.patch_size))
            progress.advance()
    return total


def _part(row: Mapping[str, Any], patch_size: int) -> PatchMoments:
    part = PatchMoments(patch_size=patch_size)
    part.count = int(row["count"])
    part.total = torch.from_numpy(np.array(row["total"]))
    part.second = torch.from_numpy(np.array(row["second"]))
    return part
