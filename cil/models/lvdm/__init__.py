"""The 3-D UNet of LVDM, as DynamiCrafter and VideoCrafter1 publish it, and their image projectors.

Written after the papers and checked against outputs of the released code; module names follow the
published checkpoints, misspellings included, so that those load strictly.
"""

from cil.models.lvdm.config import LVDMConfig
from cil.models.lvdm.resampler import Resampler
from cil.models.lvdm.unet import LVDMUNet

__all__ = ["LVDMConfig", "LVDMUNet", "Resampler"]
