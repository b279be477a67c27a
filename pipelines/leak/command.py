"""`cil leak`: one-step predictions and videos of some models, their numbers, and the report.

cil leak --config configs/demo.yaml --arm base=build/base/model --arm tuned=build/run/model
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines.config import RunConfig, config_to_yaml, dataset_of, redact_uri
from pipelines.dataset import open_dataset
from pipelines.evaluate.arms import Arm
from pipelines.evaluate.clip_set import clip_places, open_set
from pipelines.evaluate.command import find_arms, results_folder
from pipelines.evaluate.evaluation import Evaluation, evaluate_arms
from pipelines.evaluate.options import EvaluateOptions
from pipelines.leak.arms import LeakArm, describe_arms
from pipelines.leak.config import LeakConfig
from pipelines.leak.density import noise_density
from pipelines.leak.evidence import Resampling, compared_start, gather
from pipelines.leak.gallery import VideoRow, video_rows
from pipelines.leak.probe_table import probe_table
from pipelines.leak.probe_units import PROBE_FOLDER, probe_arms
from pipelines.leak.report import DATA_NAME, PAGE_NAME, PLOTS_FOLDER, TABLE_NAME, Study, write
from pipelines.leak.sample_table import SampleTable, Start, sample_table
from pipelines.leak.series import points_of_probe, points_of_samples
from pipelines.leak.verdict import decide, summarise
from pipelines.leak.words import limits
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.storage import check_writable, lock_folder, write_atomic

__all__ = ["LEAK_FOLDER", "SAMPLES_FOLDER", "run_command"]

LEAK_FOLDER = "leak"
SAMPLES_FOLDER = "samples"
_FEW_CLIPS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sampled:
    """Videos of all arms, from all starts."""

    rows: list[dict[str, Any]]
    folder: Path
    """That the paths of the compared start's videos begin at."""
    fps: float
    made: int
    """Units that were worked on now."""


def run_command(config: RunConfig, options: EvaluateOptions, *, debug: bool = False) -> RunReport:
    """Measure the arms that are asked for and write the report.

    Args:
        config: the run, or the base of the sweep.
        options: of the command.
        debug: show the logs of workers.

    Returns:
        Paths, and the verdict of each arm.

    Raises:
        CilError: something is wrong with an arm, the data set or a worker.
    """
    watch = Stopwatch()
    folder = results_folder(config, options, name=LEAK_FOLDER)
    check_writable(folder, "--out")
    clip_places(config)  # no held-out clips: say so before any model is downloaded or hashed
    arms = describe_arms(find_arms(config, options))
    models = [arm.arm for arm in arms]
    with ExitStack() as session:
        session.enter_context(lock_folder(folder, "--out"))
        write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
        keys = _probed_clips(config, folder)
        found, probed = probe_arms(
            config, models, keys, folder=folder, session=session, debug=debug
        )
        sampled = _sample(config, models, folder, session, debug=debug)
    study = _study(config, arms, keys, found, sampled)
    plots = write(study, folder)
    for verdict in study.verdicts:
        console.print(f"{verdict.arm}: {verdict.findings[0].text}", markup=False)
    return RunReport(
        stage="leak",
        reused=not probed and not sampled.made,
        inputs={
            "dataset": study.dataset["fingerprint"],
            "arms": {arm.name: arm.arm.identity for arm in arms},
        },
        outputs={
            "report": str(folder / PAGE_NAME),
            "numbers": str(folder / DATA_NAME),
            "table": str(folder / TABLE_NAME),
            "plots": str(folder / PLOTS_FOLDER),
            "verdict": study.headline,
        },
        metrics={
            "arms": float(len(arms)),
            "clips": float(len(keys)),
            "videos": float(len(sampled.rows)),
            "plots": float(len(plots)),
            "units_done": float(probed + sampled.made),
        },
        seconds=watch.seconds(),
    )


def _probed_clips(config: RunConfig, folder: Path) -> tuple[str, ...]:
    """Choose the clips of the probe, and keep them from one command to the next."""
    own = replace(config.evaluate, num_clips=config.leak.num_clips)
    keys = open_set(replace(config, evaluate=own), folder / PROBE_FOLDER).clips
    if len(keys) < 2:
        raise ConfigError(
            "the leakage probe swaps clips and needs at least 2 held-out ones, got 1; train with a "
            "larger validate.held_out_fraction"
        )
    return keys


def _sample(
    config: RunConfig, arms: Sequence[Arm], folder: Path, session: ExitStack, *, debug: bool
) -> _Sampled:
    """Sample all starts: with unit noise, and below the largest M from the Analytic-Init too."""
    own = config.leak
    settings = replace(
        config.evaluate,
        num_clips=own.num_sampled_clips,
        seeds_per_clip=own.seeds_per_clip,
        num_steps=own.num_steps or config.evaluate.num_steps,
        videos="mp4" if config.evaluate.videos == "none" else config.evaluate.videos,
    )
    sampling = replace(config, evaluate=settings)
    largest = max(own.start_times)
    smaller = [time for time in own.start_times if time < largest]
    parts = [("unit-noise", list(own.start_times), False)]
    if own.analytic_init and smaller:
        parts.append(("analytic-init", smaller, True))
    evaluations: list[Evaluation] = []
    for name, times, gaussian in parts:
        evaluations.append(
            evaluate_arms(
                sampling,
                arms,
                start_times=times,
                analytic_init=[gaussian],
                folder=folder / SAMPLES_FOLDER / name,
                session=session,
                debug=debug,
            )
        )
    return _Sampled(
        rows=[row for each in evaluations for row in each.rows],
        folder=evaluations[0].folder,
        fps=evaluations[0].chosen.fps,
        made=sum(each.num_done for each in evaluations),
    )


def _study(
    config: RunConfig,
    arms: Sequence[LeakArm],
    keys: Sequence[str],
    found: Sequence[dict[str, Any]],
    sampled: _Sampled,
) -> Study:
    """Take everything together and decide."""
    own, names = config.leak, [arm.name for arm in arms]
    resampling = Resampling(
        seed=config.seed, num=config.evaluate.bootstrap_samples, level=config.evaluate.confidence
    )
    references = {arm.name: arm.reference for arm in arms}
    probe, samples = probe_table(found, keys), sample_table(sampled.rows)
    start = compared_start(samples)
    evidence = gather(arms, probe, samples, resampling)
    verdicts = [decide(each) for each in evidence]
    videos: list[VideoRow] = []
    left_out = 0
    if start is not None:
        videos, left_out = video_rows(
            sampled.rows,
            sampled.folder,
            start=start,
            arms=names,
            fps=sampled.fps,
            most=own.num_shown,
        )
    return Study(
        arms=arms,
        probed=keys,
        probe=points_of_probe(probe, references, resampling),
        sampled=points_of_samples(samples, references, resampling),
        samples=samples,
        start=start,
        evidence=evidence,
        verdicts=verdicts,
        headline=summarise(verdicts, {arm.name: arm.group for arm in arms}),
        limits=limits(
            num_probed=len(keys),
            num_sampled=len(samples.keys),
            level=resampling.level,
            seeds=[arm.seed for arm in arms],
            num_arms=len(arms),
        ),
        warnings=warnings_of(arms, keys, samples, start),
        densities={arm.name: noise_density(arm) for arm in arms},
        videos=videos,
        videos_left_out=left_out,
        settings=_settings(own, resampling),
        dataset={
            "place": redact_uri(dataset_of(config)),
            "fingerprint": open_dataset(config).manifest.fingerprint,
            "clips": config.evaluate.clips,
            "reference": config.evaluate.reference,
        },
    )


def _settings(own: LeakConfig, resampling: Resampling) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(own).items() if name != "num_shown"}
    return {**settings, **asdict(resampling), "times": sorted(own.times)}


def warnings_of(
    arms: Sequence[LeakArm], keys: Sequence[str], samples: SampleTable, start: Start | None
) -> list[str]:
    """Say what a reader must know before any number."""
    found = []
    if len(keys) < _FEW_CLIPS:
        found.append(f"only {len(keys)} clips were probed: intervals are rough")
    if len(samples.keys) < _FEW_CLIPS:
        found.append(
            f"videos of only {len(samples.keys)} clips: motion and alignment are rough, whatever "
            "their intervals say"
        )
    if samples.left_out:
        found.append(
            f"{len(samples.left_out)} clips are left out of all numbers about videos, as one of "
            f"their videos is black or not finite, the first is {samples.left_out[0]}"
        )
    total: Counter[tuple[str, str]] = Counter()
    for (arm, where), counts in samples.flags.items():
        if where == start:
            total.update({(arm, flag): count for flag, count in counts.items()})
    found += [
        f"{arm}: {count} of its videos at {start} are flagged {flag}; look at them before their "
        "motion is believed"
        for (arm, flag), count in sorted(total.items())
    ]
    unknown = [arm.name for arm in arms if arm.noise is None]
    if unknown:
        found.append(f"what {', '.join(unknown)} was trained with is not in its model folder")
    return found
