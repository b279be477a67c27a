"""How good an initial distribution is: KL divergences per latent element, in nats.

`gaussian_kl` compares two initial distributions, `marginal_kl` one with the Gaussian of the true
noisy latents at that time (diagonal covariance), `kl_curve` says how many clips are enough.
"""

import math
from collections.abc import Sequence

from cil.analytic_init import AnalyticInit
from cil.errors import DataError
from cil.moments import LatentMoments

__all__ = ["gaussian_kl", "kl_curve", "marginal_kl"]


def _scale(init: AnalyticInit, alpha: float, sigma: float) -> float:
    total = sigma**2 + alpha**2 * float(init.variance)
    if total <= 0.0:
        raise DataError("the Gaussian has no width at sigma = 0 and variance 0; take sigma > 0")
    return total


def gaussian_kl(p: AnalyticInit, q: AnalyticInit, *, alpha: float, sigma: float) -> float:
    """Return KL(p || q) of two initial distributions at one time, per latent element.

    Args:
        p: the reference, for example from all clips.
        q: the approximation.
        alpha: factor of the clean latents.
        sigma: factor of the noise.

    Returns:
        KL divergence divided by the number of elements, in nats, >= 0.

    Raises:
        DataError: the shapes differ, or a Gaussian has no width.
    """
    if p.mean.shape != q.mean.shape:
        raise DataError(
            f"both means must have one shape, got {tuple(p.mean.shape)} and {tuple(q.mean.shape)}"
        )
    wide, narrow = _scale(q, alpha, sigma), _scale(p, alpha, sigma)
    offset = alpha**2 * float((p.mean.double() - q.mean.double()).square().mean())
    ratio = narrow / wide
    return 0.5 * (ratio - 1.0 - math.log(ratio) + offset / wide)


def marginal_kl(
    moments: LatentMoments, init: AnalyticInit | None, *, alpha: float, sigma: float
) -> float:
    """Return the KL divergence of an initial distribution from the noisy latents' own Gaussian.

    The noisy latents are taken as a Gaussian with the moments' mean and per-position variance,
    independent between positions. What isotropy costs is what is left for the best ``init``;
    correlations between positions and shapes other than Gaussian are not seen.

    Args:
        moments: of the clean latents.
        init: the initial distribution; None for the usual start N(0, sigma^2 I).
        alpha: factor of the clean latents.
        sigma: factor of the noise, > 0.

    Returns:
        KL(noisy latents || init) divided by the number of elements, in nats, >= 0.

    Raises:
        DataError: no clip was seen, the shapes differ, or sigma is not > 0.
    """
    if sigma <= 0.0:
        raise DataError(f"sigma must be > 0, got {sigma}; there is no start without noise")
    mean, width = moments.mean, sigma**2
    offset = alpha * mean
    if init is not None:
        if init.mean.shape != mean.shape:
            raise DataError(
                f"init must have the shape {tuple(mean.shape)}, got {tuple(init.mean.shape)}"
            )
        width = _scale(init, alpha, sigma)
        offset = alpha * (mean - init.mean.double())
    ratio = (sigma**2 + alpha**2 * moments.position_variance) / width
    return float(0.5 * (ratio - 1.0 - ratio.log() + offset.square() / width).mean())


def kl_curve(
    parts: Sequence[LatentMoments], *, alpha: float, sigma: float
) -> list[tuple[int, float]]:
    """Return how far the statistics of the first clips are from those of all clips.

    Args:
        parts: moments of disjoint parts in random order, for example shards; 2 or more with clips.
        alpha: factor of the clean latents at the start time.
        sigma: factor of the noise at the start time, > 0.

    Returns:
        (number of clips, KL(all || first clips) per element) after each part but the last. Enough
        clips are those after which it no longer falls by an amount that matters: it goes as 1 / n.

    Raises:
        DataError: fewer than two parts hold clips.
    """
    full = [part for part in parts if part.count]
    if len(full) < 2:
        raise DataError(f"the curve needs at least 2 parts with clips, got {len(full)}")
    total = LatentMoments()
    for part in full:
        total.merge(part)
    reference = AnalyticInit.from_moments(total)
    so_far, curve = LatentMoments(), []
    for part in full[:-1]:
        init = AnalyticInit.from_moments(so_far.merge(part))
        curve.append((so_far.count, gaussian_kl(reference, init, alpha=alpha, sigma=sigma)))
    return curve
