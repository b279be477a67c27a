"""Metrics of sets of clips as `Measurement`: value, interval, ddof, and what to be warned of."""

from collections.abc import Callable, Sequence
from typing import Any

from cil.metrics.features import as_rows
from cil.metrics.frechet import frechet_distance, frechet_infinity
from cil.metrics.inception import inception_score
from cil.metrics.kernel import kernel_distance
from cil.metrics.measurement import Measurement
from cil.metrics.resampling import bootstrap_interval, jackknife_interval, mean

__all__ = [
    "measure_frechet",
    "measure_frechet_infinity",
    "measure_inception",
    "measure_kernel",
    "measure_mean",
]

_CUSTOM_CLIPS = 2048


def measure_mean(
    values: Any,
    *,
    seed: int,
    groups: Sequence[Any] | None = None,
    statistic: Callable[..., float] = mean,
    **known: Any,
) -> Measurement:
    """Measure a mean, or another statistic, over clips with its bootstrap interval.

    Args:
        values: (N,) one for each video, or a tuple of such arrays; see `bootstrap_interval`.
        seed: of the resampling.
        groups: (N,) the clip of each row, where there are several seeds for a clip.
        statistic: of the arrays.
        known: further fields of the measurement, such as ``extractor_sha256``.

    Raises:
        DataError: no values, or one that is not finite.
    """
    return Measurement.of(bootstrap_interval(values, statistic, seed=seed, groups=groups), **known)


def measure_frechet(real: Any, fake: Any, *, ddof: int = 0, **known: Any) -> Measurement:
    """Measure a Fréchet distance from features (N, D) and (M, D), with a jackknife interval.

    Raises:
        DataError: fewer than two clips in a set, other widths, or a value that is not finite.
    """
    arrays = as_rows("real features", real), as_rows("fake features", fake)

    def distance(one: Any, other: Any) -> float:
        return frechet_distance(one, other, ddof=ddof)

    value, warnings = distance(*arrays), _few(*arrays)
    if min(map(len, arrays)) < 4:
        return Measurement(
            value=value,
            n=min(map(len, arrays)),
            ddof=ddof,
            warnings=(*warnings, "no interval: fewer than 4 clips"),
            **known,
        )
    return Measurement.of(
        jackknife_interval(arrays, distance), ddof=ddof, warnings=warnings, **known
    )


def measure_frechet_infinity(
    real: Any, fake: Any, *, seed: int, ddof: int = 0, **known: Any
) -> Measurement:
    """Measure the Fréchet distance extrapolated to infinitely many clips, without an interval.

    Fewer than 16 clips make it absent, with that reason.
    """
    arrays = as_rows("real features", real), as_rows("fake features", fake)
    least = min(map(len, arrays))
    if least < 16:
        return Measurement.missing(
            f"extrapolation needs at least 16 clips in each set, got {least}", **known
        )
    line = frechet_infinity(*arrays, seed=seed, ddof=ddof)
    return Measurement(
        value=line.intercept, n=least, ddof=ddof, seed=seed, warnings=_few(*arrays), **known
    )


def measure_kernel(real: Any, fake: Any, **known: Any) -> Measurement:
    """Measure the unbiased kernel distance with a jackknife interval.

    Raises:
        DataError: fewer than two clips in a set, other widths, or a value that is not finite.
    """
    arrays = as_rows("real features", real), as_rows("fake features", fake)
    if min(map(len, arrays)) < 4:
        return Measurement(
            value=kernel_distance(*arrays),
            n=min(map(len, arrays)),
            warnings=("no interval: fewer than 4 clips",),
            **known,
        )
    return Measurement.of(jackknife_interval(arrays, kernel_distance), **known)


def measure_inception(
    scores: Any, *, splits: int = 10, probabilities: bool = False, seed: int = 0, **known: Any
) -> Measurement:
    """Measure the Inception Score; its interval is a standard deviation of the splits to each side.

    Clips are shuffled by the seed before splitting. ``level`` stays None: the spread of splits is
    what papers print, not an interval of the score.

    Raises:
        DataError: fewer clips than splits, or scores that `inception_score` refuses.
    """
    score = inception_score(scores, splits=splits, probabilities=probabilities, seed=seed)
    warnings: tuple[str, ...] = ()
    if score.num_clips < _CUSTOM_CLIPS:
        warnings = (
            f"from {score.num_clips} clips in {splits} splits: the score grows with the clips per "
            "split; papers take 10000",
        )
    return Measurement(
        value=score.value,
        n=score.num_clips,
        low=score.value - score.std_ddof0,
        high=score.value + score.std_ddof0,
        ddof=0,
        seed=seed,
        warnings=warnings,
        **known,
    )


def _few(real: Any, fake: Any) -> tuple[str, ...]:
    width = real.shape[1]
    warnings = [
        f"{len(rows)} {name} clips for {width} features, fewer than two for each: inflated by few "
        "clips; compare at equal n only, and read the kernel distance beside it"
        for name, rows in (("real", real), ("generated", fake))
        if len(rows) < 2 * width
    ]
    if len(real) != len(fake):
        warnings.append(f"{len(real)} real and {len(fake)} generated clips")
    return tuple(warnings)
