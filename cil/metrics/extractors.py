"""Video networks in TorchScript files of the user: features for FVD and KVD, classes for IS.

In: videos (B, F, H, W, 3) uint8 and a file. Out: (B, D) float32, with the file's sha256 and the
name of the preprocessing, which say what a number was made with.

    network = VideoNetwork.from_file("i3d_torchscript.pt", "i3d")
    features = network.features(videos)            # (B, 400)

Every file is tried on two made-up videos when it is read, so that the wrong network is refused
before any video is sampled. No file comes with this project, and none of the published ones has
been run by it: their licences and their output are yours to check.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from cil.errors import ConfigError, DataError
from cil.metrics.weight_files import file_sha256, reason_for_absence, script_module

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Videos = npt.NDArray[np.uint8]
    Features = npt.NDArray[np.float32]

__all__ = ["PREPROCESSING", "Preprocessing", "VideoNetwork", "find_video_network"]

_PROBE_SIDE = 128
_SAME_ROW = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What videos go through before a network, and what must come out of it. Never edit one.

    A network always gets (B, 3, F, H, W) float32.
    """

    name: str
    """Goes into every measurement; another preprocessing has another name."""
    scale: float
    """Pixels 0..255 are divided by it: 1 leaves them, 255 makes 0..1."""
    side: int | None
    """Frames are squeezed to this square, bilinear without antialiasing; None leaves their size."""
    num_frames: int | None
    """Frames of a video; None takes any number from ``least_frames``."""
    least_frames: int
    """Fewest frames."""
    width: int | None
    """Columns of the output; None takes any."""
    outputs: Literal["features", "logits", "probabilities"]
    """What the columns are."""
    arguments: Mapping[str, bool] = field(default_factory=dict)
    """Keyword arguments of the network."""


_PLAIN = Preprocessing(
    name="plain: 0..255, own size",
    scale=1.0,
    side=None,
    num_frames=None,
    least_frames=1,
    width=None,
    outputs="features",
)

PREPROCESSING: dict[str, Preprocessing] = {
    "i3d": Preprocessing(
        name="i3d-stylegan-v: 0..255, rescaled and resized by the file",
        scale=1.0,
        side=None,
        num_frames=None,
        least_frames=10,
        width=400,
        outputs="features",
        arguments={"rescale": True, "resize": True, "return_features": True},
    ),
    "videomae": Preprocessing(
        name="videomae-cd-fvd: 0..1, 224 x 224 bilinear",
        scale=255.0,
        side=224,
        num_frames=16,
        least_frames=16,
        width=1408,
        outputs="features",
    ),
    "c3d": Preprocessing(
        name="c3d-ucf101-stylegan-v: 0..255, resized by the file",
        scale=1.0,
        side=None,
        num_frames=16,
        least_frames=16,
        width=101,
        outputs="probabilities",
    ),
    "features": _PLAIN,
    "logits": replace(_PLAIN, outputs="logits"),
}
"""By kind of file: the published I3D, VideoMAE and C3D, and any other network."""


class VideoNetwork:
    """A TorchScript network from videos to rows."""

    def __init__(
        self, module: Any, preprocessing: Preprocessing, *, sha256: str, source: str, device: str
    ) -> None:
        """Take a module; use ``from_file``, which tries it."""
        self._module, self._device, self._source = module, device, source
        self.preprocessing = preprocessing
        self.sha256 = sha256
        self.width = 0

    @classmethod
    def from_file(
        cls, path: str | Path, kind: str, *, device: str = "cpu", probe_frames: int = 16
    ) -> Self:
        """Read a file and try it.

        Args:
            path: TorchScript file.
            kind: ``i3d``, ``videomae``, ``c3d``, ``features`` or ``logits``; see `PREPROCESSING`.
            device: ``cpu``, ``cuda`` or ``cuda:N``. Results of two devices differ slightly.
            probe_frames: frames of the videos that it is tried on, where any number is allowed.

        Raises:
            ConfigError: an unknown kind, no such file or device.
            DataError: no TorchScript file, or another network than ``kind`` says.
        """
        if kind not in PREPROCESSING:
            raise ConfigError(f"kind must be one of {', '.join(PREPROCESSING)}, got {kind!r}")
        network = cls(
            script_module(path, device=device),
            PREPROCESSING[kind],
            sha256=file_sha256(path),
            source=f"{path} as {kind}",
            device=device,
        )
        network._try(PREPROCESSING[kind].num_frames or probe_frames)
        return network

    def features(self, videos: "Videos") -> "Features":
        """Return a row for each video.

        Args:
            videos: (B, F, H, W, 3) uint8 RGB.

        Returns:
            (B, D) float32 on the CPU: features, logits or probabilities, as ``preprocessing`` says.

        Raises:
            DataError: no such videos, too few or too many frames, or a row that is not finite.
        """
        import numpy as np

        if videos.ndim != 5 or videos.shape[-1] != 3 or videos.dtype != np.uint8 or not videos.size:
            raise DataError(
                f"videos must be (B, F, H, W, 3) uint8, got {videos.shape} {videos.dtype}"
            )
        count, wanted = videos.shape[1], self.preprocessing
        if (wanted.num_frames or count) != count or count < wanted.least_frames:
            raise DataError(
                f"{self._source} takes {wanted.num_frames or f'at least {wanted.least_frames}'} "
                f"frames, got {count}; cut or sample the videos to that length"
            )
        rows = self._run(videos)
        if self.width and rows.shape[1] != self.width:
            raise DataError(
                f"{self._source} gave {rows.shape[1]} columns after {self.width}: they depend on "
                "the size of the videos; give all the same size"
            )
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if wrong.size:
            raise DataError(f"{self._source} gave NaN or Inf for video {wrong[0]} of the batch")
        return rows

    def _run(self, videos: "Videos") -> "Features":
        import numpy as np
        import torch

        from cil.models.pretrained import exact_arithmetic

        place = torch.device(self._device)
        pixels = torch.from_numpy(np.array(videos)).to(place).permute(0, 4, 1, 2, 3).float()
        pixels = self._squeezed(pixels / self.preprocessing.scale).contiguous()
        try:
            with exact_arithmetic(place):
                out = self._module(pixels, **self.preprocessing.arguments)
        except (RuntimeError, TypeError, ValueError) as error:
            # The last line of a TorchScript error names the cause, those before it the program.
            reason = str(error).strip().rpartition("\n")[2][:200]
            raise DataError(
                f"{self._source} cannot be run on {tuple(pixels.shape)} ({reason}); it is another "
                "network, or wants other input"
            ) from error
        if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(videos):
            found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise DataError(
                f"{self._source} must give one row per video, ({len(videos)}, D), got {found}; it "
                "is another network"
            )
        rows: Features = out.float().cpu().numpy()
        return rows

    def _squeezed(self, pixels: "Tensor") -> "Tensor":
        from torch.nn import functional

        side = self.preprocessing.side
        if side is None:
            return pixels
        batch, colours, frames = pixels.shape[:3]
        flat = pixels.transpose(1, 2).flatten(0, 1)
        flat = functional.interpolate(flat, (side, side), mode="bilinear", align_corners=False)
        return flat.reshape(batch, frames, colours, side, side).transpose(1, 2)

    def _try(self, num_frames: int) -> None:
        """Refuse a network whose output on two made-up videos is not what its kind says."""
        import numpy as np

        videos = np.random.Generator(np.random.Philox(0)).integers(
            0, 256, (2, num_frames, _PROBE_SIDE, _PROBE_SIDE, 3), np.uint8
        )
        videos[1] //= 4
        rows, wanted = self.features(videos), self.preprocessing
        if wanted.width not in (None, rows.shape[1]):
            raise DataError(
                f"{self._source} must give {wanted.width} columns, got {rows.shape[1]}; it is "
                "another network"
            )
        if np.array_equal(rows[0], rows[1]):
            raise DataError(f"{self._source} gives the same row for different videos")
        alone = self._run(videos[:1])[0]
        if np.abs(alone - rows[0]).max() > _SAME_ROW * max(float(np.abs(rows[0]).max()), 1e-6):
            raise DataError(
                f"{self._source} gives another row for a video alone than among others; save the "
                "network in evaluation mode, and without dropout"
            )
        if wanted.outputs == "probabilities" and (
            (rows < 0).any() or np.abs(rows.sum(axis=1) - 1).max() > 1e-3
        ):
            raise DataError(f"{self._source} must give probabilities, got rows that sum otherwise")
        self.width = rows.shape[1]


def find_video_network(
    path: str | Path | None, kind: str, *, device: str = "cpu"
) -> VideoNetwork | str:
    """Read a network, or say why what needs it is absent: no file was given, or it is not there.

    A file that is there and wrong is an error, see `VideoNetwork.from_file`.
    """
    reason = reason_for_absence(path, f"{kind} file")
    if reason is not None or path is None:
        return str(reason)
    return VideoNetwork.from_file(path, kind, device=device)
