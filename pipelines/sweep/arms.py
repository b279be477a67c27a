"""The arms of a sweep: their configurations, what differs between them, and whether that is fair.

In: a `SweepFile` and the base that the command line may have changed. Out: a `Sweep` whose runs,
one per arm and seed, are complete configurations with folders of their own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines import tracking
from pipelines.config import RunConfig, dataset_of
from pipelines.pretrained_parts import with_pretrained_parts
from pipelines.sweep.sweep_file import SweepFile, with_overrides

__all__ = ["SWEEP_FOLDER", "Arm", "ArmRun", "Difference", "Sweep", "plan_sweep"]

SWEEP_FOLDER = "sweep"
_ARMS_FOLDER = "arms"

_OF_THE_SWEEP = ("output", "tracking", "cluster", "read", "evaluate", "leak")
"""Sections that are the same for all arms: places, MLflow, Ray, and how all are measured."""
_OF_THE_DATA = (
    "data",
    "decode",
    "select",
    "condition",
    "first_stage",
    "encode",
    "model.cross_attention_dim",
)
"""Settings that encoding depends on."""
_OF_THE_COMPARISON = (
    "seed",
    "train.num_steps",
    "train.global_batch_size",
    "train.bucket",
    "validate",
)
"""Other settings with which an arm has more or other training, or is measured otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A setting of an arm that is not the base's."""

    setting: str
    base: Any
    arm: Any
    unfair: bool
    """Whether arms that differ in it are not trained or measured alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmRun:
    """One training: an arm with a seed."""

    arm: str
    config: RunConfig
    """Complete, with the run's own output folder."""
    shares_data: bool
    """Whether the data set is the base's; otherwise the arm has its own."""

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.config.seed

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config.output.dir)

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One column of the comparison."""

    name: str
    differences: tuple[Difference, ...]
    runs: tuple[ArmRun, ...]
    """One per seed."""

    @property
    def unfair(self) -> list[str]:
        """Names of the settings in which it is not comparable with the base."""
        return [difference.setting for difference in self.differences if difference.unfair]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """All trainings of a comparison."""

    name: str
    file: Path
    base: RunConfig
    arms: tuple[Arm, ...]

    @property
    def folder(self) -> Path:
        """Where the arms and the report are."""
        return Path(self.base.output.dir) / SWEEP_FOLDER

    @property
    def runs(self) -> list[ArmRun]:
        """All trainings: seed after seed, so that a sweep that is stopped has whole comparisons."""
        count = max(len(arm.runs) for arm in self.arms)
        return [
            arm.runs[number]
            for number in range(count)
            for arm in self.arms
            if number < len(arm.runs)
        ]


def plan_sweep(file: SweepFile, base: RunConfig) -> Sweep:
    """Make the configurations of all arms and refuse comparisons that are not fair.

    Args:
        file: the sweep file.
        base: its base, or that with the overrides of the command line.

    Raises:
        ConfigError: an arm has mistakes, or differs in what a fair comparison shares.
    """
    problems: list[str] = []
    arms: list[Arm] = []
    seen: list[tuple[RunConfig, str]] = []
    for name, overrides in file.arms.items():
        try:
            config = with_overrides(base, overrides, source=f"{file.path}: arm {name}")
            _refuse_what_is_shared(name, base, config)
        except ConfigError as error:
            problems.append(str(error))
            continue
        differences = tuple(_differences(base, config))
        same = next((other for known, other in seen if known == config), None)
        if same is not None:
            problems.append(
                f"{file.path}: the arms {same} and {name} are the same; remove one, or use seeds "
                "to train it again"
            )
        seen.append((config, name))
        seeds = file.seeds or (base.seed,)
        if config.seed != base.seed:
            seeds = (config.seed,)
        arms.append(
            Arm(
                name=name,
                differences=differences,
                runs=tuple(_placed(base, name, config, differences, seed) for seed in seeds),
            )
        )
    if not file.allow_different:
        problems += [_unfair(file, arm) for arm in arms if arm.unfair]
    if problems:
        raise ConfigError("\nerror: ".join(problems))
    return Sweep(name=file.name, file=file.path, base=with_pretrained_parts(base), arms=tuple(arms))


def _refuse_what_is_shared(name: str, base: RunConfig, config: RunConfig) -> None:
    wrong = [setting for setting, _, _ in _changed(base, config) if _is_of(setting, _OF_THE_SWEEP)]
    if wrong:
        raise ConfigError(
            f"arm {name}: {', '.join(wrong)} cannot differ between arms, the sweep sets where each "
            "goes; set it in the base or on the command line"
        )


def _unfair(file: SweepFile, arm: Arm) -> str:
    lines = [
        f"  {each.setting}: {each.base} in the base, {each.arm} in the arm"
        for each in arm.differences
        if each.unfair
    ]
    return (
        f"{file.path}: arm {arm.name} would not be compared fairly, it differs in data, steps, "
        "seed or in how it is measured:\n" + "\n".join(lines) + "\n  take it out of the arm, or "
        "say `allow_different: true` in the sweep file if it is meant"
    )


def _placed(
    base: RunConfig, name: str, config: RunConfig, differences: tuple[Difference, ...], seed: int
) -> ArmRun:
    folder = Path(base.output.dir) / SWEEP_FOLDER / _ARMS_FOLDER / name
    shares_data = not any(_is_of(each.setting, _OF_THE_DATA) for each in differences)
    own = str((folder / "dataset").resolve())
    cache = base.read.cache or str(Path(base.output.dir) / "cache")
    placed = replace(
        config,
        seed=seed,
        output=replace(
            base.output,
            dir=str(folder / f"seed-{seed}"),
            dataset=dataset_of(base) if shares_data else own,
        ),
        read=replace(base.read, cache=cache),
        tracking=replace(base.tracking, uri=tracking.tracking_uri(base)),
    )
    return ArmRun(arm=name, config=with_pretrained_parts(placed), shares_data=shares_data)


def _differences(base: RunConfig, config: RunConfig) -> Iterator[Difference]:
    for setting, old, new in _changed(base, config):
        unfair = _is_of(setting, (*_OF_THE_DATA, *_OF_THE_COMPARISON))
        yield Difference(setting=setting, base=old, arm=new, unfair=unfair)


def _changed(base: RunConfig, config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name and both values of each setting that differs."""
    old, new = dict(_flat(asdict(base))), dict(_flat(asdict(config)))
    for setting, value in new.items():
        if value != old[setting]:
            yield setting, old[setting], value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_of(setting: str, places: tuple[str, ...]) -> bool:
    """Tell whether a setting is one of these, or in one of these sections."""
    return any(setting == place or setting.startswith(f"{place}.") for place in places)
