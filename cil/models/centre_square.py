"""Cut the centre square out of an image as I2VGen-XL does, by Pillow, bit for bit."""

import torch
from torch import Tensor

from cil.errors import ConfigError

__all__ = ["centre_square"]


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
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            "the tokens of an i2vgenxl model need Pillow; "
            "pip install 'conditional-image-leakage[models]'"
        ) from error
    import numpy as np

    image = Image.fromarray(frame.cpu().numpy())
    side, shorter = image.width, min(image.width, image.height)
    scale = shorter / side
    covering = round(image.width // scale), round(image.height // scale)
    image = image.resize(covering, resample=Image.Resampling.BOX)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))
