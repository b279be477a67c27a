"""Embeddings of frames by CLIP or DINO, from a folder of transformers that the user supplies.

In: frames (F, H, W, 3) uint8. Out: (F, D) float32 for `cil.metrics.alignment`, with the sha256 of
settings and weights and the name of the preprocessing.

CLIP gives its projected token (what image alignment is usually measured by); DINO and DINOv2 give
the class token.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cil.errors import DataError
from cil.metrics.weight_files import reason_for_absence

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Features = npt.NDArray[np.float32]

__all__ = ["ImageNetwork", "find_image_network"]

_CLIP = ("CLIPVisionModelWithProjection", "CLIPModel")
_DINO = ("ViTModel", "Dinov2Model", "Dinov2WithRegistersModel")
_COLOURS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_MOST_SIDE = 224
_CHUNK = 16


class ImageNetwork:
    """A frozen image encoder of transformers, float32."""

    def __init__(self, network: Any, kind: str, *, device: str = "cpu") -> None:
        """Take a network; use ``from_folder``, which tries it."""
        import torch

        from cil.models.pretrained import check_device, settings_of
        from cil.models.storage import digest

        self._device = check_device(device)
        self.kind = kind
        vision = getattr(network.config, "vision_config", network.config)
        # DINOv2 is made for 518 pixels and used at 224 by custom.
        self._side = min(int(vision.image_size), _MOST_SIDE)
        self._mean, self._std = _COLOURS[kind]
        self.sha256 = digest(
            {"class": type(network).__name__, "network": settings_of(network)},
            network.state_dict(),
        )
        self.preprocessing = (
            f"{kind}: short side {self._side} bicubic antialiased, centre square, colours of {kind}"
        )
        self._network = torch.nn.Module.to(network, device=self._device)

    @classmethod
    def from_folder(cls, folder: str | Path, *, device: str = "cpu") -> Self:
        """Read a folder and try it on two made-up pictures.

        Args:
            folder: config.json and model.safetensors of a CLIP (``CLIPModel``,
                ``CLIPVisionModelWithProjection``), DINO (``ViTModel``) or DINOv2.
            device: ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            ConfigError: no such device, or transformers is not installed.
            DataError: a file is missing, pickled, damaged, or of another kind of network.
        """
        import numpy as np

        from cil.models.pretrained import architecture_of, part_of

        part = part_of(Path(folder), "image_encoder")
        name = architecture_of(part, (*_CLIP, *_DINO))
        network = cls(_read(name, part), "clip" if name in _CLIP else "dino", device=device)
        pictures = np.random.Generator(np.random.Philox(0)).integers(
            0, 256, (2, 64, 96, 3), np.uint8
        )
        pictures[1] //= 4
        tried = network.embed(pictures)
        if np.array_equal(tried[0], tried[1]):
            raise DataError(f"{folder} gives the same embedding for different pictures")
        return network

    def embed(self, frames: Any) -> "Features":
        """Return an embedding for each frame, (F, D) float32, from (F, H, W, 3) uint8 RGB.

        Raises:
            DataError: no such frames, or an embedding that is not finite.
        """
        import torch

        from cil.models.frames import as_frames
        from cil.models.pretrained import exact_arithmetic

        pictures = as_frames(frames)
        with exact_arithmetic(self._device):
            starts = range(0, len(pictures), _CHUNK)
            parts = [self._embed(pictures[start : start + _CHUNK]) for start in starts]
        rows = torch.cat(parts)
        if rows.ndim != 2 or not bool(rows.isfinite().all()):
            raise DataError(
                f"the {self.kind} folder gave {tuple(rows.shape)} with NaN or Inf or of a wrong "
                "shape; download it again"
            )
        found: Features = rows.numpy()
        return found

    def _embed(self, frames: "Tensor") -> "Tensor":
        from torch.nn import functional

        pixels = frames.to(self._device).permute(0, 3, 1, 2).float() / 255
        rows, columns = pixels.shape[-2:]
        scale = self._side / min(rows, columns)
        size = (max(round(rows * scale), self._side), max(round(columns * scale), self._side))
        pixels = functional.interpolate(
            pixels, size, mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)
        top, left = (size[0] - self._side) // 2, (size[1] - self._side) // 2
        pixels = pixels[..., top : top + self._side, left : left + self._side]
        mean, std = (pixels.new_tensor(c)[:, None, None] for c in (self._mean, self._std))
        token: Tensor = self._token((pixels - mean) / std).float().cpu()
        return token

    def _token(self, pixels: "Tensor") -> Any:
        if self.kind == "dino":
            # Only those of DINO and DINOv2 can be asked for another size than they were made for.
            return self._network(pixel_values=pixels).last_hidden_state[:, 0]
        if type(self._network).__name__ == "CLIPModel":
            out = self._network.get_image_features(pixel_values=pixels)
            return getattr(out, "pooler_output", out)
        return self._network(pixel_values=pixels).image_embeds


def _read(name: str, part: Path) -> Any:
    from functools import partial

    from cil.models.pretrained import import_transformers, load_strictly, transformers_network

    if name != "ViTModel":
        return transformers_network(name, part)
    # DINO's folders come without the pooler that ViTModel has by default, others with it.
    read = import_transformers().ViTModel.from_pretrained
    try:
        return load_strictly(partial(read, add_pooling_layer=False), part, stem="model")
    except DataError:
        return load_strictly(read, part, stem="model")


def find_image_network(
    folder: str | Path | None, *, what: str = "CLIP or DINO folder", device: str = "cpu"
) -> ImageNetwork | str:
    """Read a network, or say why what needs it is absent; a folder that is wrong is an error."""
    reason = reason_for_absence(folder, what)
    if reason is not None or folder is None:
        return str(reason)
    return ImageNetwork.from_folder(folder, device=device)
