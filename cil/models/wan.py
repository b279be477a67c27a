"""The ``wan`` family: Wan 2.1 image-to-video, in the folders that diffusers publishes and reads.

    model = load("Wan2.1-I2V-14B-480P-Diffusers", num_frames=81, height=480, width=832)
    frames = cil.generate.generate(model, image, seed=0, start_time=0.94, analytic_init=statistics)
    model.save(folder)      # opens with diffusers' WanImageToVideoPipeline.from_pretrained

One network of flow matching that attends to CLIP's tokens of the image; Wan 2.2 is not read. What
the network is told is in `cil.models.wan_model`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cil.errors import ConfigError, DataError
from cil.models.base import FirstStage
from cil.models.diffusers_network import check_known, folder_with, read_own_settings
from cil.models.first_stage import load_first_stage
from cil.models.null_condition import NullCondition
from cil.models.wan_config import PUBLISHED_NETWORK, WanConfig, check_network, read_flow_shift
from cil.models.wan_layers import WAN_KIND
from cil.models.wan_model import WanModel

__all__ = ["WanConfig", "WanModel", "build", "load"]


def build(
    *,
    seed: int = 0,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    text_encoder: Path | None = None,
    null_condition: NullCondition | None = None,
    **config: Any,
) -> WanModel:
    """Make a model with fresh weights, a pure function of the arguments.

    Args:
        seed: of the weights; the global generator is left as it was.
        first_stage: the codec, needed to save the model; training does not need it.
        encoders: folder with image_encoder/ and image_processor/, needed to sample.
        text_encoder: folder with text_encoder/ and tokenizer/, needed to sample.
        null_condition: tokens of the empty text, where there is no text encoder.
        **config: fields of ``WanConfig``, and arguments of the network as its config.json has them;
            where nothing is given they are those of the published 14B network.

    Returns:
        The model, on the CPU, float32.

    Raises:
        ConfigError: unknown setting, value out of range, or a first stage that does not fit.
    """
    settings = WanConfig.of(config, network=PUBLISHED_NETWORK)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = WAN_KIND.new(settings.network)
    return WanModel(
        config=settings,
        network=network,
        first_stage=first_stage,
        encoders=encoders,
        text_encoder=text_encoder,
        null_condition=null_condition,
    )


def load(
    folder: Path,
    *,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    text_encoder: Path | None = None,
    null_condition: NullCondition | None = None,
    weights: bool = True,
    **changes: Any,
) -> WanModel:
    """Read a pipeline of diffusers, published or written by ``WanModel.save``.

    Args:
        folder: holds transformer/ and scheduler/, and vae/, image_encoder/, text_encoder/ and
            tokenizer/ unless others are given.
        first_stage: the codec in place of the folder's.
        encoders: folder with image_encoder/ in place of this one.
        text_encoder: folder with text_encoder/ and tokenizer/ in place of this one.
        null_condition: tokens of the empty text in place of the folder's.
        weights: False leaves the network on the meta device, without weights, and reads no first
            stage, for plans.
        **changes: fields of ``WanConfig`` in place of the folder's.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: a change that is no setting or does not fit.
        DataError: a part is missing, damaged, or of another family.
    """
    written = WAN_KIND.config(folder)
    if (folder / "transformer_2").is_dir():
        raise DataError(
            f"{folder} has two networks (transformer_2/), as Wan 2.2 A14B; the family wan is the "
            "one network of Wan 2.1 I2V"
        )
    check_network(folder / WAN_KIND.folder / "config.json", written)
    own = read_own_settings(folder, WanModel.family)
    check_known(changes, WanConfig, WanModel.family)
    try:
        settings = WanConfig(**{**own, **read_flow_shift(folder)}, network=written)
    except (TypeError, ConfigError) as error:
        raise DataError(f"{folder} does not describe a wan model: {error}") from error
    settings = replace(settings, **changes)
    if weights:
        network = WAN_KIND.read(folder)
        first_stage = load_first_stage(folder) if first_stage is None else first_stage
    else:
        network = WAN_KIND.new_without_weights(settings.network)
    network.eval()
    return WanModel(
        config=settings,
        network=network,
        first_stage=first_stage,
        encoders=folder_with("image_encoder", encoders, folder),
        text_encoder=folder_with("text_encoder", text_encoder, folder),
        null_condition=NullCondition.load(folder) if null_condition is None else null_condition,
    )
