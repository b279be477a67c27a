"""Settings of the ``i2vgenxl`` family besides those of its network, and its noise schedule.

Settings of the network and of the schedule lie in the files that diffusers reads,
``unet/config.json`` and ``scheduler/scheduler_config.json``; the others in ``model.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from cil.errors import ConfigError, DataError
from cil.models.clip_sizes import ClipSizes
from cil.models.storage import read_json
from cil.noise_schedule import VPSchedule
from cil.vp_tables import BetaSchedule

__all__ = ["SCHEDULE_SETTINGS", "I2VGenXLConfig", "read_schedule", "scheduler_config"]

Prediction = Literal["epsilon", "v_prediction"]

SCHEDULE_SETTINGS = {
    "beta_schedule": "beta_schedule",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "num_train_timesteps": "num_train_timesteps",
    "prediction_type": "prediction_type",
    "zero_terminal_snr": "rescale_betas_zero_snr",
}
"""Our name of each setting of the schedule, and that of diffusers."""

_REFUSED = ("thresholding", "clip_sample", "trained_betas")


@dataclass(frozen=True, kw_only=True, slots=True)
class I2VGenXLConfig(ClipSizes):
    """Every setting of an I2VGen-XL model."""

    num_frames: int = 16
    """Frames of a clip, >= 1."""
    height: int = 704
    """Frame height in pixels, a multiple of ``downsampling``."""
    width: int = 1280
    """Frame width in pixels, a multiple of ``downsampling``."""
    fps: float = 16.0
    """Frames per second of a sampled clip, > 0; the network is told."""
    latent_channels: int = 4
    """Channels of the latents; the first stage and the network must agree."""
    downsampling: int = 8
    """Pixels per latent, each way; the first stage must agree."""
    guidance_scale: float = 9.0
    """Guidance scale of sampling, >= 0; 1 is off."""
    negative_prompt: str = ""
    """What guidance leads away from, beside the missing image token."""
    beta_schedule: BetaSchedule = "squaredcos_cap_v2"
    """The cosine schedule, or betas that are linear in their square roots."""
    beta_start: float = 0.00085
    """First beta of ``scaled_linear``."""
    beta_end: float = 0.012
    """Last beta of ``scaled_linear``."""
    num_train_timesteps: int = 1000
    """T, timesteps of the schedule."""
    zero_terminal_snr: bool = True
    """The last timestep is pure noise."""
    prediction_type: Prediction = "v_prediction"
    """What the network predicts."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of diffusers' ``I2VGenXLUNet``, as in its config.json."""

    motion_bucket_id: ClassVar[float] = 127.0
    """Not told to this network."""

    def __post_init__(self) -> None:
        """Check the ranges that diffusers does not."""
        _ = self.schedule
        self.check_sizes()
        if not self.guidance_scale >= 0:
            raise ConfigError(f"model.guidance_scale must be >= 0, got {self.guidance_scale}")
        if self.prediction_type not in get_args(Prediction):
            raise ConfigError(
                f"model.prediction_type must be one of {', '.join(get_args(Prediction))}, got "
                f"{self.prediction_type!r}"
            )
        if self.prediction_type == "epsilon" and self.zero_terminal_snr:
            raise ConfigError(
                "model.prediction_type epsilon says nothing at the last timestep of "
                "zero_terminal_snr, where there is noise only; use v_prediction"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any], network: Mapping[str, Any]) -> "I2VGenXLConfig":
        """Sort settings into those of the model and those of its network.

        Args:
            given: settings of either.
            network: settings of the network that ``given`` may change.
        """
        own = {item.name for item in fields(cls)} - {"network"}
        inner = {**network, **{k: v for k, v in given.items() if k not in own}}
        return cls(**{k: v for k, v in given.items() if k in own}, network=inner)

    @property
    def schedule(self) -> VPSchedule:
        """Noise levels of training and sampling."""
        return VPSchedule(
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            num_train_timesteps=self.num_train_timesteps,
            zero_terminal_snr=self.zero_terminal_snr,
        )


def read_schedule(folder: Path) -> dict[str, Any]:
    """Read the settings of the schedule from ``scheduler/`` of a pipeline folder, by our names.

    Raises:
        DataError: it is not there, or asks for what no sampler here does.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    written = read_json(path)
    refused = [name for name in _REFUSED if written.get(name)]
    if refused:
        raise DataError(
            f"{path} sets {', '.join(refused)}, which no sampler here does; take the file that the "
            "weights were published with"
        )
    missing = [theirs for theirs in SCHEDULE_SETTINGS.values() if theirs not in written]
    if missing:
        raise DataError(
            f"{path} must give {', '.join(missing)}; they cannot be seen in the weights, take the "
            "file that the weights were published with"
        )
    return {ours: written[theirs] for ours, theirs in SCHEDULE_SETTINGS.items()}


def scheduler_config(config: I2VGenXLConfig) -> dict[str, Any]:
    """Return the arguments of a ``DDIMScheduler`` that visits what our sampler visits."""
    return {
        **{theirs: getattr(config, ours) for ours, theirs in SCHEDULE_SETTINGS.items()},
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }
