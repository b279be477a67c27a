"""Settings of the network, for all families; what a family does not have cannot be set for it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

from cil.models import config_class
from cil.time_noise import TimeNoiseConfig

__all__ = [
    "FAMILIES_WITH_TEXT",
    "LVDM_FAMILIES",
    "WAN_TEXT_LENGTH",
    "ModelConfig",
    "family_settings",
    "model_mistakes",
    "noise_mistakes",
    "token_width",
    "told_mistakes",
]

LVDM_FAMILIES = ("dynamicrafter", "videocrafter1")
"""Families with the LVDM network; their image tokens are CLIP's hidden ones, projected."""
FAMILIES_WITH_TEXT = (*LVDM_FAMILIES, "i2vgenxl", "wan")
"""Families whose network is told a caption."""
WAN_TEXT_LENGTH = 512
"""Tokens of a caption for the family wan."""

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network that is trained, and its noise schedule; null takes the family's own."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    family: Literal["tiny", "svd", "dynamicrafter", "videocrafter1", "i2vgenxl", "wan"] = "tiny"
    """Model family, a name in the registry of `cil.models`."""
    pretrained: str | None = None
    """Folder of published weights, as diffusers writes a pipeline, or a model folder of ours. Every
    family but tiny needs it; first stage and encoders are taken from it where `first_stage.path`,
    `condition.image_encoder` and `condition.text_encoder` do not name others. tiny takes the
    network alone, and null begins with fresh weights."""
    block_out_channels: Annotated[tuple[Count, ...], MinLen(2)] | None = None
    """Channels per level (tiny); one level must have at least 64, or the network cannot see sigma.
    """
    layers_per_block: Count | None = None
    """Residual blocks per level (tiny)."""
    num_attention_heads: Annotated[tuple[Count, ...], MinLen(2)] | None = None
    """Attention heads per level (tiny)."""
    cross_attention_dim: Count | None = None
    """Width of an image token (tiny)."""
    addition_time_embed_dim: Count | None = None
    """Width of the embedding of fps, motion bucket and sigma_cond (tiny)."""
    p_mean: float | None = None
    """Mean of ln(sigma) in training (EDM: tiny, svd)."""
    p_std: Positive | None = None
    """Standard deviation of ln(sigma) in training (EDM: tiny, svd)."""
    sigma_min: Positive | None = None
    """Smallest sigma of sampling (EDM: tiny, svd)."""
    sigma_max: Positive | None = None
    """Largest sigma of sampling (EDM: tiny, svd)."""
    motion_bucket_id: Annotated[float, Ge(0), Le(255)] | None = None
    """Motion bucket that the network is told of every clip (tiny, svd), in training and sampling.
    null tells a clip's own, by its measured motion, in training and 127 in sampling; tiny is always
    told 127 then."""
    base_scale: Positive | None = None
    """Dynamic rescale of clean latents (dynamicrafter, videocrafter1); 0.7 for models of 512
    pixels, 0.3 for those of 1024."""
    rate_condition: Literal["fps", "frame_stride"] | None = None
    """What the network is told of speed (dynamicrafter)."""
    frame_stride: Count | None = None
    """Frame stride that is told in sampling, with rate_condition frame_stride (dynamicrafter)."""
    image_token_replacement: Annotated[float, Ge(0), Le(1)] | None = None
    """Probability of a training step with noise in place of the image tokens (dynamicrafter has
    0.95, videocrafter1 0)."""
    guidance_scale: Annotated[float, Ge(0)] | None = None
    """Guidance scale of sampling, 1 is off (dynamicrafter has 7.5, videocrafter1 12, i2vgenxl 9,
    wan 5)."""
    guidance_rescale: Annotated[float, Ge(0), Le(1)] | None = None
    """Share of the guidance rescale (dynamicrafter has 0.7, videocrafter1 0)."""
    negative_prompt: str | None = None
    """Text that guidance leads away from (i2vgenxl, wan)."""
    flow_shift: Positive | None = None
    """Shift of the time of flow matching, in training and sampling (wan); null takes that of the
    published folder: 3 for models of 480 rows, 5 for those of 720."""


def family_settings(model: ModelConfig) -> dict[str, Any]:
    """Return what is set of the family's own settings."""
    return {
        item.name: getattr(model, item.name)
        for item in fields(model)
        if item.name not in ("family", "pretrained") and getattr(model, item.name) is not None
    }


def token_width(model: ModelConfig) -> int:
    """Return the width of the zero token that is stored without an image encoder."""
    settings = config_class("tiny")(**(family_settings(model) if model.family == "tiny" else {}))
    return int(settings.cross_attention_dim)


def model_mistakes(model: ModelConfig) -> Iterator[str]:
    """Yield what is wrong with the settings, without reading any weights."""
    known = {item.name for item in fields(config_class(model.family))}
    given = family_settings(model)
    for name in sorted(set(given) - known):
        yield f"model.{name} is not a setting of the family {model.family}; leave it out"
    if model.family == "tiny":
        heads, channels = given.get("num_attention_heads"), given.get("block_out_channels")
        own = config_class("tiny")()
        heads, channels = heads or own.num_attention_heads, channels or own.block_out_channels
        if len(heads) != len(channels):
            yield (
                "model.num_attention_heads must have one number per level of "
                f"model.block_out_channels, got {len(heads)} and {len(channels)}"
            )
    elif model.pretrained is None:
        yield (
            f"model.family {model.family} needs model.pretrained, the folder of the published "
            "weights"
        )
    low, high = given.get("sigma_min"), given.get("sigma_max")
    if low is not None and high is not None and high <= low:
        yield f"model.sigma_max must be > sigma_min = {low}, got {high}"


def noise_mistakes(
    model: ModelConfig, time_noise: TimeNoiseConfig, condition_dropout: float
) -> Iterator[str]:
    """Yield what is wrong with the noise on the condition and its dropping for a family."""
    if model.family == "wan":
        yield from _noise_mistakes_of_clips(time_noise)
    if model.family not in LVDM_FAMILIES:
        return
    if condition_dropout > 1 / 3:
        yield (
            f"train.condition_dropout is the probability of each of three cases for "
            f"{model.family} and must be at most 1/3, got {condition_dropout}; 0.05 is usual"
        )
    if time_noise.preset == "none" and time_noise.token_law() is None:
        return
    target = time_noise.law().target
    if model.family == "videocrafter1" and target != "tokens":
        yield (
            f"time_noise.target must be tokens for videocrafter1, got {target}: its network gets "
            "no conditioning latents; set it, or take the preset paper-videocrafter"
        )
    replacement = model.image_token_replacement
    if replacement is None:
        defaults: dict[str, Any] = {
            item.name: item.default for item in fields(config_class(model.family))
        }
        replacement = float(defaults["image_token_replacement"])
    if target in ("tokens", "both") and replacement > 0:
        yield (
            f"time_noise.target {target} and model.image_token_replacement {replacement} both put "
            "noise on the image tokens; set one of them to latents or 0"
        )


def _noise_mistakes_of_clips(time_noise: TimeNoiseConfig) -> Iterator[str]:
    """Yield what is wrong where conditioning latents are those of a clip, not of one image."""
    if time_noise.preset == "none":
        return
    law = time_noise.law()
    if law.target in ("latents", "both") and law.noise != "per_frame":
        yield (
            f"time_noise.noise must be per_frame for wan, got {law.noise}: all frames of its "
            "conditioning latents but the first are of grey frames, which show any noise that is "
            "repeated over them, so that it could be taken off the image again; set it"
        )


def told_mistakes(
    model: ModelConfig, *, text_length: int | None, conditioning_frame: str
) -> Iterator[str]:
    """Yield what is wrong with the conditions of a family."""
    if model.family != "wan":
        return
    if text_length not in (None, WAN_TEXT_LENGTH):
        yield (
            f"condition.text_length must be {WAN_TEXT_LENGTH} for wan, whose attention counts on "
            f"it, got {text_length}; leave it out"
        )
    if conditioning_frame != "first":
        yield (
            f"train.conditioning_frame must be first for wan, got {conditioning_frame}: the data "
            "set holds conditioning latents of the first frame; leave it out"
        )
