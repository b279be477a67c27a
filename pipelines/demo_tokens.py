"""Make an image encoder for toy worlds: a CLIP vision network with fixed random weights.

    python -m pipelines.demo_tokens --videos build/demo/videos --out build/demo/image_encoder

In: videos, for the scale of the tokens. Out: a folder as transformers writes it, for
``condition.image_encoder``. Its token names the image and knows nothing about it, so it is the
shortest way for a network to learn clips by heart. The constant part of the features is projected
out, and tokens have a root mean square of one, as the noise of `TimeNoise` is in that unit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from cil.errors import CilError, ConfigError

__all__ = ["main", "make_encoder"]

IMAGE_SIZE = 32
HIDDEN = 64
_FIRST_FRAMES = 64


def make_encoder(frames: Sequence[NDArray[np.uint8]], out: Path, *, width: int, seed: int) -> None:
    """Make the encoder and write it.

    Args:
        frames: (H, W, 3) uint8 images, at least two, that fix the scale.
        out: folder.
        width: D of the token, < 64.
        seed: of the weights.

    Raises:
        ConfigError: too few images, or a width out of range.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from cil.models.condition_encoders import ImageEncoder

    if len(frames) < 2 or not 1 <= width < HIDDEN:
        raise ConfigError(
            f"an encoder needs two images or more and a width of 1..{HIDDEN - 1}, got "
            f"{len(frames)} and {width}"
        )
    settings = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        projection_dim=HIDDEN,
        initializer_factor=4.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = CLIPVisionModelWithProjection(settings)
    weight = network.visual_projection.weight
    with torch.no_grad():
        weight.copy_(torch.eye(HIDDEN))
    encoder = ImageEncoder(network)
    features = torch.cat([encoder.encode(frame) for frame in frames]).double()
    constant = features.mean(0)
    rest = torch.eye(HIDDEN, dtype=torch.float64) - torch.outer(constant, constant) / (
        constant.square().sum()
    )
    spread = (features - constant) @ rest
    _, _, directions = torch.linalg.svd(spread, full_matrices=False)
    chosen = directions[:width] @ rest
    scale = (features @ chosen.T).square().mean().rsqrt()
    projected = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**{**settings.to_dict(), "projection_dim": len(chosen)})
    )
    projected.load_state_dict(
        {**network.state_dict(), "visual_projection.weight": (chosen * scale).float()}
    )
    projected.save_pretrained(out)


def first_frames(videos: Path) -> list[NDArray[np.uint8]]:
    """Return the first frames of some videos, in the order of their names.

    Raises:
        ConfigError: there are none.
    """
    found = []
    for path in sorted(videos.glob("*.mp4"))[:_FIRST_FRAMES]:
        with av.open(str(path)) as container:
            pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
            found.append(np.asarray(pixels, dtype=np.uint8))
    if not found:
        raise ConfigError(f"there are no .mp4 files in {videos}; make them by pipelines.demo_data")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo_tokens",
        description="Make an image encoder with random weights, for experiments in toy worlds.",
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--width", type=int, default=32, help="of the token (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    given = parser.parse_args(arguments)
    try:
        make_encoder(first_frames(given.videos), given.out, width=given.width, seed=given.seed)
    except CilError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(f"made: {given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
