"""Gauss quadrature nodes in float64, by the eigenvalues of the Jacobi matrix.

Source: Golub and Welsch 1969, "Calculation of Gauss Quadrature Rules".
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["normal_nodes", "unit_nodes"]


def _gauss(off_diagonal: Tensor) -> tuple[Tensor, Tensor]:
    jacobi = torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)
    nodes, vectors = torch.linalg.eigh(jacobi)
    return nodes, vectors[0] ** 2


@lru_cache(maxsize=1)
def _unit() -> tuple[Tensor, Tensor]:
    k = torch.arange(1, 256, dtype=torch.float64)
    nodes, weights = _gauss(k / torch.sqrt(4.0 * k**2 - 1.0))
    return (nodes + 1.0) / 2.0, weights


@lru_cache(maxsize=1)
def _normal() -> tuple[Tensor, Tensor]:
    return _gauss(torch.sqrt(torch.arange(1, 96, dtype=torch.float64)))


def unit_nodes(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes (N,) and weights (N,) of the mean over the unit interval (Gauss-Legendre)."""
    nodes, weights = _unit()
    return nodes.to(like), weights.to(like)


def normal_nodes(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes (N,) and weights (N,) of the mean over N(0, 1) (Gauss-Hermite)."""
    nodes, weights = _normal()
    return nodes.to(like), weights.to(like)
