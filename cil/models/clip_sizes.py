"""The sizes that the settings of every family have: those of a clip and of its latents."""

from cil.errors import ConfigError

__all__ = ["ClipSizes"]


class ClipSizes:
    """Base of the families' settings, whose dataclasses have these fields."""

    __slots__ = ()

    num_frames: int
    height: int
    width: int
    fps: float
    latent_channels: int
    downsampling: int

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of one clip."""
        rows, columns = self.height // self.downsampling, self.width // self.downsampling
        return self.num_frames, self.latent_channels, rows, columns

    def check_sizes(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a size is not above 0, or is no multiple of ``downsampling``.
        """
        for name in ("num_frames", "latent_channels", "downsampling", "fps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"model.{name} must be > 0, got {getattr(self, name)}")
        for name in ("height", "width"):
            size = getattr(self, name)
            if size < 1 or size % self.downsampling:
                raise ConfigError(
                    f"model.{name} must be a multiple of downsampling = {self.downsampling}, "
                    f"got {size}; round it"
                )
