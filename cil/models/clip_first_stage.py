"""What a first stage has besides, that encodes clips as a whole: F frames to fewer of latents."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cil.models.base import FirstStage

__all__ = ["ClipFirstStage"]


@runtime_checkable
class ClipFirstStage(FirstStage, Protocol):
    """A first stage that compresses time: F frames become fewer frames of latents.

    Latents of the image alone do not say what a network is conditioned on then, so the first stage
    makes that too.
    """

    def latent_frames(self, num_frames: int) -> int:
        """Return the frames of the latents of a clip.

        Raises:
            DataError: a clip of so many frames cannot be encoded.
        """
        ...

    def encode_conditioning(self, frame: Any, num_frames: int) -> Tensor:
        """Encode a clip of which only the first frame is known.

        Args:
            frame: (H, W, 3) uint8 RGB.
            num_frames: of the clip.

        Returns:
            (F, C, h, w) float32, unscaled, F frames of latents; the mean of the posterior.
        """
        ...
