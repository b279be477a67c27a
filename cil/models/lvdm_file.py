"""A model of ``dynamicrafter`` or ``videocrafter1`` straight from a published checkpoint file.

In: the ``.ckpt`` or ``.safetensors``, and settings where they are not those of the published model.
Out: network, projector and first stage, mapped from the file. The encoders are in the file under
OpenCLIP's names; to encode or train in a pipeline, make a folder of it by ``cil import``. To sample
it is enough to name folders with encoders.
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
from cil.models.lvdm_folder import LVDMFolders, Model
from cil.models.lvdm_import import check_schedule, refuse_other_family, with_rescale
from cil.models.null_condition import NullCondition
from cil.models.strict_loading import load_strict

__all__ = ["load_lvdm_file"]


def load_lvdm_file(
    model: type[Model],
    settings: type[LVDMSettings],
    path: Path,
    *,
    first_stage: FirstStage | None = None,
    null_condition: NullCondition | None = None,
    folders: LVDMFolders | None = None,
    weights: bool = True,
    changes: Mapping[str, Any],
) -> Model:
    """Read a checkpoint; see the module's docstring.

    Args:
        model: class of the family.
        settings: its settings class.
        path: the file; only tensors are read from it.
        first_stage: the codec in place of the file's.
        null_condition: what is told without caption and image; the file has none.
        folders: where encoders are.
        weights: False leaves network and projector on the meta device, and reads no first stage.
        changes: settings of the model and, flat, of its network by published names.

    Raises:
        ConfigError: settings that do not fit.
        DataError: the file is damaged, refused, or not of this family.
    """
    parts = split_lvdm(read_checkpoint(path), source=path)
    refuse_other_family(settings.family, parts, path)
    config = settings.of(with_rescale(parts, changes, path))
    check_schedule(parts, config, path)
    with torch.device("meta"):
        network, projector = LVDMUNet(config.unet), Resampler(**config.projector)
    if weights:
        load_strict(network, parts.unet, source=path, dtype=torch.float32)
        load_strict(projector, parts.projector, source=path, dtype=torch.float32)
    if weights and first_stage is None and parts.first_stage:
        first_stage = AutoencoderKLFirstStage(vae_from_ldm(parts.first_stage, source=path))
    return model(  # type: ignore[call-arg]
        config=config,
        network=network.eval(),
        image_projector=projector,
        first_stage=first_stage,
        null_condition=null_condition,
        folders=folders,
    )
