"""The ``videocrafter1`` family: VideoCrafter1 from images to videos, in a model folder of ours.

VP without zero terminal SNR, with dynamic rescale; the network predicts the noise. It sees noisy
latents alone: the image enters by 16 tokens behind those of the caption, the same for all frames,
so TimeNoise is for tokens here. It is told the frame rate. See `cil.models.dynamicrafter`.
"""

from pathlib import Path
from typing import Any

from cil.models.lvdm_config import VideoCrafter1Config
from cil.models.lvdm_folder import build_lvdm, load_lvdm
from cil.models.lvdm_model import LVDMModel
from cil.parameterization import Parameterization

__all__ = ["VideoCrafter1Config", "VideoCrafter1Model", "build", "load"]


class VideoCrafter1Model(LVDMModel):
    """A network of VideoCrafter1 and its parts. Implements ``ImageToVideoModel``."""

    family = "videocrafter1"
    parameterization = Parameterization.EPSILON


def build(**options: Any) -> VideoCrafter1Model:
    """Make a model with fresh weights; see `cil.models.dynamicrafter.build`.

    Args:
        **options: the same, with fields of ``VideoCrafter1Config``.

    Returns:
        The model, on the CPU, float32.
    """
    return build_lvdm(VideoCrafter1Model, VideoCrafter1Config, **options)


def load(folder: Path, **options: Any) -> VideoCrafter1Model:
    """Read a model folder; see `cil.models.dynamicrafter.load`.

    Args:
        folder: what ``VideoCrafter1Model.save`` or ``cil import`` wrote.
        **options: the same, with fields of ``VideoCrafter1Config``.

    Returns:
        The model, on the CPU, float32, in evaluation mode.
    """
    return load_lvdm(VideoCrafter1Model, VideoCrafter1Config, folder, **options)
