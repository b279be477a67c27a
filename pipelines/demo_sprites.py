"""The world of the demo: one glowing shape that drifts over a dark torus.

Shape, colour, size, place, direction and speed are drawn independently, so nothing in a frame tells
where the sprite will go. The motion is exact to a fraction of a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sprite", "draw_sprite", "render"]

Floats = NDArray[np.float64]

BACKGROUND = (16, 20, 38)
COLOURS = {"coral": (255, 122, 92), "mauve": (205, 150, 190), "sky": (96, 176, 255)}
"""Close to one plane through the background, so that few latent channels show them."""
SHAPES = ("disc", "square", "diamond")
_GLOW = 0.35


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """One shape and its motion; lengths in frame widths, time in seconds."""

    shape: str
    colour: str
    radius: float
    x: float
    y: float
    direction: float
    """Radians, 0 = right, pi / 2 = down."""
    speed: float
    """Frame widths per second."""


def draw_sprite(rng: np.random.Generator) -> Sprite:
    """Draw a sprite; every property is independent of the others."""
    return Sprite(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        radius=rng.uniform(0.2, 0.27),
        x=rng.uniform(),
        y=rng.uniform(),
        direction=rng.uniform(0, 2 * np.pi),
        speed=rng.uniform(0.28, 0.72),
    )


def render(sprite: Sprite, *, size: int, time_s: float) -> NDArray[np.uint8]:
    """Render the sprite at one moment, anti-aliased, wrapped around the edges.

    Args:
        sprite: what to render.
        size: width and height in pixels.
        time_s: seconds since the sprite was at (x, y).

    Returns:
        (size, size, 3) uint8 RGB.
    """
    places = (np.arange(size) + 0.5) / size
    step = sprite.speed * time_s
    x = _wrapped(places - sprite.x - step * np.cos(sprite.direction))[None, :]
    y = _wrapped(places - sprite.y - step * np.sin(sprite.direction))[:, None]
    distance = _DISTANCES[sprite.shape](x, y, sprite.radius)
    edge = np.clip(0.5 - distance * size, 0, 1)  # a ramp of one pixel
    glow = _GLOW * np.exp(-np.maximum(distance, 0) / 0.05)
    cover = np.maximum(edge, glow)[..., None]
    background, colour = np.array(BACKGROUND), np.array(COLOURS[sprite.colour])
    pixels: NDArray[np.uint8] = np.round(background + cover * (colour - background)).astype(
        np.uint8
    )
    return pixels


def _wrapped(offset: Floats) -> Floats:
    """Return the shortest signed offset on a circle of length one."""
    return (offset + 0.5) % 1 - 0.5


def _disc(x: Floats, y: Floats, radius: float) -> Floats:
    """Signed distance to a disc, negative inside; so are the next two."""
    from_centre: Floats = np.hypot(x, y)
    return from_centre - radius


def _square(x: Floats, y: Floats, radius: float) -> Floats:
    corner = 0.35 * radius
    dx, dy = (np.abs(side) - (0.88 * radius - corner) for side in np.broadcast_arrays(x, y))
    outside: Floats = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    inside: Floats = np.minimum(np.maximum(dx, dy), 0)
    return outside + inside - corner


def _diamond(x: Floats, y: Floats, radius: float) -> Floats:
    return _square((x + y) * np.sqrt(0.5), (x - y) * np.sqrt(0.5), radius)


_DISTANCES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "disc": _disc,
    "square": _square,
    "diamond": _diamond,
}
