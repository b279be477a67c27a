"""Measuring models and folders of videos on the clips of a data set: `cil evaluate`.

`evaluation.evaluate_arms` is the entry: arms in, a folder of numbers out. `units` says what is
worked on at once, `worker` does it, `summary` takes the rows together; docs/evaluation.md defines
the numbers. `run` is the stage of `cil run`.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.report import RunReport

__all__ = ["run"]


def run(config: "RunConfig", *, session: ExitStack, debug: bool = False) -> "RunReport":
    """Evaluate the run's own model; see `pipelines.evaluate.command.run_stage`."""
    # the settings of this package are part of every configuration: nothing heavy up here
    from pipelines.evaluate.command import run_stage

    return run_stage(config, session=session, debug=debug)
