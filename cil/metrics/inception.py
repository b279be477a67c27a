"""Inception Score of videos from the class scores of a classifier (C3D by custom).

High where each clip is classified with certainty and the set covers many classes. It never looks at
real clips, knows only the classifier's classes, and grows with the number of clips per split: print
both beside it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import DataError
from cil.metrics.features import as_rows

if TYPE_CHECKING:
    from cil.metrics.features import Rows

__all__ = ["InceptionScore", "inception_score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InceptionScore:
    """Inception Scores of the splits of a set."""

    per_split: tuple[float, ...]
    """exp of the mean KL of each split, in [1, number of classes]."""
    num_clips: int
    """Clips in all splits together."""
    seed: int | None
    """Of the shuffle before splitting; None is no shuffle."""

    @property
    def value(self) -> float:
        """Mean over the splits."""
        return float(np.mean(self.per_split))

    @property
    def std_ddof0(self) -> float:
        """Standard deviation over the splits, by their number (the original code)."""
        return float(np.std(self.per_split))

    @property
    def std_ddof1(self) -> float | None:
        """Standard deviation over the splits, by their number less one; None for one split."""
        return float(np.std(self.per_split, ddof=1)) if len(self.per_split) > 1 else None


def inception_score(
    scores: Any, *, splits: int = 10, probabilities: bool = False, seed: int | None = None
) -> InceptionScore:
    """Return the Inception Score.

    Args:
        scores: (N, K) logits of N clips over K classes, or their probabilities.
        splits: contiguous parts ``[i * N // S : (i + 1) * N // S]``.
        probabilities: ``scores`` are probabilities (as the published C3D file gives), not logits.
        seed: shuffles the clips before splitting; None keeps their order.

    Raises:
        DataError: a value that is not finite, fewer clips than splits, or no probabilities.

    Source: Salimans et al., arXiv 1606.03498; for videos Saito et al., arXiv 1611.06624.
    """
    rows = as_rows("class scores", scores)
    if not 1 <= splits <= len(rows):
        raise DataError(f"splits must be from 1 to the {len(rows)} clips, got {splits}")
    log_p = _log_of(rows) if probabilities else _log_softmax(rows)
    if seed is not None:
        log_p = log_p[np.random.Generator(np.random.Philox(seed)).permutation(len(rows))]
    edges = [i * len(rows) // splits for i in range(splits + 1)]
    parts = (log_p[edges[i] : edges[i + 1]] for i in range(splits))
    return InceptionScore(
        per_split=tuple(_of_split(part) for part in parts), num_clips=len(rows), seed=seed
    )


def _of_split(log_p: "Rows") -> float:
    p = np.exp(log_p)
    top = log_p.max(axis=0)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        log_marginal = np.log(np.exp(log_p - shift).mean(axis=0)) + shift
    terms = np.zeros_like(p)  # p log p is 0 at p = 0
    present = p > 0
    wide = np.broadcast_to(log_marginal, p.shape)
    terms[present] = p[present] * (log_p[present] - wide[present])
    return float(np.exp(terms.sum(axis=1).mean()))


def _log_softmax(logits: "Rows") -> "Rows":
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Rows = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _log_of(p: "Rows") -> "Rows":
    sums = p.sum(axis=1)
    if (p < 0).any() or (np.abs(sums - 1) > 1e-3).any():
        raise DataError(
            f"probabilities must be >= 0 and sum to 1, got a least of {p.min():g} and sums from "
            f"{sums.min():g} to {sums.max():g}; these may be logits"
        )
    with np.errstate(divide="ignore"):
        result: Rows = np.log(p / sums[:, None])
    return result
