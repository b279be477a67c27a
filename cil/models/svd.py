"""The ``svd`` family: Stable Video Diffusion, in the folders that diffusers publishes and reads.

    model = load("stable-video-diffusion-img2vid-xt", height=320, width=512)
    frames = cil.generate.generate(model, image, seed=0, start_time=0.94, analytic_init=statistics)
    model.save(folder)      # opens with diffusers' StableVideoDiffusionPipeline.from_pretrained

EDM preconditioning as in `cil.models.tiny`. Conditioning latents are not scaled; the image token is
the projected one of CLIP; the network is told fps - 1, a motion bucket and the noise that was added
to the condition. A model folder is a pipeline of diffusers with ``model.json`` beside it.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.losses import Network
from cil.models.adapter import ModelAdapter
from cil.models.base import ClipConditions, FirstStage, Guidance
from cil.models.diffusers_network import (
    NetworkKind,
    check_divides,
    check_known,
    copy_part,
    folder_with,
    read_own_settings,
    save_network,
    write_own_settings,
)
from cil.models.first_stage import load_first_stage
from cil.models.storage import write_json
from cil.models.svd_config import PUBLISHED_HEADS, SVDConfig
from cil.models.svd_layers import SVD_LORA_TARGETS, svd_network_call, svd_temporal_parameters
from cil.parameterization import Parameterization

__all__ = ["SVDConfig", "SVDModel", "build", "load"]

_KIND = NetworkKind(
    family="svd", class_name="UNetSpatioTemporalConditionModel", settings_name="SVDConfig"
)
_ENCODER_PARTS = ("image_encoder", "feature_extractor")


class SVDModel(ModelAdapter):
    """A network of Stable Video Diffusion and its parts. Implements ``ImageToVideoModel``."""

    family = "svd"
    parameterization = Parameterization.EDM

    def __init__(
        self,
        *,
        config: SVDConfig,
        network: nn.Module,
        first_stage: FirstStage | None,
        encoders: Path | None = None,
    ) -> None:
        """Take the parts; ``encoders`` is a folder with image_encoder/ and feature_extractor/."""
        super().__init__(config=config, network=network, first_stage=first_stage)
        self._encoders = encoders

    @property
    def conditioning_scale(self) -> float:
        """1: the network gets conditioning latents as the first stage makes them."""
        return 1.0

    @property
    def guidance(self) -> Guidance:
        """Guidance that grows over the frames."""
        config = self.config
        return Guidance(first=config.first_guidance_scale, last=config.last_guidance_scale)

    @cached_property
    def _image_encoder(self) -> Any:
        from cil.models.condition_encoders import ImageEncoder

        if self._encoders is None:
            raise ConfigError(
                "this model has no image encoder; load it from a folder with image_encoder/, or "
                "pass encoders="
            )
        return ImageEncoder.from_folder(self._encoders)

    def encode_condition(self, frame: Any) -> Tensor:
        """Make CLIP's projected token of an image (H, W, 3) uint8: (1, D) float32."""
        tokens: Tensor = self._image_encoder.encode(frame)
        return tokens

    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return what training's loss calls; see ``ImageToVideoModel.network_call``."""
        return svd_network_call(
            self.network if network is None else network,
            fps_id=(clips.fps - 1.0).clamp(min=0.0),
            motion_bucket_id=clips.motion_bucket_id,
            dtype=next(self.network.parameters()).dtype,
        )

    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""
        return svd_temporal_parameters(self.network)

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts, by the ends of their names."""
        return SVD_LORA_TARGETS

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write a pipeline of diffusers; ``state_dict`` replaces the network's weights, for EMA."""
        from diffusers import EulerDiscreteScheduler

        save_network(self.network, folder / "unet", state_dict=state_dict)
        self.first_stage.save(folder)
        if self._encoders is not None:
            for part in _ENCODER_PARTS:
                copy_part(self._encoders / part, folder / part)
        EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_type="continuous",
            timestep_spacing="leading",
            steps_offset=1,
            use_karras_sigmas=True,
            sigma_min=self.config.sigma_min,
            sigma_max=self.config.sigma_max,
        ).save_pretrained(folder / "scheduler")
        write_json(folder / "model_index.json", _model_index(self.first_stage))
        settings = asdict(self.config)
        settings.pop("network")  # stands in unet/config.json
        write_own_settings(folder, self.family, settings)


def build(
    *,
    seed: int = 0,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    **config: Any,
) -> SVDModel:
    """Make a model with fresh weights, a pure function of the arguments.

    Args:
        seed: of the weights; the global generator is left as it was.
        first_stage: the codec, needed to save the model; training does not need it.
        encoders: folder with image_encoder/ and feature_extractor/, needed to sample.
        **config: fields of ``SVDConfig``, and arguments of the network as its config.json has them;
            where nothing is given they are those of the published networks.

    Returns:
        The model, on the CPU, float32.

    Raises:
        ConfigError: unknown setting, value out of range, or a first stage that does not fit.
    """
    settings = SVDConfig.of(config, network={"num_attention_heads": PUBLISHED_HEADS})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _KIND.new(settings.network)
    return SVDModel(config=settings, network=network, first_stage=first_stage, encoders=encoders)


def load(
    folder: Path,
    *,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    weights: bool = True,
    **changes: Any,
) -> SVDModel:
    """Read a pipeline of diffusers, published or written by ``SVDModel.save``.

    Args:
        folder: holds unet/, and vae/ and image_encoder/ unless others are given.
        first_stage: the codec in place of the folder's.
        encoders: folder with image_encoder/ in place of this one.
        weights: False leaves the network on the meta device, without weights, and reads no first
            stage, for plans.
        **changes: fields of ``SVDConfig`` in place of the folder's.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: a change that is no setting or does not fit.
        DataError: a part is missing, damaged, or of another family.
    """
    written = _KIND.config(folder)
    check_divides(folder, written, "num_attention_heads")
    own = read_own_settings(folder, SVDModel.family)
    check_known(changes, SVDConfig, SVDModel.family)
    try:
        settings = SVDConfig.of(own, network=written)
    except (TypeError, ConfigError) as error:
        raise DataError(f"{folder / 'model.json'} is not of an svd model: {error}") from error
    settings = replace(settings, **changes)
    if weights:
        network = _KIND.read(folder)
        first_stage = load_first_stage(folder) if first_stage is None else first_stage
    else:
        network = _KIND.new_without_weights(settings.network)
    network.eval()
    return SVDModel(
        config=settings,
        network=network,
        first_stage=first_stage,
        encoders=folder_with("image_encoder", encoders, folder),
    )


def _model_index(first_stage: FirstStage) -> dict[str, Any]:
    """Return what diffusers reads to know the parts of the pipeline."""
    import diffusers

    vae = getattr(first_stage, "network_class", None)
    if vae != "AutoencoderKLTemporalDecoder":
        raise ConfigError(
            "an svd model needs an AutoencoderKLTemporalDecoder as first stage, got "
            f"{vae or type(first_stage).__name__}"
        )
    return {
        "_class_name": "StableVideoDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", _KIND.class_name],
        "vae": ["diffusers", vae],
    }
