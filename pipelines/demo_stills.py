"""The world of stillness: a bright disc on a random texture, which drifts, or mostly stands still.

The texture is new in every clip and never moves; the disc starts in the centre of a torus. So the
first frame names the clip, and says nothing of the disc's motion: the mean motion is the same for
every image.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Motion", "Still", "draw_still", "render_still"]

Motion = Literal["moving", "still"]
"""``moving``: normal velocities. ``still``: 75 % of the discs stand still, the others have one
speed, in all directions."""

SHARE_MOVING = 0.25
"""Of the discs of ``still``."""
SPEED = 0.6
"""Of those that move, in frame widths per second."""
SPREAD = 0.35
"""Standard deviation of the velocity of ``moving``, on each axis, in frame widths per second."""
RADIUS = 0.2
_GREY, _CONTRAST, _BRIGHT = 75.0, 26.0, 235.0
_LARGEST_WAVE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Still:
    """A texture and the motion of the disc on it."""

    waves: NDArray[np.float64]
    """Amplitudes of the texture's waves: (wave in y, wave in x, cosine and sine)."""
    direction: float
    """Radians, 0 = right, pi / 2 = down."""
    speed: float
    """Frame widths per second; 0 stands still."""


def draw_still(rng: np.random.Generator, motion: Motion) -> Still:
    """Draw a clip; its texture and its motion are independent."""
    count = 2 * _LARGEST_WAVE + 1
    waves = rng.standard_normal((count, count, 2))
    if motion == "moving":
        velocity = rng.normal(0.0, SPREAD, 2)
        direction, speed = np.arctan2(velocity[1], velocity[0]), np.hypot(*velocity)
    else:
        direction = rng.uniform(0, 2 * np.pi)
        speed = SPEED if rng.uniform() < SHARE_MOVING else 0.0
    return Still(waves=waves, direction=float(direction), speed=float(speed))


def render_still(still: Still, *, size: int, time_s: float) -> NDArray[np.uint8]:
    """Render a clip at one moment, anti-aliased, wrapped around the edges.

    Args:
        still: what to render.
        size: width and height in pixels.
        time_s: seconds since the disc was in the centre.

    Returns:
        (size, size, 3) uint8, grey.
    """
    places = (np.arange(size) + 0.5) / size
    step = still.speed * time_s
    x = (places - step * np.cos(still.direction)) % 1 - 0.5
    y = (places - step * np.sin(still.direction)) % 1 - 0.5
    distance = np.hypot(x[None, :], y[:, None]) - RADIUS
    cover = np.clip(0.5 - distance * size / 2, 0, 1)  # a ramp of two pixels
    grey = _texture(still.waves, places)
    grey = grey + cover * (_BRIGHT - grey)
    pixels = np.round(np.clip(grey, 0, 255)).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2)


def _texture(waves: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum waves of a torus, of equal power up to the largest wave number."""
    numbers = np.arange(-_LARGEST_WAVE, _LARGEST_WAVE + 1)
    phase = np.exp(2j * np.pi * numbers[:, None] * places[None, :])
    amplitude = waves[..., 0] + 1j * waves[..., 1]
    summed: NDArray[np.float64] = (phase.T @ amplitude @ phase).real
    return _GREY + _CONTRAST * summed / len(numbers)
