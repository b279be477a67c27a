"""decord: as fast as PyAV in order, and right at random only for H.264 and VP9 in an index."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.decode.clock import check_asked, check_listed
from pipelines.decode.errors import refusals
from pipelines.decode.frame import SourceFrame
from pipelines.decode.probe import VideoProbe
from pipelines.decode.trust import EIGHT_BIT_420, delivered, is_indexed

__all__ = ["DecordDecoder"]

_CODECS = ("h264", "vp9")
_FAULT_TOLERANCE = 1e-9
"""Share of the frames that decord may replace by a neighbour: less than one of any video."""
_BATCH = 8
"""Frames that are asked for at once; decord holds all of them in memory."""
_BATCH_BYTES = 2**27


class DecordDecoder:
    """Decodes with decord, which brings an old FFmpeg of its own.

    It applies the rotation flag itself. FFmpeg inside it guesses over damage, so it is no
    reference: its frames must be compared with those of PyAV.
    """

    name = "decord"

    def is_right_for(self, probe: VideoProbe) -> bool:
        """Return whether decord was measured to give the frames that PyAV gives."""
        return (
            is_indexed(probe)
            and not probe.has_open_gop
            and probe.codec in _CODECS
            and probe.pixel_format in EIGHT_BIT_420
        )

    def frames(self, path: Path, probe: VideoProbe) -> Iterator[SourceFrame]:
        """Yield all frames in presentation order.

        Raises:
            DecodeError: decord cannot read the file, or counts its frames differently.
        """
        with refusals(stage="decode", decoder=self.name):
            reader, times_s = _open(path, probe), probe.times_s
            assert times_s is not None
            for number, time_s in enumerate(times_s):
                pixels = reader.next().asnumpy()
                yield delivered(pixels, probe, number=number, time_s=time_s)

    def frames_at(
        self, path: Path, probe: VideoProbe, numbers: Sequence[int], *, times_s: Sequence[float]
    ) -> Iterator[SourceFrame]:
        """Yield single frames; see `pipelines.decode.pyav_decoder.PyavDecoder.frames_at`.

        Raises:
            DecodeError: decord cannot read the file, or the frames are at other times.
        """
        check_asked(numbers, times_s)
        with refusals(stage="decode", decoder=self.name):
            reader = _open(path, probe)
            stated = probe.times_s
            assert stated is not None
            check_listed(numbers, times_s, probe)
            repeats = {number: len(list(group)) for number, group in groupby(numbers)}
            distinct = list(repeats)
            size = max(1, min(_BATCH, _BATCH_BYTES // (probe.height * probe.width * 3)))
            for start in range(0, len(distinct), size):
                batch = distinct[start : start + size]
                # Ascending numbers only: in any other order get_batch decodes for minutes.
                for number, pixels in zip(batch, reader.get_batch(batch).asnumpy(), strict=True):
                    frame = delivered(pixels, probe, number=number, time_s=stated[number])
                    yield from [frame] * repeats[number]


def _open(path: Path, probe: VideoProbe) -> Any:
    import av  # noqa: F401  # before decord: both bring an FFmpeg, and the first one loaded wins
    import decord

    reader = decord.VideoReader(str(path.absolute()), num_threads=1, fault_tol=_FAULT_TOLERANCE)
    if probe.times_s is None or len(reader) != len(probe.times_s):
        raise DataError(f"decord counts {len(reader)} frames, the container {probe.num_frames}")
    return reader
