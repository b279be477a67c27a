"""A model of ``dynamicrafter`` or ``videocrafter1`` straight from a published checkpoint file.

In: the ``.ckpt`` or ``.safetensors``, and settings where they are not those of the published model.
Out: network, projector and first stage, mapped from the file. The encoders are in the file under
OpenCLIP's names; to encode, train in a pipeline or sample, make a folder of it by ``cil import``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cil.models.autoencoder_kl import AutoencoderKLFirstStage
from cil.models.base import FirstStage
from cil.models.checkpoint_files import read_checkpoint
from cil.models.lvdm import LVDMUNet, Resampler
from cil.models.lvdm.checkpoint import split_lvdm
from cil.models.lvdm.vae import vae_from_ldm
from cil.models.lvdm_config import LVDMSettings
from cil.models.lvdm_folder import Model
from cil.models.lvdm_import import check_schedule, with_rescale
from cil.models.strict_loading import load_strict

__all__ = ["load_lvdm_file"]


def load_lvdm_file(
    model: type[Model],
    settings: type[LVDMSettings],
    path: Path,
    *,
    first_stage: FirstStage | None = None,
    changes: Mapping[str, Any],
) -> Model:
    """Read a checkpoint; see the module's docstring.

    Args:
        model: class of the family.
        settings: its settings class.
        path: the file; only tensors are read from it.
        first_stage: the codec in place of the file's.
        changes: settings of the model and, flat, of its network by published names.

    Raises:
        ConfigError: settings that do not fit.
        DataError: the file is damaged, refused, or not of this family.
    """
    parts = split_lvdm(read_checkpoint(path), source=path)
    config = settings.of(with_rescale(parts, changes))
    check_schedule(parts, config, path)
    with torch.device("meta"):
        network, projector = LVDMUNet(config.unet), Resampler(**config.projector)
    load_strict(network, parts.unet, source=path, dtype=torch.float32)
    load_strict(projector, parts.projector, source=path, dtype=torch.float32)
    if first_stage is None and parts.first_stage:
        first_stage = AutoencoderKLFirstStage(vae_from_ldm(parts.first_stage, source=path))
    return model(  # type: ignore[call-arg]
        config=config,
        network=network.eval(),
        image_projector=projector,
        first_stage=first_stage,
    )
