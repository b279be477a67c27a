"""Settings of the families ``dynamicrafter`` and ``videocrafter1``; their network has `LVDMConfig`.

In: names of settings of the model, of its network under the published names, and the projector's.
Out: one frozen object that refuses what does not fit together.
"""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args

from cil.errors import ConfigError
from cil.models.clip_sizes import ClipSizes
from cil.models.lvdm.config import IMAGE_TOKENS_PER_FRAME, LVDMConfig
from cil.noise_schedule import VPSchedule

__all__ = ["DynamiCrafterConfig", "LVDMSettings", "VideoCrafter1Config"]

RateCondition = Literal["fps", "frame_stride"]

_PUBLISHED_NAMES = {"image_cross_attention": "use_image_attention", "fps_condition": "fps_cond"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LVDMSettings(ClipSizes):
    """What both families have; ``model.json`` holds the same names."""

    num_frames: int = 16
    """Frames of a clip, >= 1."""
    height: int = 320
    """Frame height in pixels, a multiple of ``downsampling``."""
    width: int = 512
    """Frame width in pixels, a multiple of ``downsampling``."""
    fps: float = 24.0
    """Frames per second of a sampled clip, > 0; the network is told, rounded."""
    latent_channels: int = 4
    """Channels of the latents; the first stage must agree."""
    downsampling: int = 8
    """Pixels per latent, each way; the first stage must agree."""
    base_scale: float = 0.7
    """Dynamic rescale: factor of the clean latents from timestep 400 on, > 0; 1 turns it off."""
    zero_terminal_snr: bool = False
    """Whether the last timestep is pure noise."""
    guidance_scale: float = 12.0
    """Guidance scale of sampling, >= 0; 1 is off."""
    guidance_rescale: float = 0.0
    """Share of the guidance rescale, in [0, 1]."""
    image_token_replacement: float = 0.0
    """Probability in [0, 1] of training with pure noise in place of the image tokens, drawn once
    for a whole batch."""
    network: dict[str, Any] = field(default_factory=dict)
    """Settings of the network, by the names of `LVDMConfig`."""
    projector: dict[str, Any] = field(default_factory=dict)
    """Arguments of the image projector, `Resampler`."""

    family: ClassVar[str] = ""
    concatenates: ClassVar[bool] = False
    """Whether the network gets conditioning latents beside the noisy ones."""
    tokens_per_frame: ClassVar[bool] = False
    """Whether the projector makes tokens for each frame of its own."""
    rate_argument: ClassVar[str] = "fps"
    """Name under which the network is told of speed."""
    own_network: ClassVar[Mapping[str, Any]] = {}
    """What the family's network has, where nothing else is given."""

    def __post_init__(self) -> None:
        """Check what would fail later, or silently compute something else.

        Raises:
            ConfigError: a value out of range, or parts that do not fit together.
        """
        if not self.network:
            own = LVDMConfig.published({**self.own_network, "temporal_length": self.num_frames})
            object.__setattr__(self, "network", asdict(own))
        if not self.projector:
            object.__setattr__(self, "projector", self._own_projector(self.unet, self.num_frames))
        _ = self.schedule
        self.check_sizes()
        for name in ("guidance_rescale", "image_token_replacement"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"model.{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.guidance_scale >= 0:
            raise ConfigError(f"model.guidance_scale must be >= 0, got {self.guidance_scale}")
        self._check_network()
        self._check_projector()

    @classmethod
    def of(cls, given: Mapping[str, Any], **written: Any) -> Self:
        """Sort settings into those of the model, of its network, and of its projector.

        Args:
            given: settings of the model or, flat, of the network by published names; ``projector``
                is a mapping.
            **written: ``network`` and ``projector`` as a folder has them, which ``given`` changes.

        Raises:
            ConfigError: an unknown setting or a value that does not fit.
        """
        own = {item.name for item in fields(cls)} - {"network", "projector"}
        taken = {name: value for name, value in given.items() if name in own}
        parts = own | {"network", "projector"}
        flat = {name: value for name, value in given.items() if name not in parts}
        network = {
            **cls.own_network,
            **written.get("network", {}),
            **given.get("network", {}),
            **flat,
        }
        unet = LVDMConfig.published(network)
        if "temporal_length" in network:
            taken.setdefault("num_frames", unet.temporal_length)
        projector = {
            **cls._own_projector(unet, taken.get("num_frames", 16)),
            **written.get("projector", {}),
            **given.get("projector", {}),
        }
        return cls(**taken, network=asdict(unet), projector=projector)

    @property
    def unet(self) -> LVDMConfig:
        """Settings of the network."""
        return LVDMConfig.published(self.network)

    @property
    def published_network(self) -> dict[str, Any]:
        """Settings of the network under the names of the family's configuration files."""
        values = dict(asdict(self.unet))
        if not self.unet.fps_condition:
            values.pop("fps_condition")
            return values
        for name in ("fs_condition", "default_fs"):
            values.pop(name)
        return {_PUBLISHED_NAMES.get(name, name): value for name, value in values.items()}

    @property
    def motion_bucket_id(self) -> float:
        """0: the network is not told of motion."""
        return 0.0

    @property
    def sampling_frame_stride(self) -> float:
        """Frame stride that the network is told in sampling, if it is told one."""
        return 1.0

    @property
    def schedule(self) -> VPSchedule:
        """Noise levels of training and sampling."""
        return VPSchedule(zero_terminal_snr=self.zero_terminal_snr, base_scale=self.base_scale)

    @classmethod
    def _own_projector(cls, unet: LVDMConfig, num_frames: int) -> dict[str, Any]:
        """Return the projector that fits a network."""
        width = unet.context_dim
        frames = {"video_length": num_frames} if cls.tokens_per_frame else {}
        return {
            "dim": width,
            "output_dim": width,
            "num_queries": IMAGE_TOKENS_PER_FRAME,
            **frames,
        }

    def _check_network(self) -> None:
        unet = self.unet
        wanted = {
            "in_channels": self.latent_channels * (2 if self.concatenates else 1),
            "out_channels": self.latent_channels,
            "fs_condition": self.rate_argument == "fs",
            "fps_condition": self.rate_argument == "fps",
        }
        wrong = [
            f"{name} must be {value}, got {getattr(unet, name)}"
            for name, value in wanted.items()
            if getattr(unet, name) != value
        ]
        if wrong:
            raise ConfigError(
                f"the network is not one of the family {self.family}: {'; '.join(wrong)}; choose "
                "the family of these weights"
            )
        for name in ("height", "width"):
            size, step = getattr(self, name), unet.downsampling
            if size // self.downsampling % step:
                raise ConfigError(
                    f"model.{name} {size} makes latents of {size // self.downsampling} "
                    f"({self.downsampling} pixels each), which must divide by {step} for the "
                    f"{len(unet.channel_mult)} levels of the network; choose a multiple of "
                    f"{self.downsampling * step}"
                )

    def _check_projector(self) -> None:
        from cil.models.lvdm.resampler import Resampler

        known = set(inspect.signature(Resampler).parameters)
        unknown = sorted(set(self.projector) - known)
        if unknown:
            raise ConfigError(
                f"unknown setting of the image projector: {', '.join(unknown)}; known: "
                f"{', '.join(sorted(known))}"
            )
        width, frames = self.projector.get("output_dim"), self.projector.get("video_length")
        if width != self.unet.context_dim:
            raise ConfigError(
                f"the image projector's output_dim must be the network's context_dim = "
                f"{self.unet.context_dim}, got {width}"
            )
        if self.tokens_per_frame and frames != self.num_frames:
            raise ConfigError(
                f"the image projector makes tokens for {frames} frames and clips have "
                f"{self.num_frames}: every frame would see the tokens of all others; set "
                f"data.num_frames to {frames}"
            )
        if not self.tokens_per_frame and frames is not None:
            raise ConfigError(
                f"the image projector of {self.family} makes the same tokens for all frames, got "
                f"video_length {frames}; leave it out"
            )
        if self.tokens_per_frame and self.projector.get("num_queries") != IMAGE_TOKENS_PER_FRAME:
            raise ConfigError(
                f"the image projector must make {IMAGE_TOKENS_PER_FRAME} tokens for a frame, got "
                f"num_queries {self.projector.get('num_queries')}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamiCrafterConfig(LVDMSettings):
    """Every setting of a DynamiCrafter model; the defaults are those of the 512 model."""

    zero_terminal_snr: bool = True
    """Whether the last timestep is pure noise."""
    guidance_scale: float = 7.5
    """Guidance scale of sampling, >= 0; 1 is off."""
    guidance_rescale: float = 0.7
    """Share of the guidance rescale, in [0, 1]."""
    image_token_replacement: float = 0.95
    """Probability in [0, 1] of training with pure noise in place of the image tokens, drawn once
    for a whole batch; 0.95 in the released fine-tuning."""
    rate_condition: RateCondition = "fps"
    """What the network is told of speed: ``fps``, as the 512 and 1024 models were trained, or
    ``frame_stride``, frames of the source video from one frame of the clip to the next."""
    frame_stride: int = 3
    """Frame stride that is told in sampling, >= 1, with rate_condition ``frame_stride``."""

    family: ClassVar[str] = "dynamicrafter"
    concatenates: ClassVar[bool] = True
    tokens_per_frame: ClassVar[bool] = True
    rate_argument: ClassVar[str] = "fs"
    own_network: ClassVar[Mapping[str, Any]] = {
        "in_channels": 8,
        "fs_condition": True,
        "dropout": 0.1,
        "default_fs": 10,
    }

    def __post_init__(self) -> None:
        """Check the family's own settings too."""
        LVDMSettings.__post_init__(self)
        if self.rate_condition not in get_args(RateCondition):
            raise ConfigError(
                f"model.rate_condition must be one of {', '.join(get_args(RateCondition))}, got "
                f"{self.rate_condition!r}"
            )
        if self.frame_stride < 1:
            raise ConfigError(f"model.frame_stride must be >= 1, got {self.frame_stride}")

    @property
    def sampling_frame_stride(self) -> float:
        """Frame stride that the network is told in sampling, if it is told one."""
        return float(self.frame_stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCrafter1Config(LVDMSettings):
    """Every setting of a VideoCrafter1 image-to-video model."""

    fps: float = 8.0
    """Frames per second of a sampled clip, > 0; the network is told, rounded."""

    family: ClassVar[str] = "videocrafter1"
    own_network: ClassVar[Mapping[str, Any]] = {"in_channels": 4, "fps_condition": True}
