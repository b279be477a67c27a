"""Clips that look like one that is kept already.

In: 64-bit perceptual hashes in order of preference, and the distance in bits up to which two clips
count as the same. Out: for each clip the kept one that it repeats. The answer is that of comparing
each hash with all kept ones, in order; an index makes a million of them a matter of half a minute
at a distance of 4.

The index is that of multi-index hashing (Norouzi, Punjani and Fleet, Fast search in Hamming space
with multi-index hashing, 2012): hashes within d bits agree up to d // 4 bits in one of their four
quarters, so only those that share such a quarter are compared.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Indices = npt.NDArray[np.int64]

__all__ = ["find_duplicates", "hamming"]

_QUARTERS = 4
_BITS = 16
_BLOCK = 4096
"""Hashes that are compared with each other directly before they join the index."""
_ROWS = 256
"""Rows of the block's table of distances that exist at the same time."""
_PAIRS = 1 << 22
"""Pairs that are compared at the same time."""
_NONE = -1


def hamming(one: str, other: str) -> int:
    """Return in how many bits two hashes differ, each given as 16 hex digits."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def find_duplicates(hashes: "Hashes", distance: int, *, num_settled: int = 0) -> "Indices":
    """Find which clips repeat one that is kept.

    Clip i is kept unless a kept clip before it differs in at most ``distance`` bits.

    Args:
        hashes: (N,) uint64 in order of preference.
        distance: bits in which two clips may differ and still be the same, 0 to 64; time grows
            steeply above 11.
        num_settled: so many clips at the front are kept whatever they repeat.

    Returns:
        (N,) int64: -1 for a clip that is kept, else the index of the kept clip that it repeats: an
        exact copy if there is one, else the first.
    """
    import numpy as np

    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    firsts = first[order]
    settled = int(np.searchsorted(firsts, num_settled))
    of = _among_distinct(unique[order], distance, settled)

    group = rank[inverse]
    kept = of == _NONE
    winners = firsts[np.where(kept, np.arange(len(of)), of)][group]
    winners[firsts[kept]] = _NONE
    winners[:num_settled] = _NONE
    return winners


def _among_distinct(hashes: "Hashes", distance: int, num_settled: int) -> "Indices":
    """Do the same for hashes of which no two are equal."""
    import numpy as np

    of = np.full(len(hashes), _NONE, np.int64)
    for start in range(num_settled, len(hashes), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(hashes)))
        kept = np.flatnonzero(of[:start] == _NONE)
        if len(kept):
            of[block] = _Index(hashes[kept]).first_near(hashes[block], distance)
            repeats = of[block] != _NONE
            of[block][repeats] = kept[of[block][repeats]]
        _compare_in_block(hashes, of, block, distance)
    return of


def _compare_in_block(hashes: "Hashes", of: "Indices", block: slice, distance: int) -> None:
    """Go on with those of a block that repeat nothing before it: compare each with each."""
    import numpy as np

    open_ = block.start + np.flatnonzero(of[block] == _NONE)
    left = hashes[open_]
    for top in range(0, len(open_), _ROWS):
        rows = left[top : top + _ROWS]
        near = np.bitwise_count(rows[:, None] ^ left[None, top:]) <= distance
        for row in np.flatnonzero(near.sum(axis=1) > 1):
            if of[open_[top + row]] == _NONE:
                later = open_[top + row + 1 + np.flatnonzero(near[row, row + 1 :])]
                of[later[of[later] == _NONE]] = open_[top + row]


class _Index:
    """Finds which of many hashes are near a given one."""

    def __init__(self, hashes: "Hashes") -> None:
        import numpy as np

        self._hashes = hashes
        self._orders, self._starts = [], []
        for quarter in range(_QUARTERS):
            keys = _keys(hashes, quarter).astype(np.uint16)
            order = np.argsort(keys, kind="stable")
            self._orders.append(order)
            self._starts.append(np.searchsorted(keys[order], np.arange((1 << _BITS) + 1)))

    def first_near(self, queries: "Hashes", distance: int) -> "Indices":
        """Return for each query the first hash within ``distance`` bits, or -1."""
        import numpy as np

        nothing = len(self._hashes)
        best = np.full(len(queries), nothing, np.int64)
        masks = list(_masks(min(distance // _QUARTERS, _BITS)))
        for quarter, (order, starts) in enumerate(zip(self._orders, self._starts, strict=True)):
            keys = _keys(queries, quarter)
            for mask in masks:
                low = starts[keys ^ mask]
                counts = starts[(keys ^ mask) + 1] - low
                for rows, places in _expand(low, counts):
                    found = order[places]
                    near = np.bitwise_count(queries[rows] ^ self._hashes[found]) <= distance
                    np.minimum.at(best, rows[near], found[near])
        best[best == nothing] = _NONE
        return best


def _keys(hashes: "Hashes", quarter: int) -> "Indices":
    import numpy as np

    shifted = hashes >> np.uint64(_BITS * quarter)
    return (shifted & np.uint64((1 << _BITS) - 1)).astype(np.int64)


def _masks(radius: int) -> Iterator[int]:
    """Yield all patterns of at most ``radius`` bits."""
    for count in range(radius + 1):
        for bits in itertools.combinations(range(_BITS), count):
            yield sum(1 << bit for bit in bits)


def _expand(low: "Indices", counts: "Indices") -> Iterator[tuple["Indices", "Indices"]]:
    """Yield (row, place) of every place in low[row] + 0 ... counts[row] - 1, a part at a time."""
    import numpy as np

    used = np.flatnonzero(counts)
    ends = counts[used].cumsum()
    begin = 0
    while begin < len(used):
        base = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, base + _PAIRS, side="right")), begin + 1)
        rows = used[begin:end]
        first = np.concatenate([[base], ends[begin : end - 1]])
        total = int(ends[end - 1]) - base
        offsets = np.arange(base, base + total) - np.repeat(first, counts[rows])
        yield np.repeat(rows, counts[rows]), np.repeat(low[rows], counts[rows]) + offsets
        begin = end
