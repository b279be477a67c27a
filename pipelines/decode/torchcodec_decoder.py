"""torchcodec: an optional decoder that uses the FFmpeg libraries of the system."""

import importlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, DataError
from pipelines.decode.clock import check_asked, check_time
from pipelines.decode.errors import refusals
from pipelines.decode.frame import SourceFrame
from pipelines.decode.probe import VideoProbe
from pipelines.decode.trust import EIGHT_BIT_420, delivered, starts_at_keys

__all__ = ["TorchcodecDecoder"]


class TorchcodecDecoder:
    """Decodes with torchcodec, which applies the rotation flag itself.

    It scans the file first, so that frame numbers are exact. FFmpeg inside it guesses over damage
    and cannot be told not to.
    """

    name = "torchcodec"

    def is_right_for(self, probe: VideoProbe) -> bool:
        """Return whether torchcodec was measured to give the frames that PyAV gives."""
        return starts_at_keys(probe) and probe.pixel_format in EIGHT_BIT_420

    def frames(self, path: Path, probe: VideoProbe) -> Iterator[SourceFrame]:
        """Yield all frames in presentation order.

        Raises:
            DecodeError: torchcodec cannot read the file, or counts its frames differently.
            ConfigError: torchcodec is not installed.
        """
        times_s = probe.times_s or ()
        yield from self.frames_at(path, probe, range(len(times_s)), times_s=times_s)

    def frames_at(
        self, path: Path, probe: VideoProbe, numbers: Sequence[int], *, times_s: Sequence[float]
    ) -> Iterator[SourceFrame]:
        """Yield single frames; see `pipelines.decode.pyav_decoder.PyavDecoder.frames_at`.

        Raises:
            DecodeError: torchcodec cannot read the file, or the frames are at other times.
            ConfigError: torchcodec is not installed.
        """
        check_asked(numbers, times_s)
        open_decoder = _decoder_class()
        with refusals(stage="decode", decoder=self.name):
            reader = open_decoder(
                str(path.absolute()),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
            if len(reader) != probe.num_frames:
                text = f"torchcodec counts {len(reader)} frames, the container {probe.num_frames}"
                raise DataError(text)
            wanted = zip(numbers, times_s, strict=True)
            for (number, time_s), repeats in groupby(wanted):
                found = reader.get_frame_at(number)
                check_time(number, found.pts_seconds, time_s)
                pixels = found.data.numpy()
                frame = delivered(pixels, probe, number=number, time_s=time_s)
                yield from (frame for _ in repeats)


def _decoder_class() -> Any:
    try:
        import av  # noqa: F401  # before any other FFmpeg

        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        # RuntimeError: torchcodec is there and finds no FFmpeg libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"torchcodec cannot be loaded: {reason} Install the package torchcodec 0.13 and "
            "FFmpeg's shared libraries (version 4 to 8), or set the decoder to pyav"
        ) from error
    return decoders.VideoDecoder
