"""Fit the first stage to the videos, or take a given one; then it belongs to the data set.

Fitting is a Ray Data pass: every video gives exact integer patch moments, the driver adds them and
solves one small eigenproblem. The result depends only on the videos, not on actors or order.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cil.errors import StageError
from cil.models import FirstStage, load_first_stage
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from pipelines.config import RunConfig
from pipelines.decode import ClipTransform, DecodeError, decode_clips, quarantine_record
from pipelines.progress import stage_progress
from pipelines.records import QuarantineRecord, VideoFile
from pipelines.runtime import root_cause
from pipelines.storage import replace_folder, temporary_beside

__all__ = ["NoClipsError", "ensure_first_stage", "moments_of_video"]


class NoClipsError(StageError):
    """No clip could be made of any video."""

    def __init__(self, refused: list[QuarantineRecord]) -> None:
        reasons = "; ".join(f"{record.path}: {record.message}" for record in refused[:3])
        super().__init__(
            f"no clip could be made of any of {len(refused)} video files ({reasons}); every reason "
            "is in quarantine.jsonl of the data set"
        )
        self.refused = refused


def ensure_first_stage(
    config: RunConfig, dataset: Path, transform: ClipTransform, videos: tuple[VideoFile, ...]
) -> FirstStage:
    """Return the data set's first stage; fit it, or copy the configured one, if it has none.

    Args:
        config: the run.
        dataset: folder of the data set.
        transform: how clips are cut; the codec is fitted to what will be encoded.
        videos: the inventory, sorted by content hash.

    Raises:
        NoClipsError: no video could be decoded into a clip.
    """
    folder = dataset / "first_stage"
    if folder.exists():
        return load_first_stage(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    if config.first_stage.path is not None:
        shutil.copytree(config.first_stage.path, temporary)
    else:
        chosen = videos[: config.first_stage.fit_videos]
        moments, refused = _moments_of_videos(config, transform, chosen)
        if not moments.count:
            raise NoClipsError(refused)
        fitted = PatchPCA.fit(moments, latent_channels=config.first_stage.latent_channels)
        fitted.save(temporary)
    replace_folder(temporary, folder)
    return load_first_stage(folder)


def moments_of_video(
    batch: dict[str, npt.NDArray[Any]], *, source: str, transform: ClipTransform, patch_size: int
) -> dict[str, npt.NDArray[Any]]:
    """Take the moments of the patches of one video.

    Args:
        batch: one row with the column ``path``, relative to the source folder.
        source: source folder.
        transform: how clips are cut.
        patch_size: side of a patch in pixels.

    Returns:
        One row with count, total and second moment; a video that is refused counts nothing and has
        its `QuarantineRecord` as JSON in ``refused``.
    """
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    (path,), (sha256,) = batch["path"], batch["sha256"]
    refused = ""
    moments = PatchMoments(patch_size=patch_size)
    try:
        for clip in decode_clips(Path(source) / str(path), transform).clips:
            moments.update(clip.frames)
    except DecodeError as error:
        moments = PatchMoments(patch_size=patch_size)
        record = quarantine_record({"path": str(path), "sha256": str(sha256)}, error)
        refused = json.dumps(record.to_json())
    return {
        "refused": np.array([refused]),
        "count": np.array([moments.count]),
        "total": moments.total.numpy()[None],
        "second": moments.second.numpy()[None],
    }


def _moments_of_videos(
    config: RunConfig, transform: ClipTransform, videos: tuple[VideoFile, ...]
) -> tuple[PatchMoments, list[QuarantineRecord]]:
    import ray
    from ray.data import TaskPoolStrategy

    rows = ray.data.from_items(
        [{"path": video.path, "sha256": video.sha256} for video in videos],
        override_num_blocks=len(videos),
    )
    # 1:1, a path becomes a few kilobytes of sums.
    results = rows.map_batches(
        moments_of_video,
        fn_kwargs={
            "source": str(Path(config.data.videos).resolve()),
            "transform": transform,
            "patch_size": config.first_stage.patch_size,
        },
        batch_size=1,
        compute=TaskPoolStrategy(size=config.encode.num_workers),
        num_cpus=1,
        max_retries=config.encode.max_retries,
    )
    total = PatchMoments(patch_size=config.first_stage.patch_size)
    refused = []
    try:
        with stage_progress("encode: fit the first stage", len(videos)) as progress:
            for row in results.iter_rows():
                part = PatchMoments(patch_size=config.first_stage.patch_size)
                part.count = int(row["count"])
                part.total = torch.from_numpy(np.array(row["total"]))
                part.second = torch.from_numpy(np.array(row["second"]))
                total.merge(part)
                if row["refused"]:
                    refused.append(QuarantineRecord.from_json(json.loads(row["refused"])))
                progress.advance()
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        raise StageError(
            f"fitting the first stage stopped: {type(cause).__name__}: {cause}"
        ) from error
    return total, refused
