"""First stage of the published families: the variational autoencoders of diffusers.

    codec = AutoencoderKLFirstStage.from_diffusers("stable-video-diffusion-img2vid-xt")
    posterior = codec.encode(frames)            # (F, C, H / 8, W / 8)

Reads ``AutoencoderKL`` (one image at a time, Stable Diffusion) and ``AutoencoderKLTemporalDecoder``
(Stable Video Diffusion, whose decoder looks at neighbouring frames). Both encode frame by frame.

Bytes: one call encodes one clip, cut into chunks of ``frames_per_chunk`` frames from its start, so
what goes through the network together depends on the clip and the options alone. Equal clips give
equal bytes on the same machine, device, libraries and number of threads. Other chunks change
float32 latents by rounding only (up to 6e-6 measured at full size, on values up to 0.8); a dtype or
a tile size changes them visibly, so name the options beside the fingerprint of any latents.

A folder that ``save`` wrote holds first_stage.json and vae/, which diffusers reads too.
"""

import copy
import inspect
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.models.base import FORMAT_VERSION, Posterior
from cil.models.first_stage import FirstStageOptions
from cil.models.frames import as_frames
from cil.models.pretrained import (
    check_device,
    check_dtype,
    exact_arithmetic,
    load_strictly,
    part_of,
)
from cil.models.storage import digest, read_json, write_json, write_tensors
from cil.shapes import check_shape

__all__ = ["AutoencoderKLFirstStage"]

_WEIGHTS = "diffusion_pytorch_model"  # the name that diffusers gives


class AutoencoderKLFirstStage:
    """Frames to latents and back by an autoencoder of diffusers. Implements ``FirstStage``."""

    kind: ClassVar[str] = "autoencoder_kl"
    classes: ClassVar[tuple[str, ...]] = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")
    """Classes of diffusers that are read."""

    def __init__(self, vae: Any, *, options: FirstStageOptions | None = None) -> None:
        """Take a network; use ``from_diffusers`` or ``load``.

        Args:
            vae: an ``AutoencoderKL`` or ``AutoencoderKLTemporalDecoder``, float32, frozen; it is
                moved to the device.
            options: where and how to compute; by default the CPU, float32.

        Raises:
            ConfigError: a device that is not there, or a tile size that does not divide.
            DataError: latents that are shifted as well as scaled.
        """
        self.options = FirstStageOptions() if options is None else options
        self._config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
        self._class = type(vae).__name__
        self._check()
        tile_size = self.options.tile_size
        self._device = check_device(self.options.device)
        self._dtype = check_dtype(self.options.dtype)
        # The weights as published: what is saved, and what the fingerprint names.
        self._weights = vae
        self._digest: str | None = None
        network = vae if self._dtype == torch.float32 else copy.deepcopy(vae)
        # Not diffusers' own to(): it warns of modules kept in float32, though there are none.
        self._decoder = nn.Module.to(network, device=self._device, dtype=self._dtype)
        self._encoder = _tiled(self._decoder, tile_size) if tile_size else self._decoder

    @classmethod
    def from_diffusers(
        cls, folder: str | Path, *, options: FirstStageOptions | None = None
    ) -> Self:
        """Read a folder as it is published.

        Args:
            folder: holds config.json and diffusion_pytorch_model.safetensors, or is a diffusers
                pipeline with both in ``vae/``.
            options: where and how to compute; by default the CPU, float32.

        Returns:
            The first stage; all its weights come from the folder.

        Raises:
            ConfigError: options that do not fit, or diffusers is not installed.
            DataError: a file is missing, damaged, pickled or of another kind of network.
        """
        try:
            import diffusers
        except ImportError as error:
            raise ConfigError(
                f"the first stage {cls.kind} needs diffusers; "
                "pip install 'conditional-image-leakage[models]'"
            ) from error
        part = part_of(Path(folder), "vae")
        config = read_json(part / "config.json")
        name = config.get("_class_name")
        if name not in cls.classes:
            raise DataError(
                f"{part} holds a {name!r}; this first stage reads {' and '.join(cls.classes)}"
            )
        network = getattr(diffusers, name)
        known = inspect.signature(network.__init__).parameters
        unknown = sorted(key for key in config if not key.startswith("_") and key not in known)
        if unknown:
            raise DataError(
                f"{part / 'config.json'} has settings that diffusers {diffusers.__version__} does "
                f"not know: {', '.join(unknown)}; use the version of diffusers that wrote it"
            )

        def load(*args: Any, **kwargs: Any) -> Any:
            return network.from_pretrained(*args, low_cpu_mem_usage=False, **kwargs)

        return cls(load_strictly(load, part, stem=_WEIGHTS), options=options)

    @property
    def scaling_factor(self) -> float:
        """Multiplies unscaled latents so that the network sees a mean square of about one."""
        return float(self._config["scaling_factor"])

    @property
    def network_class(self) -> str:
        """Name of the class in diffusers."""
        return self._class

    @property
    def latent_channels(self) -> int:
        """C, channels of the latents."""
        return int(self._config["latent_channels"])

    @property
    def downsampling(self) -> int:
        """H / h = W / w: two for each stage of the encoder but the last."""
        return int(2 ** (len(self._config["block_out_channels"]) - 1))

    def encode(self, frames: Any) -> Posterior:
        """Encode the frames of one clip; see the module's docstring for what the bytes depend on.

        Args:
            frames: (F, H, W, 3) uint8 RGB, a torch tensor or a numpy array. Bytes go to the
                device and are made floats there.

        Returns:
            The posterior of the unscaled latents, (F, C, h, w) float32 on the CPU.

        Raises:
            DataError: another shape or dtype, a size that ``downsampling`` does not divide, or
                latents that are not finite.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        tensor = as_frames(frames, divisor=self.downsampling)
        with exact_arithmetic(self._device):
            parts = [
                self._moments(chunk) for chunk in torch.split(tensor, self.options.frames_per_chunk)
            ]
            gaussian = DiagonalGaussianDistribution(torch.cat(parts))
            mean, std = gaussian.mean.cpu(), gaussian.std.cpu()
        return self._finite(Posterior(mean=mean, std=std))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents; chunks are of ``decode_frames_per_chunk`` frames.

        Args:
            latents: (F, C, h, w) floating point, unscaled.

        Returns:
            (F, H, W, 3) uint8 RGB on the CPU.

        Raises:
            DataError: another shape, or a value that is not finite, given or made.
        """
        self._check_latents(latents)
        with exact_arithmetic(self._device):
            chunks = torch.split(latents, self._decode_chunk(len(latents)))
            return torch.cat([self._pixels(chunk) for chunk in chunks]).cpu()

    def fingerprint(self) -> str:
        """Return the sha256 (64 hex digits) over settings and weights, as they were published.

        It does not depend on the options, on where the folder lies or on settings at their
        default; ``options`` must be named beside it, since dtype and tile size change latents.
        """
        if self._digest is None:
            self._digest = digest(self._settings(), self._weights.state_dict())
        return self._digest

    def save(self, folder: Path) -> None:
        """Write ``first_stage.json`` and ``vae/`` into ``folder``; the weights stay float32."""
        part = folder / "vae"
        part.mkdir(parents=True, exist_ok=True)
        write_json(part / "config.json", {"_class_name": self._class, **self._config})
        tensors = {name: value.cpu() for name, value in self._weights.state_dict().items()}
        write_tensors(part / f"{_WEIGHTS}.safetensors", tensors)
        described = {"scaling_factor": self.scaling_factor, "fingerprint": self.fingerprint()}
        named = {"format_version": FORMAT_VERSION, "kind": self.kind}
        write_json(folder / "first_stage.json", {**named, **described})

    @classmethod
    def load(cls, folder: Path, *, options: FirstStageOptions | None = None) -> Self:
        """Read what ``save`` wrote.

        Raises:
            ConfigError: options that do not fit.
            DataError: a file is missing or damaged, or the two do not belong together.
        """
        settings = read_json(folder / "first_stage.json")
        if settings.get("kind") != cls.kind or settings.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{folder} must hold a {cls.kind} first stage of format {FORMAT_VERSION}, got "
                f"{settings.get('kind')!r} of format {settings.get('format_version')!r}"
            )
        codec = cls.from_diffusers(folder / "vae", options=options)
        if codec.fingerprint() != settings.get("fingerprint"):
            raise DataError(
                f"{folder} is damaged: its weights have the fingerprint {codec.fingerprint()}, "
                f"its settings say {settings.get('fingerprint')}; save the first stage again"
            )
        return codec

    def _check(self) -> None:
        """Refuse settings that cannot be computed with."""
        shifted = [
            k for k in ("shift_factor", "latents_mean", "latents_std") if self._config.get(k)
        ]
        if shifted:
            raise DataError(
                f"this {self._class} sets {', '.join(shifted)}: its latents are shifted as well as "
                "scaled, which no family with it does; use one with a scaling_factor only"
            )
        tile_size, step = self.options.tile_size, 4 * self.downsampling
        if tile_size is not None and tile_size % step:
            raise ConfigError(
                f"tile_size must be a multiple of {step} pixels, so that a quarter of a tile, the "
                f"overlap, is whole in latents; got {tile_size}"
            )

    def _check_latents(self, latents: Tensor) -> None:
        check_shape("latents", latents, "F C h w", C=self.latent_channels)
        if latents.numel() == 0 or not bool(latents.isfinite().all()):
            raise DataError(
                f"latents must be finite and at least one frame, got {tuple(latents.shape)} with "
                "NaN, Inf or nothing in it; look for the step that made them"
            )

    def _finite(self, posterior: Posterior) -> Posterior:
        if not bool(posterior.mean.isfinite().all() and posterior.std.isfinite().all()):
            raise DataError(
                f"the first stage made latents that are not finite, in {self.options.dtype}; "
                "use dtype float32, and check the weights if it was"
            )
        return posterior

    def _bytes(self, pixels: Tensor) -> Tensor:
        """Round pixels in [-1, 1]: (F, 3, H, W) to (F, H, W, 3) uint8."""
        if not bool(pixels.isfinite().all()):
            raise DataError(
                f"the first stage made pixels that are not finite, in {self.options.dtype}; check "
                "the size of the latents, which must not be scaled"
            )
        levels = (pixels.float() * 127.5 + 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _moments(self, frames: Tensor) -> Tensor:
        """Run the encoder: (F, H, W, 3) uint8 to (F, 2 C, h, w) float32, mean and log variance."""
        pixels = frames.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        moments: Tensor = self._encoder.encode(pixels.to(self._dtype)).latent_dist.parameters
        return moments.float()

    def _pixels(self, latents: Tensor) -> Tensor:
        """Run the decoder: (F, C, h, w) to (F, H, W, 3) uint8."""
        latents = latents.to(device=self._device, dtype=self._dtype)
        temporal = {"num_frames": len(latents)} if self._is_temporal else {}
        return self._bytes(self._decoder.decode(latents, **temporal).sample)

    def _decode_chunk(self, num_frames: int) -> int:
        """Return how many frames go through the decoder at once."""
        if self.options.decode_frames_per_chunk is not None:
            return self.options.decode_frames_per_chunk
        return num_frames if self._is_temporal else self.options.frames_per_chunk

    @property
    def _is_temporal(self) -> bool:
        """Whether the decoder looks at neighbouring frames."""
        return self._class == "AutoencoderKLTemporalDecoder"

    def _settings(self) -> dict[str, Any]:
        """Return what the fingerprint covers besides the weights.

        Settings at their default are left out, so that a library that adds one changes nothing.
        """
        known = inspect.signature(type(self._weights).__init__).parameters
        chosen = {
            name: value
            for name, value in self._config.items()
            if _as_json(value) != _as_json(known[name].default)
        }
        return {"kind": self.kind, "class": self._class, "config": chosen}


def _as_json(value: Any) -> Any:
    """Return a list for a tuple, which is what JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value


def _tiled(vae: Any, tile_size: int) -> Any:
    """Return a network with the parts of ``vae`` that encodes in tiles, as diffusers does.

    The temporal class has no tiles of its own; its encoder is that of ``AutoencoderKL``, so it is
    lent to one, whose other half stays empty.
    """
    from diffusers import AutoencoderKL

    if not isinstance(vae, AutoencoderKL):
        known = inspect.signature(AutoencoderKL.__init__).parameters
        settings = {name: value for name, value in vae.config.items() if name in known}
        with torch.device("meta"):
            twin = AutoencoderKL(**settings)
        twin.encoder, twin.quant_conv, vae = vae.encoder, vae.quant_conv, twin
    vae.enable_tiling()
    vae.tile_sample_min_size = tile_size
    vae.tile_latent_min_size = tile_size // 2 ** (len(vae.config.block_out_channels) - 1)
    return vae
