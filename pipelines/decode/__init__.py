"""Video files to frames: what is in a file, all its frames in order, or some of them again.

`probe_video` reads the packets. `sequential` decodes everything strictly, with PyAV unless told
otherwise. `DECODERS[name].frames_at` finds single frames again; where `is_right_for` says yes it
was measured to give the very same pixels (docs/decoding.md), and still is to be checked.
"""

from pipelines.decode.decoders import DECODERS, Decoder, sequential
from pipelines.decode.errors import DecodeError, quarantine_record
from pipelines.decode.frame import Frame, SourceFrame, cover_and_crop
from pipelines.decode.probe import VideoProbe, probe_video

__all__ = [
    "DECODERS",
    "DecodeError",
    "Decoder",
    "Frame",
    "SourceFrame",
    "VideoProbe",
    "cover_and_crop",
    "probe_video",
    "quarantine_record",
    "sequential",
]
