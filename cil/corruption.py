"""A noise law tied to a noise schedule: how noisy the condition is, and the noised condition.

corruption = TimeNoiseConfig(preset="mild").build(schedule)
sigma_cond = corruption.sigma_cond(level, normal, other_level)
noised = corruption.corrupt(conditioning_latents, sigma_cond, noise)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cil.baselines import NoiseLaw, VideoLevelNoise
from cil.conditioning import NoiseMode, Target, corrupt_elements, noise_shape
from cil.noise_schedule import NoiseSchedule

__all__ = ["Corruption"]


@dataclass(frozen=True, slots=True)
class Corruption:
    """A noise law tied to a noise schedule: what training and evaluation call.

    Every baseline is one of these, so the code that uses it has no branches.
    """

    law: NoiseLaw
    """Distribution of sigma_cond given t."""
    schedule: NoiseSchedule
    """Converts the video's noise level to t."""
    token_law: NoiseLaw | None = None
    """Distribution of the noise level of image tokens; None gives them sigma_cond."""

    @property
    def noise(self) -> NoiseMode:
        """How the noise is spread over frames."""
        return self.law.noise

    @property
    def target(self) -> Target:
        """What is noised: ``latents``, ``tokens``, ``both`` or ``pixels``."""
        return self.law.target

    def noise_shape(self, latents_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Return the shape of one clip's conditioning noise for latents of shape (F, C, H, W)."""
        return noise_shape(self.law.noise, latents_shape)

    def time(self, level: Tensor) -> Tensor:
        """Return the law's t (B,) of the video's noise level (B,)."""
        return self._time(self.law, level)

    def _time(self, law: NoiseLaw, level: Tensor) -> Tensor:
        if isinstance(law, VideoLevelNoise):
            return self.schedule.noise_to_signal(level)
        return self.schedule.time(level, law.time_map)

    def sigma_cond(self, level: Tensor, normal: Tensor, other_level: Tensor) -> Tensor:
        """Draw the noise level of the condition.

        Args:
            level: (B,) the video's noise level: sigma for EDM, timestep for VP, t for flow.
            normal: (B,) standard normal numbers.
            other_level: (B,) a training noise level drawn independently of ``level``; only the
                ``shuffled`` control looks at it.

        Returns:
            (B,) sigma_cond, dtype of ``normal``.
        """
        return self._drawn(self.law, level, normal, other_level)

    def sigma_tokens(self, level: Tensor, normal: Tensor, other_level: Tensor) -> Tensor:
        """Draw the noise level of the image tokens, (B,); see `sigma_cond`.

        With numbers of its own it is independent of the level of the latents; from the same
        numbers and without a law of its own it is that level.
        """
        law = self.law if self.token_law is None else self.token_law
        return self._drawn(law, level, normal, other_level)

    def _drawn(self, law: NoiseLaw, level: Tensor, normal: Tensor, other_level: Tensor) -> Tensor:
        t, other_t = (self._time(law, at).to(normal.dtype) for at in (level, other_level))
        return law.sigma_cond(t, normal, other_t=other_t)

    def corrupt(self, latents: Tensor, sigma_cond: Tensor, noise: Tensor) -> Tensor:
        """Noise conditioning latents, unless ``target`` is ``tokens`` or ``pixels``.

        Args:
            latents: (B, F, C, H, W) conditioning latents, in the scale that the network gets.
            sigma_cond: (B,).
            noise: (B, *noise_shape) standard normal.

        Returns:
            (B, F, C, H, W), dtype of ``latents``.
        """
        if self.law.target in ("tokens", "pixels"):
            return latents
        return self.law.corrupt(latents, sigma_cond, noise)

    def corrupt_tokens(self, tokens: Tensor, sigma_tokens: Tensor, noise: Tensor) -> Tensor:
        """Noise every element of image tokens, if ``target`` is ``tokens`` or ``both``.

        Args:
            tokens: (B, L, D) image tokens.
            sigma_tokens: (B,).
            noise: (B, L, D) standard normal, independent of the noise of the latents.

        Returns:
            (B, L, D), dtype of ``tokens``.
        """
        if self.law.target not in ("tokens", "both"):
            return tokens
        return corrupt_elements(tokens, sigma_tokens, noise)

    def corrupt_pixels(self, images: Tensor, sigma_cond: Tensor, noise: Tensor) -> Tensor:
        """Noise every pixel of the conditioning image, if ``target`` is ``pixels``.

        Args:
            images: (B, C, H, W) conditioning images in [-1, 1]; the result leaves that range.
            sigma_cond: (B,), in the unit of ``images``.
            noise: (B, C, H, W) standard normal.

        Returns:
            (B, C, H, W) images to encode, dtype of ``images``.
        """
        if self.law.target != "pixels":
            return images
        return corrupt_elements(images, sigma_cond, noise)
