"""Settings of the ``wan`` family besides those of its network, and its noise schedule.

Settings of the network and the time shift lie in the files that diffusers reads,
``transformer/config.json`` and ``scheduler/scheduler_config.json``; the others in ``model.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from cil.errors import ConfigError, DataError
from cil.models.clip_sizes import ClipSizes
from cil.models.storage import read_json
from cil.models.wan_vae import TEMPORAL_DOWNSAMPLING, wan_latent_frames
from cil.noise_schedule import FlowSchedule

__all__ = ["PUBLISHED_NETWORK", "WanConfig", "check_network", "read_flow_shift", "scheduler_config"]

PUBLISHED_NETWORK: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
    "rope_max_seq_len": 1024,
}
"""Arguments of the network of Wan 2.1 I2V 14B, 480p and 720p alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WanConfig(ClipSizes):
    """Every setting of a Wan model."""

    num_frames: int = 81
    """Frames of a clip, 4 k + 1."""
    height: int = 480
    """Frame height in pixels, a multiple of ``downsampling`` times the patch of the network."""
    width: int = 832
    """Frame width in pixels, as ``height``."""
    fps: float = 16.0
    """Frames per second of a sampled clip, > 0; the network is not told."""
    latent_channels: int = 16
    """Channels of the latents; the first stage and the network must agree."""
    downsampling: int = 8
    """Pixels per latent, each way; the first stage must agree."""
    guidance_scale: float = 5.0
    """Guidance scale of sampling, >= 0; 1 is off."""
    negative_prompt: str = ""
    """What guidance leads away from; the image stays."""
    flow_shift: float = 3.0
    """Shift of t in training and sampling, > 0: 3 for 480p, 5 for 720p."""
    num_train_timesteps: int = 1000
    """The network is told t times this."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of diffusers' ``WanTransformer3DModel``, as in its config.json."""

    motion_bucket_id: ClassVar[float] = 127.0
    """Not told to this network."""

    def __post_init__(self) -> None:
        """Check the ranges that diffusers does not."""
        self.check_sizes()
        _ = self.schedule
        try:
            wan_latent_frames(self.num_frames)
        except DataError as error:
            raise ConfigError(f"model.num_frames: {error}") from error
        _, *patch = self.network.get("patch_size", PUBLISHED_NETWORK["patch_size"])
        for name, side in zip(("height", "width"), patch, strict=True):
            size, step = getattr(self, name), self.downsampling * side
            if size % step:
                raise ConfigError(
                    f"model.{name} must be a multiple of {step}, which is downsampling times the "
                    f"patch of the network, got {size}; round it"
                )
        if not self.guidance_scale >= 0:
            raise ConfigError(f"model.guidance_scale must be >= 0, got {self.guidance_scale}")

    @classmethod
    def of(cls, given: Mapping[str, Any], network: Mapping[str, Any]) -> "WanConfig":
        """Sort settings into those of the model and those of its network.

        Args:
            given: settings of either.
            network: settings of the network that ``given`` may change.
        """
        own = {item.name for item in fields(cls)} - {"network"}
        inner = {**network, **{k: v for k, v in given.items() if k not in own}}
        return cls(**{k: v for k, v in given.items() if k in own}, network=inner)

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of the latents of one clip."""
        rows, columns = self.height // self.downsampling, self.width // self.downsampling
        return wan_latent_frames(self.num_frames), self.latent_channels, rows, columns

    @property
    def schedule(self) -> FlowSchedule:
        """Noise levels of training and sampling."""
        return FlowSchedule(shift=self.flow_shift, num_train_timesteps=self.num_train_timesteps)


def check_network(place: Path | str, config: Mapping[str, Any]) -> None:
    """Refuse a network that is not told of an image as this family tells it.

    Args:
        place: of the settings, for messages.
        config: settings of the network.

    Raises:
        DataError: its number of heads would be guessed, or it is another kind of Wan.
    """
    for name in ("num_attention_heads", "attention_head_dim", "patch_size"):
        if config.get(name) is None:
            raise DataError(
                f"{place} must give {name}, which cannot be seen in the weights; take the "
                "config.json that they were published with"
            )
    inputs, outputs = config.get("in_channels"), config.get("out_channels")
    wanted = 2 * int(outputs or 0) + TEMPORAL_DOWNSAMPLING
    if inputs != wanted or config["patch_size"][0] != 1:
        raise DataError(
            f"{place} has in_channels {inputs} for out_channels {outputs}, and an image-to-video "
            f"network of this family has {wanted}: noisy latents, mask and conditioning latents; "
            "text-to-video and TI2V networks of Wan are not read here"
        )
    if config.get("image_dim") is None or config.get("added_kv_proj_dim") is None:
        raise DataError(
            f"{place} has no image_dim or no added_kv_proj_dim: it attends to no image, as the two "
            "networks of Wan 2.2 A14B; the family wan is the one network of Wan 2.1 I2V"
        )
    if config.get("pos_embed_seq_len") is not None:
        raise DataError(
            f"{place} sets pos_embed_seq_len: it is told a first and a last frame; take an "
            "image-to-video network"
        )


def read_flow_shift(folder: Path) -> dict[str, Any]:
    """Read the shift and the timesteps from ``scheduler/`` of a pipeline folder, by our names.

    Raises:
        DataError: it is not there, or is not of flow matching.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    written = read_json(path)
    kind = written.get("_class_name")
    name = {"UniPCMultistepScheduler": "flow_shift", "FlowMatchEulerDiscreteScheduler": "shift"}
    flow = written.get("prediction_type", "flow_prediction") == "flow_prediction"
    if kind not in name or not flow or written.get("use_dynamic_shifting"):
        raise DataError(
            f"{path} must describe flow matching with a fixed shift ({' or '.join(name)}), got "
            f"{kind!r} with prediction_type {written.get('prediction_type')!r}; take the file that "
            "the weights were published with"
        )
    missing = [key for key in (name[kind], "num_train_timesteps") if written.get(key) is None]
    if missing:
        raise DataError(
            f"{path} must give {', '.join(missing)}; they cannot be seen in the weights, take the "
            "file that the weights were published with"
        )
    return {
        "flow_shift": written[name[kind]],
        "num_train_timesteps": written["num_train_timesteps"],
    }


def scheduler_config(config: WanConfig) -> dict[str, Any]:
    """Return the arguments of a ``UniPCMultistepScheduler``, the one that Wan is published with."""
    return {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": config.flow_shift,
        "num_train_timesteps": config.num_train_timesteps,
    }
