"""The arms of a leak report: what each was trained with, what it is compared with, its controls.

In: arms of `pipelines.evaluate`. Out: `LeakArm`s. The first arm is the reference; an arm of a sweep
with several seeds, ``ARM/seed-N``, is compared with the first arm of its own seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cil.baselines import ShuffledNoise, constant_like
from cil.errors import ConfigError
from cil.time_noise import TimeNoise, TimeNoiseConfig
from pipelines.evaluate.arms import Arm
from pipelines.storage import read_json

__all__ = ["NOISE_FILE", "LeakArm", "describe_arms", "family_of", "noise_of"]

NOISE_FILE = "time_noise.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakArm:
    """An arm, and its part in the comparison."""

    arm: Arm
    noise: TimeNoiseConfig | None
    """What it was trained with; None where its folder does not say."""
    reference: str | None
    """Arm that it is compared with; None for a reference itself."""
    controls: tuple[str, ...] = ()
    """Arms with the same amount of noise that does not depend on t: constant, shuffled."""

    @property
    def name(self) -> str:
        """Name of the arm."""
        return self.arm.name

    @property
    def group(self) -> str:
        """Name without the seed."""
        return self.name.partition("/")[0]

    @property
    def seed(self) -> str:
        """The part of the name that says the seed, empty if there is one only."""
        return self.name.partition("/")[2]

    @property
    def preset(self) -> str:
        """Name of its noise preset."""
        return "unknown" if self.noise is None else self.noise.preset


def describe_arms(arms: Sequence[Arm]) -> list[LeakArm]:
    """Say for each arm what it is compared with, and which arms are controls of it.

    Raises:
        ConfigError: an arm is a folder of videos, which has no one-step predictions.
    """
    for given in arms:
        if given.kind != "model":
            raise ConfigError(
                f"arm {given.name} is a folder of videos; the leak is measured in the network's "
                "own predictions, so give models here and compare videos by `cil evaluate`"
            )
    plain = [LeakArm(arm=given, noise=noise_of(given.folder), reference=None) for given in arms]
    first = plain[0].group
    by_seed = {arm.seed: arm.name for arm in plain if arm.group == first}
    result = []
    for arm in plain:
        reference = by_seed.get(arm.seed, plain[0].name)
        controls = tuple(
            other.name
            for other in plain
            if other.seed == arm.seed and other is not arm and _is_control(other.noise, arm.noise)
        )
        result.append(
            LeakArm(
                arm=arm.arm,
                noise=arm.noise,
                reference=None if reference == arm.name else reference,
                controls=controls,
            )
        )
    return result


def noise_of(folder: Path) -> TimeNoiseConfig | None:
    """Read what a model was trained with; None where its folder does not say.

    Raises:
        DataError: the file is damaged.
        ConfigError: it names no noise law.
    """
    path = folder / NOISE_FILE
    if not path.exists():
        return None
    raw = read_json(path)
    known = TimeNoiseConfig.__dataclass_fields__
    return TimeNoiseConfig(**{name: value for name, value in raw.items() if name in known})


def family_of(folder: Path) -> str:
    """Return the name of a model folder's family."""
    return str(read_json(folder / "model.json").get("family"))


def _is_control(noise: TimeNoiseConfig | None, of: TimeNoiseConfig | None) -> bool:
    """Tell whether a noise is that of an arm without its dependence on t."""
    if noise is None or of is None:
        return False
    law = of.law()
    if not isinstance(law, TimeNoise):
        return False
    if noise.preset == "constant":
        return noise.law() == constant_like(law)
    return noise.preset == "shuffled" and noise.law() == ShuffledNoise(law)
