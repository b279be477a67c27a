"""From the frames of a video to candidate clips with scores, and from those to a choice.

`scan_frames` looks at one video and finds shots, clips and scores. `select` looks at the scans of
all videos and decides; it is a pure function. Neither knows of files, processes or networks.
"""

from pipelines.selection.bucket import Bucket, choose
from pipelines.selection.candidates import CandidateClip, ClipScores, VideoScan
from pipelines.selection.config import SelectionConfig
from pipelines.selection.data_warnings import dataset_warnings
from pipelines.selection.micro_conditioning import fps_id, motion_bucket_id
from pipelines.selection.scan import ScanSettings, scan_frames
from pipelines.selection.select import DroppedClip, Selection, select

__all__ = [
    "Bucket",
    "CandidateClip",
    "ClipScores",
    "DroppedClip",
    "ScanSettings",
    "Selection",
    "SelectionConfig",
    "VideoScan",
    "choose",
    "dataset_warnings",
    "fps_id",
    "motion_bucket_id",
    "scan_frames",
    "select",
]
