"""Optical flow by RAFT, from a TorchScript file of the user.

In: a file that maps two images (1, 3, H, W) to their flow (1, 2, H, W), or to a list or tuple whose
last entry is it (RAFT's own code and torchvision's both do). Out: `RAFTFlow`, a `FlowMethod`.

The file is tried on a picture that is shifted by a known step, so that a network of something else,
swapped axes or the wrong direction are refused. Published weights have not been run here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cil.errors import ConfigError, DataError
from cil.metrics.flow import SHORT_SIDE, check_frame, resized
from cil.metrics.weight_files import file_sha256, script_module

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

__all__ = ["RAFTFlow"]

_MULTIPLE = 8
_RANGES = {"0..255": (1.0, 0.0), "-1..1": (127.5, 1.0)}
_SHIFT = (6, -3)
_ALLOWED_PX = 2.0


class RAFTFlow:
    """RAFT on colour frames with a short side of 256 pixels, padded to multiples of 8."""

    name = "raft"

    def __init__(self, module: Any, *, pixels: str, sha256: str, source: str, device: str) -> None:
        """Take a module; use ``from_file``, which tries it."""
        self._module, self._device, self._source = module, device, source
        self._divisor, self._offset = _RANGES[pixels]
        self.sha256 = sha256
        self.preprocessing = f"raft: {pixels}, short side {SHORT_SIDE}, padded to {_MULTIPLE}"

    @classmethod
    def from_file(cls, path: str | Path, *, pixels: str = "0..255", device: str = "cpu") -> Self:
        """Read a file and try it.

        Args:
            path: TorchScript file, called with two images.
            pixels: what the network takes: ``0..255`` (RAFT's own code) or ``-1..1`` (torchvision).
            device: ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            ConfigError: another range, no such file or device.
            DataError: no TorchScript file, or a network that does not find a known shift.
        """
        if pixels not in _RANGES:
            raise ConfigError(f"pixels must be one of {', '.join(_RANGES)}, got {pixels!r}")
        method = cls(
            script_module(path, device=device),
            pixels=pixels,
            sha256=file_sha256(path),
            source=str(path),
            device=device,
        )
        method._try()
        return method

    def prepare(self, frame: "Pixels") -> "Pixels":
        """Return the frame in colour, with a short side of 256 pixels."""
        check_frame(frame)
        return resized(frame)

    def flow(self, early: "Pixels", late: "Pixels") -> Any:
        """Return the flow between two frames of one size, (H, W, 2) float32.

        Raises:
            DataError: the network does not give a flow, or one that is not finite.
        """
        import torch

        from cil.models.pretrained import exact_arithmetic

        rows, columns = early.shape[:2]
        try:
            with exact_arithmetic(torch.device(self._device)):
                out = self._module(self._input(early), self._input(late))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().rpartition("\n")[2][:200]
            raise DataError(
                f"{self._source} cannot be run on two images ({reason}); it is no flow network"
            ) from error
        if isinstance(out, list | tuple) and out:
            out = out[-1]
        wanted = (1, 2, _padded(rows), _padded(columns))
        if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
            found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise DataError(
                f"{self._source} must give a flow {wanted}, got {found}; it is another network"
            )
        if not bool(out.isfinite().all()):
            raise DataError(f"{self._source} gave NaN or Inf as flow")
        return out[0, :, :rows, :columns].permute(1, 2, 0).float().cpu().contiguous().numpy()

    def _input(self, frame: "Pixels") -> Any:
        import numpy as np
        import torch
        from torch.nn import functional

        pixels = torch.from_numpy(np.array(frame)).to(self._device).permute(2, 0, 1)[None].float()
        rows, columns = frame.shape[:2]
        border = (0, _padded(columns) - columns, 0, _padded(rows) - rows)
        padded = functional.pad(pixels, border, mode="replicate")
        return padded / self._divisor - self._offset

    def _try(self) -> None:
        import cv2
        import numpy as np

        noise = np.random.Generator(np.random.Philox(0)).normal(size=(300, 340, 3))
        smooth = sum(cv2.GaussianBlur(noise, (0, 0), width) * width for width in (2, 5, 12))
        picture = np.clip(128 + 40 * smooth / np.std(smooth), 0, 255).astype(np.uint8)
        dx, dy = _SHIFT
        early, late = picture[20:276, 20:340], picture[20 - dy : 276 - dy, 20 - dx : 340 - dx]
        found = np.median(self.flow(early, late).reshape(-1, 2), axis=0)
        if np.hypot(*(found - _SHIFT)) > _ALLOWED_PX:
            raise DataError(
                f"{self._source} finds a flow of ({found[0]:.1f}, {found[1]:.1f}) px where a "
                f"picture was shifted by {_SHIFT}: it is no flow network, or takes pixels in "
                "another range (0..255 or -1..1)"
            )


def _padded(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE
