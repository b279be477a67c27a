"""Cut the centre square out of an image as published pipelines do, by Pillow, bit for bit."""

from typing import Any

import torch
from torch import Tensor

from cil.errors import ConfigError

__all__ = ["centre_square", "clip_square"]


def centre_square(frame: Tensor, size: int) -> Tensor:
    """Cover a square as wide as the image, crop its centre, and resize that.

    Both steps round to bytes: a box filter to the square, a bilinear filter to ``size``.

    Args:
        frame: (H, W, 3) uint8 RGB.
        size: side of the result in pixels, >= 1.

    Returns:
        (size, size, 3) uint8, on the CPU.

    Raises:
        ConfigError: Pillow is not installed.

    Source: ``_center_crop_wide`` and ``_resize_bilinear`` of diffusers' I2VGenXLPipeline.
    """
    pillow = _pillow("an i2vgenxl")
    image = pillow.fromarray(frame.cpu().numpy())
    side, shorter = image.width, min(image.width, image.height)
    scale = shorter / side
    covering = round(image.width // scale), round(image.height // scale)
    image = image.resize(covering, resample=pillow.Resampling.BOX)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return _tensor(image.resize((size, size), pillow.Resampling.BILINEAR))


def clip_square(frame: Tensor, size: int) -> Tensor:
    """Resize the shorter side to ``size`` by a bicubic filter, rounded to bytes; crop the centre.

    Args:
        frame: (H, W, 3) uint8 RGB.
        size: side of the result in pixels, >= 1.

    Returns:
        (size, size, 3) uint8, on the CPU.

    Raises:
        ConfigError: Pillow is not installed.

    Source: transformers' ``CLIPImageProcessor`` with its own settings, by Pillow.
    """
    pillow = _pillow("a wan")
    image = pillow.fromarray(frame.cpu().numpy())
    shorter = min(image.width, image.height)
    width, height = (int(size * side / shorter) for side in (image.width, image.height))
    image = image.resize((width, height), pillow.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return _tensor(image.crop((left, top, left + size, top + size)))


def _pillow(model: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            f"the tokens of {model} model need Pillow; "
            "pip install 'conditional-image-leakage[models]'"
        ) from error
    return Image


def _tensor(image: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image))
