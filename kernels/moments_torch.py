"""The moments of clean latents at each position, in plain torch."""

import torch
from torch import Tensor

__all__ = ["update_moments"]


def update_moments(
    count: Tensor, mean: Tensor, m2: Tensor, latents: Tensor, std: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add clips to moments; arguments and results as ``moments_triton.update_moments``.

    Source: Chan, Golub, LeVeque 1979.
    """
    clips = latents.shape[0]
    if clips == 0:
        return count.clone(), mean.clone(), m2.clone()
    values = latents.to(torch.float64)
    part_mean = values.mean(dim=0)
    part_m2 = (values - part_mean).square().sum(dim=0)
    if std is not None:
        part_m2 = part_m2 + std.to(torch.float64).square().sum(dim=0)
    before = count.to(torch.float64)
    share = clips / (before + clips)
    delta = part_mean - mean
    return (
        count + clips,
        mean + delta * share,
        m2 + part_m2 + delta.square() * (before * share),
    )
