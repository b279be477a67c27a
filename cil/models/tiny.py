"""The ``tiny`` family: the network of Stable Video Diffusion at toy size, for a CPU.

    model = build(seed=0, first_stage=codec, num_frames=8, height=32, width=32)
    denoised = model.denoise(noisy, sigma, condition)

EDM preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1) with the network's output as F:
``denoised = c_skip * noisy + c_out * F(c_in * noisy, ln(sigma) / 4)``; the conditioning latents
join on the channels. The image token is zero: the conditioning latents alone show the image.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.losses import Network
from cil.models.adapter import ModelAdapter
from cil.models.base import FORMAT_VERSION, ClipConditions, FirstStage
from cil.models.diffusers_network import save_network
from cil.models.first_stage import load_first_stage
from cil.models.frames import as_frames
from cil.models.storage import read_json, read_tensors, write_json
from cil.models.svd_layers import (
    SVD_LORA_TARGETS,
    svd_network_call,
    svd_temporal_parameters,
)
from cil.models.tiny_config import TinyConfig
from cil.parameterization import Parameterization

__all__ = ["TinyConfig", "TinyModel", "build", "load"]

_SIZES = ("num_frames", "sample_size")
"""Arguments of the network that decide no weight."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"  # the name that diffusers gives


class TinyModel(ModelAdapter):
    """A tiny network, its first stage and its settings. Implements ``ImageToVideoModel``."""

    family = "tiny"
    parameterization = Parameterization.EDM
    told_motion_of_clips = False

    def encode_condition(self, frame: Any) -> Tensor:
        """Make the image token, zeros whatever the image (H, W, 3) uint8: (1, D) float32."""
        as_frames(frame[None])
        return torch.zeros(1, self.config.cross_attention_dim)

    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return what training's loss calls; the network is told the frame rate as it is."""
        return svd_network_call(
            self.network if network is None else network,
            fps_id=clips.fps,
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
        """Write the model folder; ``state_dict`` replaces the network's own weights, for EMA."""
        save_network(self.network, folder / "unet", state_dict=state_dict)
        self.first_stage.save(folder / "first_stage")
        named = {"format_version": FORMAT_VERSION, "family": self.family}
        write_json(folder / "model.json", {**named, **asdict(self.config)})


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
            f"unknown setting of tiny models: {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    settings = TinyConfig(**config)
    network = _new_network(settings, seed=seed)
    return TinyModel(config=settings, network=network, first_stage=first_stage)


def load(
    folder: Path,
    *,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    weights: bool = True,
    **changes: Any,
) -> TinyModel:
    """Read a model folder that ``TinyModel.save`` wrote.

    Args:
        folder: holds model.json, unet/ and first_stage/.
        first_stage: the codec in place of the folder's.
        encoders: other families have some; this one takes none.
        weights: False leaves the network on the meta device, without weights, and reads no first
            stage, for plans.
        **changes: fields of ``TinyConfig`` in place of the folder's.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: encoders were given, or a change is no setting or means another network.
        DataError: no such folder, another family's, or parts that do not fit together.
    """
    if encoders is not None:
        raise ConfigError(f"a tiny model has no encoders, got {encoders}; leave them out")
    settings = _read_settings(folder)
    # The number of heads does not show in any weight: compare the settings, not the shapes.
    written = read_json(folder / "unet" / "config.json")
    for name, want in settings.network_config().items():
        if written.get(name) != want:
            raise DataError(
                f"{folder}: unet/config.json has {name} = {written.get(name)}, model.json means "
                f"{want}; save the model again"
            )
    settings = _changed(settings, folder, changes)
    if not weights:
        with torch.device("meta"):
            network = _new_network(settings, seed=0).to("meta")  # some of it heeds no device
        return TinyModel(config=settings, network=network, first_stage=first_stage)
    network = _new_network(settings, seed=0)
    try:
        network.load_state_dict(read_tensors(folder / "unet" / _WEIGHTS))
    except RuntimeError as error:
        raise DataError(f"{folder}: the weights in unet/ are not the network's: {error}") from error
    network.eval()
    if first_stage is None:
        first_stage = load_first_stage(folder / "first_stage")
    return TinyModel(config=settings, network=network, first_stage=first_stage)


def _read_settings(folder: Path) -> TinyConfig:
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
        return TinyConfig(**listed)
    except (TypeError, ConfigError) as error:
        raise DataError(f"{folder / 'model.json'} is not of a tiny model: {error}") from error


def _changed(settings: TinyConfig, folder: Path, changes: Mapping[str, Any]) -> TinyConfig:
    """Put other settings in place of the folder's, as far as its weights allow."""
    unknown = sorted(set(changes) - {field.name for field in fields(TinyConfig)})
    if unknown:
        raise ConfigError(f"unknown setting of tiny models: {', '.join(unknown)}")
    changed = replace(settings, **changes)
    asked = changed.network_config()
    for name, has in settings.network_config().items():
        if name not in _SIZES and asked[name] != has:
            raise ConfigError(
                f"the network in {folder} has {name} = {has}, the settings ask for {asked[name]}; "
                "give its own, or start from fresh weights"
            )
    return changed


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
