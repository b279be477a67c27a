"""The ``tiny`` family: the network of Stable Video Diffusion at toy size, for a CPU.

    model = build(seed=0, first_stage=codec, num_frames=8, height=32, width=32)
    denoised = model.denoise(noisy, sigma, condition)

EDM preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1) with the network's output as F:
``denoised = c_skip * noisy + c_out * F(c_in * noisy, ln(sigma) / 4)``; the conditioning latents
join on the channels. The image token is zero: the conditioning latents alone show the image.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.losses import Network, NetworkInputs
from cil.models.base import FORMAT_VERSION, Condition, FirstStage
from cil.models.first_stage import load_first_stage
from cil.models.frames import as_frames
from cil.models.storage import read_json, read_tensors, write_json
from cil.models.svd_layers import SVD_LORA_TARGETS, svd_temporal_parameters
from cil.models.tiny_config import TinyConfig
from cil.noise_schedule import EDMSchedule
from cil.parameterization import Parameterization, input_scale, to_denoised
from cil.shapes import append_dims, check_shape

__all__ = ["TinyConfig", "TinyModel", "build", "load"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"  # the name that diffusers gives


class TinyModel:
    """A tiny network, its first stage and its settings. Implements ``ImageToVideoModel``."""

    family = "tiny"
    parameterization = Parameterization.EDM

    def __init__(
        self, *, config: TinyConfig, network: nn.Module, first_stage: FirstStage | None
    ) -> None:
        if first_stage is not None:
            got = first_stage.latent_channels, first_stage.downsampling
            want = config.latent_channels, config.downsampling
            if got != want:
                raise ConfigError(
                    f"model.latent_channels and model.downsampling are {want}, the first stage has "
                    f"{got}; make them equal"
                )
        self.config = config
        self.network = network
        self._first_stage = first_stage

    @property
    def first_stage(self) -> FirstStage:
        """The codec; a ``ConfigError`` when the model was built without one."""
        if self._first_stage is None:
            raise ConfigError("this model has no first stage; pass first_stage= to build()")
        return self._first_stage

    @property
    def schedule(self) -> EDMSchedule:
        """Noise levels of training and sampling."""
        return self.config.schedule

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of one clip."""
        return self.config.latents_shape

    @property
    def conditioning_scale(self) -> float:
        """The scaling factor: conditioning latents look like the clean ones."""
        return self.first_stage.scaling_factor

    def encode_condition(self, frame: Any) -> Tensor:
        """Make the image token, zeros whatever the image (H, W, 3) uint8: (1, D) float32."""
        as_frames(frame[None])
        return torch.zeros(1, self.config.cross_attention_dim)

    def clean_condition(self, frame: Any, *, num_clips: int = 1) -> Condition:
        """Condition on one image without noise, and declare none.

        Args:
            frame: (H, W, 3) uint8 RGB of the model's size, a torch tensor or a numpy array.
            num_clips: B, rows of the batch, all alike.

        Returns:
            The condition, float32 on the CPU.
        """
        latents = self.first_stage.encode(frame[None]).mean * self.conditioning_scale
        check_shape("the image's latents", latents[0], "C h w", **self._latent_sizes())
        tokens = self.encode_condition(frame)
        rows = torch.ones(num_clips)
        return Condition(
            conditioning_latents=latents.expand(num_clips, *self.latents_shape),
            image_embeds=tokens.expand(num_clips, *tokens.shape),
            fps=rows * self.config.fps,
            motion_bucket_id=rows * self.config.motion_bucket_id,
            sigma_cond=rows * 0.0,
        )

    def network_call(
        self, *, fps: Tensor, motion_bucket_id: Tensor, network: nn.Module | None = None
    ) -> Network:
        """Return what training's loss calls; see ``ImageToVideoModel.network_call``."""
        called = self.network if network is None else network
        dtype = next(self.network.parameters()).dtype

        def call(inputs: NetworkInputs) -> Tensor:
            sigma_cond = inputs.sigma_cond
            ids = [fps.to(sigma_cond), motion_bucket_id.to(sigma_cond), sigma_cond]
            assert inputs.tokens is not None
            prediction: Tensor = called(
                inputs.concatenated().to(dtype),
                inputs.time,
                inputs.tokens.to(dtype),
                torch.stack(ids, dim=1),
                return_dict=False,
            )[0]
            return prediction.float()

        return call

    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""
        return svd_temporal_parameters(self.network)

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts, by the ends of their names."""
        return SVD_LORA_TARGETS

    def denoise(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Condition,
        *,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Estimate the clean latents; see ``ImageToVideoModel.denoise``."""
        check_shape("noisy", noisy, "B F C h w", **self._latent_sizes())
        sigma = sigma.float()
        alpha = torch.ones_like(sigma)
        c_in = append_dims(input_scale(self.parameterization, sigma), noisy.ndim)
        call = self.network_call(
            fps=condition.fps, motion_bucket_id=condition.motion_bucket_id, network=network
        )
        prediction = call(
            NetworkInputs(
                noisy=c_in * noisy,
                time=self.schedule.network_time(sigma),
                conditioning_latents=condition.conditioning_latents,
                tokens=condition.image_embeds,
                sigma_cond=condition.sigma_cond,
                keep=alpha,
            )
        )
        return to_denoised(prediction, noisy, self.parameterization, alpha=alpha, sigma=sigma)

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the model folder; ``state_dict`` replaces the network's own weights, for EMA."""
        network = self.network
        if state_dict is not None:
            network = copy.deepcopy(network)
            network.load_state_dict(dict(state_dict))
        folder.mkdir(parents=True, exist_ok=True)
        network.save_pretrained(folder / "unet")  # type: ignore[operator]
        self.first_stage.save(folder / "first_stage")
        named = {"format_version": FORMAT_VERSION, "family": self.family}
        write_json(folder / "model.json", {**named, **asdict(self.config)})

    def _latent_sizes(self) -> dict[str, int]:
        """Return the sizes that every clip's latents must have, by letter."""
        _, channels, rows, columns = self.latents_shape
        return {"C": channels, "h": rows, "w": columns}


def build(*, seed: int = 0, first_stage: FirstStage | None = None, **config: Any) -> TinyModel:
    """Make a tiny model with fresh weights, a pure function of the arguments.

    Args:
        seed: of the weights; the global generator is left as it was.
        first_stage: the codec, needed to save the model; training does not need it.
        **config: fields of ``TinyConfig``.

    Returns:
        The model, on the CPU, float32.

    Raises:
        ConfigError: unknown setting, value out of range, or a first stage that does not fit.
    """
    known = {field.name for field in fields(TinyConfig)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ConfigError(
            f"unknown setting of a tiny model: {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    settings = TinyConfig(**config)
    network = _new_network(settings, seed=seed)
    return TinyModel(config=settings, network=network, first_stage=first_stage)


def load(folder: Path) -> TinyModel:
    """Read a model folder that ``TinyModel.save`` wrote.

    Args:
        folder: holds model.json, unet/ and first_stage/.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        DataError: no such folder, another family's, or parts that do not fit together.
    """
    values = read_json(folder / "model.json")
    named = values.pop("format_version", None), values.pop("family", None)
    if named != (FORMAT_VERSION, TinyModel.family):
        raise DataError(
            f"{folder} must hold a {TinyModel.family} model of format {FORMAT_VERSION}, got "
            f"{named[1]!r} of format {named[0]!r}; load it by its own family"
        )
    listed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    try:
        settings = TinyConfig(**listed)
    except (TypeError, ConfigError) as error:
        raise DataError(f"{folder / 'model.json'} is not of a tiny model: {error}") from error
    # The number of heads does not show in any weight: compare the settings, not the shapes.
    written = read_json(folder / "unet" / "config.json")
    for name, want in settings.network_config().items():
        if written.get(name) != want:
            raise DataError(
                f"{folder}: unet/config.json has {name} = {written.get(name)}, model.json means "
                f"{want}; save the model again"
            )
    network = _new_network(settings, seed=0)
    try:
        network.load_state_dict(read_tensors(folder / "unet" / _WEIGHTS))
    except RuntimeError as error:
        raise DataError(f"{folder}: the weights in unet/ are not the network's: {error}") from error
    network.eval()
    first_stage = load_first_stage(folder / "first_stage")
    return TinyModel(config=settings, network=network, first_stage=first_stage)


def _new_network(config: TinyConfig, *, seed: int) -> nn.Module:
    """Make the network with fresh weights; diffusers is imported here, which takes seconds."""
    try:
        from diffusers import UNetSpatioTemporalConditionModel
    except ImportError as error:
        raise ConfigError(
            "the tiny family needs diffusers; pip install 'conditional-image-leakage[models]'"
        ) from error
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs too.
        torch.default_generator.manual_seed(seed)
        return cast(nn.Module, UNetSpatioTemporalConditionModel(**config.network_config()))
