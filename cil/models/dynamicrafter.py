"""The ``dynamicrafter`` family: DynamiCrafter of 512 and 1024 pixels, in a model folder of ours.

    model = load(folder, num_frames=16, height=320, width=512)
    frames = cil.generate.generate(model, image, seed=0, start_time=0.94, analytic_init=statistics)

VP with zero terminal SNR and dynamic rescale; the network predicts v. Its input is noisy and
conditioning latents, both scaled; its context is the caption's tokens and 16 image tokens for each
frame. It is told a frame rate or a frame stride. ``cil import`` makes the folder of a checkpoint.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from cil.models.base import ClipConditions
from cil.models.lvdm_config import DynamiCrafterConfig
from cil.models.lvdm_folder import build_lvdm, load_lvdm
from cil.models.lvdm_model import LVDMModel
from cil.parameterization import Parameterization

__all__ = ["DynamiCrafterConfig", "DynamiCrafterModel", "build", "load"]


class DynamiCrafterModel(LVDMModel):
    """A network of DynamiCrafter and its parts. Implements ``ImageToVideoModel``."""

    family = "dynamicrafter"
    parameterization = Parameterization.V_PREDICTION

    def rate(self, clips: ClipConditions) -> Tensor:
        """Return what the network is told of speed, (B,)."""
        return clips.fps if self.config.rate_condition == "fps" else clips.frame_stride


def build(**options: Any) -> DynamiCrafterModel:
    """Make a model with fresh weights, a pure function of the arguments.

    Args:
        **options: ``seed`` of the weights, ``first_stage``, ``encoders`` and ``text_encoder``
            (folders), ``null_condition``; fields of ``DynamiCrafterConfig``; and settings of the
            network by the names of the published configuration files.

    Returns:
        The model, on the CPU, float32.

    Raises:
        ConfigError: unknown setting, value out of range, or a first stage that does not fit.
    """
    return build_lvdm(DynamiCrafterModel, DynamiCrafterConfig, **options)


def load(folder: Path, **options: Any) -> DynamiCrafterModel:
    """Read a model folder, or a published checkpoint.

    Args:
        folder: what ``DynamiCrafterModel.save`` or ``cil import`` wrote; or the published file,
            which gives no encoders and no null condition, with any of its settings among the
            options, flat.
        **options: ``first_stage``, ``encoders``, ``text_encoder`` and ``null_condition`` in place
            of the folder's; ``weights`` False leaves the network on the meta device, for plans;
            fields of ``DynamiCrafterConfig`` in place of the folder's.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: a change that is no setting or does not fit.
        DataError: a part is missing, damaged, or of another family.
    """
    return load_lvdm(DynamiCrafterModel, DynamiCrafterConfig, folder, **options)
