"""How arms look in every plot and on the page: one colour and one mark each, on light and on dark.

The colours are those of Okabe and Ito, which people with any colour vision tell apart, a little
darker or lighter where a thin line needs it. Arms also differ in marks, and trainings of one arm
with other seeds in their lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DARK", "LIGHT", "ArmLook", "Theme", "looks_of"]

_ON_LIGHT = ("#444444", "#0072b2", "#d55e00", "#00845f", "#b8568f", "#b07400", "#2a8fc4", "#7a5195")
_ON_DARK = ("#c4c4c4", "#56a8e0", "#ff8a3d", "#2fc49a", "#e69fc6", "#f0b840", "#8fd0f5", "#b79ad1")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """Colours of a plot's own parts."""

    name: str
    paper: str
    ink: str
    soft: str
    grid: str


LIGHT = Theme(name="light", paper="#ffffff", ink="#1b1f24", soft="#59636e", grid="#e2e6ea")
DARK = Theme(name="dark", paper="#14171a", ink="#e4e8ec", soft="#9aa5b0", grid="#2b3138")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmLook:
    """How one arm is drawn."""

    light: str
    dark: str
    mark: str
    line: str

    def colour(self, theme: Theme) -> str:
        """Return its colour on a theme's paper."""
        return self.light if theme is LIGHT else self.dark


def looks_of(names: Sequence[str]) -> dict[str, ArmLook]:
    """Give each arm its look.

    Args:
        names: in their order; what stands before a slash is the arm, behind it a seed.
    """
    groups = list(dict.fromkeys(name.partition("/")[0] for name in names))
    seeds: dict[str, list[str]] = {group: [] for group in groups}
    looks = {}
    for name in names:
        group = name.partition("/")[0]
        seeds[group].append(name)
        number, seed = groups.index(group), len(seeds[group]) - 1
        # past the last colour, marks go on by another step, so that pairs do not repeat soon
        mark = _MARKS[(number + number // len(_ON_LIGHT)) % len(_MARKS)]
        looks[name] = ArmLook(
            light=_ON_LIGHT[number % len(_ON_LIGHT)],
            dark=_ON_DARK[number % len(_ON_DARK)],
            mark=mark,
            line=_LINES[seed % len(_LINES)],
        )
    return looks
