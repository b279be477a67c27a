"""First stages by the kind that their folder names, so that a reader need not know it."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cil.errors import ConfigError, DataError
from cil.models.base import FirstStage
from cil.models.clip_first_stage import ClipFirstStage
from cil.models.pretrained import check_dtype, part_of
from cil.models.storage import read_json

__all__ = [
    "FirstStageOptions",
    "latent_frames",
    "latent_layout",
    "load_first_stage",
    "takes_no_options",
]

_PATCH_PCA = ("cil.models.patch_pca", "PatchPCA")
_AUTOENCODER_KL = ("cil.models.autoencoder_kl", "AutoencoderKLFirstStage")
_AUTOENCODER_KL_WAN = ("cil.models.wan_vae", "WanFirstStage")
_KINDS = {
    "autoencoder_kl": _AUTOENCODER_KL,
    "autoencoder_kl_wan": _AUTOENCODER_KL_WAN,
    "patch_pca": _PATCH_PCA,
}
_WITH_OPTIONS = {"autoencoder_kl", "autoencoder_kl_wan"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstStageOptions:
    """Where and how a first stage that is a neural network computes; not part of what it is."""

    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N``; it must be there when the first stage is loaded."""

    dtype: str = "float32"
    """``float32`` (TF32 is never used) or ``bfloat16``, which changes latents visibly."""

    frames_per_chunk: int = 8
    """Frames through the encoder at once, >= 1; bounds memory, changes latents by rounding only."""

    decode_frames_per_chunk: int | None = None
    """Frames through the decoder at once, >= 1; None means all for a decoder that looks at
    neighbouring frames (it sees those of its chunk only), ``frames_per_chunk`` for any other."""

    tile_size: int | None = None
    """Side in pixels of the overlapping square tiles that larger frames are encoded in, a multiple
    of four times the downsampling; None encodes whole frames. Saves memory, changes latents. A
    decoder that looks at neighbouring frames decodes whole frames all the same."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a value out of range.
        """
        check_dtype(self.dtype)
        for name in ("frames_per_chunk", "decode_frames_per_chunk", "tile_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")


def load_first_stage(path: str | Path, *, options: FirstStageOptions | None = None) -> FirstStage:
    """Read a first-stage folder of any kind.

    Args:
        path: a folder that ``FirstStage.save`` wrote, such as ``MODEL/first_stage``; or an
            autoencoder as diffusers publishes it, alone or in the ``vae/`` of a pipeline.
        options: where and how to compute; None means the CPU, float32. The patch codec computes
            exactly, on the CPU, and takes none.

    Returns:
        The first stage.

    Raises:
        ConfigError: options for a kind that takes none, or that do not fit the kind.
        DataError: no such folder, unknown kind, or a damaged one.
    """
    folder = Path(path)
    described = folder / "first_stage.json"
    if not described.is_file():
        if any((folder / name).is_file() for name in ("config.json", "vae/config.json")):
            config = read_json(part_of(folder, "vae") / "config.json")
            is_wan = config.get("_class_name") == "AutoencoderKLWan"
            chosen = _class(_AUTOENCODER_KL_WAN if is_wan else _AUTOENCODER_KL)
            return cast(FirstStage, chosen.from_diffusers(folder, options=options))
        raise DataError(
            f"cannot read {described}, and {folder} is no diffusers folder either (config.json or "
            "vae/config.json); give a folder that save() wrote or a published autoencoder"
        )
    kind = read_json(described).get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise DataError(f"{path} holds an unknown kind of first stage, {kind!r}; known: {known}")
    if kind in _WITH_OPTIONS:
        return cast(FirstStage, _class(_KINDS[kind]).load(folder, options=options))
    if options not in (None, FirstStageOptions()):
        raise ConfigError(
            f"a first stage of the kind {kind} has no options, got {options}; leave them at their "
            "defaults"
        )
    return cast(FirstStage, _class(_KINDS[kind]).load(folder))


def latent_layout(path: str | Path) -> tuple[int, int]:
    """Read the latent channels and the downsampling of a first stage, without its weights.

    Args:
        path: as for ``load_first_stage``.

    Returns:
        C, and pixels per latent each way.

    Raises:
        DataError: no such folder, or a damaged one.
    """
    folder = Path(path)
    if takes_no_options(folder):  # small
        codec = load_first_stage(folder)
        return codec.latent_channels, codec.downsampling
    described = part_of(folder, "vae") / "config.json"
    config = read_json(described)
    if config.get("_class_name") == "AutoencoderKLWan":
        channels, stages = config.get("z_dim"), config.get("dim_mult")
    else:
        channels, stages = config.get("latent_channels"), config.get("block_out_channels")
    if not isinstance(channels, int) or not isinstance(stages, list) or not stages:
        raise DataError(
            f"{described} must give latent_channels and block_out_channels (z_dim and dim_mult for "
            f"AutoencoderKLWan), got {channels} and {stages}; take the config.json that the "
            "weights were published with"
        )
    return channels, int(2 ** (len(stages) - 1)) * int(config.get("patch_size") or 1)


def latent_frames(first_stage: FirstStage, num_frames: int) -> int:
    """Return the frames of the latents of a clip: as many, unless the first stage compresses time.

    Raises:
        DataError: the first stage cannot encode a clip of so many frames.
    """
    if isinstance(first_stage, ClipFirstStage):
        return first_stage.latent_frames(num_frames)
    return num_frames


def _class(where: tuple[str, str]) -> Any:
    """Import a class by its module and name."""
    return getattr(importlib.import_module(where[0]), where[1])


def takes_no_options(path: str | Path) -> bool:
    """Tell whether a first-stage folder is of a kind that computes in one way only.

    Raises:
        DataError: the folder cannot be read.
    """
    described = Path(path) / "first_stage.json"
    return described.is_file() and str(read_json(described).get("kind")) not in _WITH_OPTIONS
