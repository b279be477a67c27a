"""The frames of a clip as its source video has them, for ``evaluate.reference: source``.

In: the record of a clip and the run. Out: (F, H, W, 3) uint8 RGB, resized and cropped as encoding
does. The recipe is the record's: which frames of which video, by number; a video whose content is
not the one that was encoded is refused.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from pipelines.config import RunConfig
from pipelines.decode import cover_and_crop, probe_video, sequential
from pipelines.records import ClipRecord
from pipelines.remote import shown_url
from pipelines.source_state import source_options
from pipelines.sources import SourceVideo, list_videos, local_file, scratch_folder
from pipelines.storage import sha256_of_file

if TYPE_CHECKING:
    from pipelines.sources import SourceOptions

__all__ = ["source_frames"]


def source_frames(record: ClipRecord, config: RunConfig) -> npt.NDArray[np.uint8]:
    """Decode the frames of a clip again.

    Args:
        record: of the clip.
        config: the run, for the place of its videos.

    Raises:
        DataError: the video is gone or has other content, or it ends too early.
    """
    videos = _videos(config.data.videos, source_options(config))
    if record.path not in videos:
        raise DataError(
            f"{record.path} is no longer among the videos of {shown_url(config.data.videos)}; "
            "restore it, or set evaluate.reference to latents"
        )
    with scratch_folder() as scratch, local_file(videos[record.path], scratch) as path:
        if sha256_of_file(path) != record.content_sha256:
            raise DataError(
                f"{record.path} is not the video that was encoded; restore it, or set "
                "evaluate.reference to latents"
            )
        return _chosen_frames(path, record)


def _chosen_frames(path: Path, record: ClipRecord) -> npt.NDArray[np.uint8]:
    wanted, last = set(record.frames), max(record.frames)
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for frame in sequential(path, probe_video(path)):
        if frame.number in wanted:
            found[frame.number] = cover_and_crop(frame.pixels, record.height, record.width)
        if frame.number == last:
            return np.stack([found[number] for number in record.frames])
    raise DataError(f"{record.path} ends before frame {last}; encode the videos again")


@lru_cache(maxsize=1)
def _videos(location: str, options: "SourceOptions") -> dict[str, SourceVideo]:
    return {video.name: video for video in list_videos(location, options=options).videos}
