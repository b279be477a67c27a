"""What is worth a warning in a training that goes on: pure rules, without Ray.

In: rows of metrics, or where each worker was seen last. Out: warnings with what to look at.
`pipelines/watch.py` carries them from the workers to the driver.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pipelines.settings import TrainConfig

__all__ = ["Beat", "LossSpike", "SpikeRule", "Stall", "find_stall"]

_FEWEST = 10
"""Losses that a band is made of at least."""
_SMALLEST_SHARE = 0.01
"""The band is at least this share of the median: losses that hardly differ make no spikes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSpike:
    """A loss far above those before it."""

    step: int
    loss: float
    median: float
    """Of the losses before it."""
    limit: float
    """What it should not have exceeded."""

    def text(self, keys: Sequence[str]) -> str:
        """Say it, with the sample keys of the step's clips."""
        return (
            f"the loss of step {self.step} is {self.loss:.4g}, above {self.limit:.4g} "
            f"(median {self.median:.4g} of the steps before); training goes on. "
            f"Its clips: {', '.join(keys)}"
        )


class SpikeRule:
    """Finds losses above median + deviation * MAD of the steps before, and says so sparingly."""

    def __init__(self, config: TrainConfig) -> None:
        self._before: deque[float] = deque(maxlen=config.spike_window)
        self._deviation, self._pause = config.spike_deviation, config.spike_pause_steps
        self._last: int | None = None

    def remember(self, rows: Iterable[dict[str, float]]) -> None:
        """Take steps that were looked at before, such as those before a restart."""
        self._before.extend(row["loss"] for row in rows)

    def see(self, rows: Iterable[dict[str, float]]) -> list[LossSpike]:
        """Look at new steps, in their order.

        Args:
            rows: metrics with ``step`` and ``loss``.

        Returns:
            Spikes, at most one in ``train.spike_pause_steps`` steps.
        """
        spikes = []
        for row in rows:
            step, loss = int(row["step"]), row["loss"]
            if len(self._before) >= min(_FEWEST, self._before.maxlen or _FEWEST):
                middle = median(self._before)
                away = median(abs(value - middle) for value in self._before)
                limit = middle + self._deviation * max(away, _SMALLEST_SHARE * abs(middle))
                quiet = self._last is not None and step - self._last < self._pause
                if loss > limit and not quiet:
                    self._last = step
                    spikes.append(LossSpike(step=step, loss=loss, median=middle, limit=limit))
            self._before.append(loss)
        return spikes


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """Where a worker said it was."""

    rank: int
    world_size: int
    node: str
    step: int
    phase: str
    """What it had begun: start, batch, forward, reduce, backward, or checkpoint."""
    count: int
    """Phases that it had begun before; all workers go through the same ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """Workers that the others wait for."""

    behind: tuple[Beat, ...]
    """Those that are furthest back."""
    silent: tuple[int, ...]
    """Ranks of which nothing is heard at all any more."""
    waiting: int
    """Workers that are further on."""
    seconds: float
    """How long no worker has gone on."""

    def text(self) -> str:
        """Say it."""
        names = "; ".join(
            f"rank {beat.rank} on node {beat.node} is in {beat.phase} of step {beat.step}"
            + (" and is not heard of any more" if beat.rank in self.silent else "")
            for beat in self.behind[:8]
        )
        more = f"; and {len(self.behind) - 8} more" if len(self.behind) > 8 else ""
        if self.waiting:
            others = f"; {self.waiting} other workers have gone further and wait"
        else:
            others = " (all are at the same place)" if len(self.behind) > 1 else ""
        return (
            f"no worker has gone on for {self.seconds:.0f} s: {names}{more}{others}; training is "
            "not stopped"
        )


def find_stall(
    beats: dict[int, Beat],
    *,
    changed: dict[int, float],
    heard: dict[int, float],
    now: float,
    limit_s: float,
) -> Stall | None:
    """Find out whether training stands still, and because of whom.

    A worker that others wait for is one that has begun fewer phases than they have: those wait in
    the collective that it has not come to.

    Args:
        beats: the last of each rank.
        changed: when each rank was first seen where it is, in seconds.
        heard: when each rank was heard of last.
        now: the time, in seconds on the same clock.
        limit_s: how long no rank may have changed.

    Returns:
        Who is behind, or None while any worker goes on.
    """
    if not beats:
        return None
    since = now - max(changed[rank] for rank in beats)
    if since < limit_s:
        return None
    fewest = min(beat.count for beat in beats.values())
    silent = tuple(rank for rank in sorted(beats) if now - heard[rank] >= limit_s)
    behind = [beats[rank] for rank in sorted(beats) if beats[rank].count == fewest]
    if len(behind) == len(beats) and 0 < len(silent) < len(beats):
        behind = [beats[rank] for rank in silent]  # all at one place: those that fell silent
    return Stall(
        behind=tuple(behind), silent=silent, waiting=len(beats) - len(behind), seconds=since
    )
