"""The decoders by name, and the strict pass over a whole video.

All of them give the same frames of the files for which they are right. `sequential` is how a
video is read for the first time; `Decoder.frames_at` is how known frames of it are found again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cil.errors import ConfigError
from pipelines.decode.clock import OrderCheck
from pipelines.decode.decord_decoder import DecordDecoder
from pipelines.decode.errors import refusals
from pipelines.decode.frame import SourceFrame
from pipelines.decode.probe import VideoProbe
from pipelines.decode.pyav_decoder import PyavDecoder
from pipelines.decode.torchcodec_decoder import TorchcodecDecoder

__all__ = ["DECODERS", "Decoder", "sequential"]


class Decoder(Protocol):
    """Something that turns a video file into upright RGB frames, holding few of them at a time."""

    @property
    def name(self) -> str:
        """How settings and reports call it."""
        ...

    def is_right_for(self, probe: VideoProbe) -> bool:
        """Return whether it was measured to give exactly the frames of the reference."""
        ...

    def frames(self, path: Path, probe: VideoProbe) -> Iterator[SourceFrame]:
        """Yield all frames in presentation order."""
        ...

    def frames_at(
        self, path: Path, probe: VideoProbe, numbers: Sequence[int], *, times_s: Sequence[float]
    ) -> Iterator[SourceFrame]:
        """Yield the frames of ascending numbers; each must be at its time in seconds."""
        ...


DECODERS: dict[str, Decoder] = {
    decoder.name: decoder for decoder in (PyavDecoder(), DecordDecoder(), TorchcodecDecoder())
}


def sequential(path: Path, probe: VideoProbe, *, decoder: str = "pyav") -> Iterator[SourceFrame]:
    """Decode a whole video in order, and accept nothing that is missing or out of order.

    Args:
        path: video file.
        probe: of that file.
        decoder: a name in `DECODERS`; where it is not right for the file, PyAV decodes. Only PyAV
            finds damage inside frames: the others paint over it without an error.

    Yields:
        All frames in presentation order. What came before an error is not to be trusted: only a
        video that is read to its end is whole.

    Raises:
        DecodeError: the file is damaged, or its times are.
        ConfigError: there is no such decoder.
    """
    if decoder not in DECODERS:
        known = ", ".join(sorted(DECODERS))
        raise ConfigError(f"there is no decoder {decoder!r}; choose one of: {known}")
    chosen = DECODERS[decoder]
    if not chosen.is_right_for(probe):
        chosen = DECODERS["pyav"]
    with refusals(stage="decode", decoder=chosen.name):
        order = OrderCheck(probe, decoder=chosen.name)
        for frame in chosen.frames(path, probe):
            order.add(frame.time_s)
            yield frame
        order.finish()
