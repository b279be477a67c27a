"""`cil retrain`: encode, and if there is something new train, register, judge and promote.

    lock -> encode -> fingerprint -> nothing new? -> warm start -> train -> estimate -> register
    as challenger -> measure challenger and champion -> gate -> promote, or leave the champion

Whatever is killed is completed by the next run with the same data and settings.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines import prometheus, tracking
from pipelines.config import RunConfig
from pipelines.evaluate.arms import Arm
from pipelines.gate.evidence import CHALLENGER, DISTANCES, GateEvidence, measure_models
from pipelines.gate.evidence import CHAMPION as CHAMPION_ARM
from pipelines.gate.rules import Decision, decide
from pipelines.log_format import log_fields
from pipelines.model_card import CARD_FILE, publish_model_card
from pipelines.progress import console
from pipelines.promotion import CHAMPION, GATE_TAG, PREVIOUS, promote
from pipelines.register import REGISTER_FOLDER
from pipelines.report import RunReport, Stopwatch
from pipelines.retrain.night import (
    Night,
    check_family,
    fetched,
    fingerprint_of,
    folder_of_night,
    open_night,
    try_lock,
)
from pipelines.retrain.tidy import remove_old_nights
from pipelines.stages import check_before_start, hold_places
from pipelines.storage import hash_of_folder, write_json
from pipelines.tracking.versions import (
    ModelVersion,
    aliased,
    history,
    judge_version,
    tag_version,
    version_of,
    versions_of,
)

__all__ = ["FINGERPRINT_TAG", "PARENT_TAG", "REFUSED_CODE", "exit_code", "run_retrain"]

FINGERPRINT_TAG = "retrain_fingerprint"
PARENT_TAG = "parent_version"
REFUSED_CODE = 3
GATE_FOLDER = "gate"
REPORT_FILE = "report.json"
_PENDING, _PASSED, _REFUSED = "pending", "passed", "refused"


def exit_code(report: RunReport) -> int:
    """Return what a scheduler understands: 0, or 3 where the gate refused the new model."""
    return REFUSED_CODE if report.outputs["status"] == _REFUSED else 0


def run_retrain(config: RunConfig, *, debug: bool = False) -> RunReport:
    """Do one scheduled run.

    Args:
        config: the run.
        debug: show the logs of workers.

    Returns:
        ``outputs["status"]``: ``promoted``, ``nothing new``, ``refused`` or ``already running``.

    Raises:
        ConfigError: a setting cannot work, or the champion is of another family.
        DataError: the data set is damaged.
        StageError: a stage, a worker or MLflow failed.
    """
    watch = Stopwatch()
    check_before_start("retrain", config)
    with try_lock(config) as ours:
        if not ours:
            console.print("another retrain works in this output.dir: nothing to do", style="yellow")
            return _report(watch, {"status": "already running"})
        with ExitStack() as session:
            hold_places(config, session, dataset=True)
            return _locked(config, session, watch, debug=debug)


def _locked(config: RunConfig, session: ExitStack, watch: Stopwatch, *, debug: bool) -> RunReport:
    from pipelines import encode

    champion = aliased(config, CHAMPION)
    if champion is not None:
        check_family(config, champion)
    with _step("encode"):
        encoded = encode.run(config, session=session, debug=debug)
    manifest = str(encoded.outputs["fingerprint"])
    fingerprint = fingerprint_of(config, manifest)
    folder = folder_of_night(config, fingerprint)
    known = _version_of_night(config, fingerprint)
    about: dict[str, Any] = {"fingerprint": fingerprint, "dataset": manifest}
    if known is not None and _is_settled(config, known, folder):
        state = known.tags.get(GATE_TAG)
        console.print(
            f"nothing new: version {known.version} is of this data and these settings ({state})",
            markup=False,
        )
        return _report(watch, {**about, "status": "nothing new", **_of(config, known)})
    if known is not None and known.tags.get(GATE_TAG) in (_PASSED, _REFUSED):
        challenger = known  # a run that was killed between the gate and its report
    else:
        night = open_night(config, fingerprint, champion)
        challenger = _trained(night, session, debug=debug)
        with log_fields(stage="gate"):
            _judged(night, challenger, session, debug=debug)
    status, reason = _settled(config, challenger.version)
    found = {**about, "status": status, **_of(config, challenger)}
    report = _report(watch, {**found, "reason": reason, "folder": str(folder)})
    kept = [fingerprint, *_behind_champions(config)]
    report.save(folder / REPORT_FILE)  # from here on the night is settled: nothing may fail
    remove_old_nights(config, kept)
    return report


def _behind_champions(config: RunConfig) -> list[str]:
    """Return the fingerprints of the nights that made the champion and the one before it."""
    champions = [aliased(config, alias) for alias in (CHAMPION, PREVIOUS)]
    found = [each.tags.get(FINGERPRINT_TAG) for each in champions if each is not None]
    return [each for each in found if each is not None]


def _version_of_night(config: RunConfig, fingerprint: str) -> ModelVersion | None:
    for version in versions_of(config):
        if version.tags.get(FINGERPRINT_TAG) == fingerprint:
            return version
    return None


def _is_settled(config: RunConfig, version: ModelVersion, folder: Path) -> bool:
    """Tell whether nothing is left to do for a night: judged, promoted if it passed, reported."""
    state = version.tags.get(GATE_TAG)
    if state in (None, _PENDING):
        return False
    if state not in (_PASSED, _REFUSED):  # somebody has decided since: it was rolled back
        return True
    if not (folder / REPORT_FILE).exists():
        return False
    return state == _REFUSED or _was_promoted(config, version.version)


def _was_promoted(config: RunConfig, version: str) -> bool:
    return any(
        (entry["action"], entry["version"]) == ("promote", version) for entry in history(config)
    )


def _trained(night: Night, session: ExitStack, *, debug: bool) -> ModelVersion:
    """Take the night through the stages to a registered challenger."""
    from pipelines import estimate, register, train

    config = night.config
    start = "fresh weights" if night.parent is None else f"version {night.parent}"
    with _step("train", f", from {start}"):
        trained = train.run(config, session=session, debug=debug)
    run_id = str(trained.outputs["mlflow_run_id"])
    tracking.tag_run(config, run_id, "mlflow.runName", night.run_name)
    with _step("estimate"):
        estimate.run(config, session=session, debug=debug)
    tags = {FINGERPRINT_TAG: night.fingerprint, GATE_TAG: _PENDING}
    if night.parent is not None:
        tags[PARENT_TAG] = night.parent
    with _step("register"):
        version = str(register.run(config, tags=tags).outputs["version"])
    # the same model may be a version already, of other settings: it is found by this night now
    tag_version(config, version, {FINGERPRINT_TAG: night.fingerprint})
    return version_of(config, version)


def _judged(night: Night, challenger: ModelVersion, session: ExitStack, *, debug: bool) -> None:
    """Measure both models, apply the rules, and write the decision down; its tag comes last."""
    config, folder = night.config, night.folder / GATE_FOLDER
    champion = aliased(config, CHAMPION)
    _say(f"gate, against {'no champion' if champion is None else f'version {champion.version}'}")
    mine = _arm(CHALLENGER, night.folder / REGISTER_FOLDER / "model")
    with ExitStack() as copies:
        theirs = None
        if champion is not None:
            place = copies.enter_context(fetched(config, champion, night.folder / "champion"))
            theirs = _arm(CHAMPION_ARM, place)
        evidence = measure_models(config, mine, theirs, folder=folder, session=session, debug=debug)
    decision = decide(
        evidence.measured,
        config.gate,
        champion=None if champion is None else champion.version,
        distances=evidence.distances,
    )
    _keep(night, challenger, decision, evidence)
    state = _PASSED if decision.passed else _REFUSED
    tags = {"gate_reason": decision.reason, "gate_against": decision.against or "none"}
    judge_version(config, challenger, {**tags, GATE_TAG: state})


def _arm(name: str, folder: Path) -> Arm:
    return Arm(name=name, kind="model", folder=folder, identity=hash_of_folder(folder))


def _keep(
    night: Night, challenger: ModelVersion, decision: Decision, evidence: GateEvidence
) -> None:
    """Write the decision down, beside the measures and in MLflow."""
    config, folder = night.config, night.folder / GATE_FOLDER
    path = folder / "decision.json"
    write_json(
        path,
        {
            "version": challenger.version,
            "passed": decision.passed,
            "against": decision.against,
            "set_sha256": evidence.set_sha256,
            "distances": {name: DISTANCES[name] for name in evidence.distances},
            "rulings": [asdict(ruling) for ruling in decision.rulings],
        },
    )
    uri = tracking.tracking_uri(config)
    tracking.log_files(uri, challenger.run_id, [path, evidence.report])
    publish_model_card(
        config, challenger, folder / CARD_FILE, decision=decision, parent=night.parent
    )


def _settled(config: RunConfig, version: str) -> tuple[str, str]:
    """Promote a version that has passed; returns what became of the night, and why."""
    judged = version_of(config, version)
    reason = judged.tags.get("gate_reason", "")
    if judged.tags.get(GATE_TAG) != _PASSED:
        prometheus.add_gate_decision(promoted=False)
        console.print(f"the gate refused version {version}: {reason}", style="red", markup=False)
        return _REFUSED, reason
    if _was_promoted(config, version):  # only the report is missing; another may be champion now
        return "promoted", reason
    move = promote(config, version, reason=reason, evidence=f"mlflow run {judged.run_id}")
    prometheus.add_gate_decision(promoted=True)
    before = move.previous or "none"
    console.print(f"version {version} is champion now, before it was {before}", markup=False)
    return "promoted", reason


def _of(config: RunConfig, version: ModelVersion) -> dict[str, Any]:
    champion = aliased(config, CHAMPION)
    return {
        "version": version.version,
        "name": version.name,
        "gate": version_of(config, version.version).tags.get(GATE_TAG),
        "champion": None if champion is None else champion.version,
        "tracking_uri": tracking.shown_uri(config),
    }


@contextmanager
def _step(stage: str, how: str = "") -> Iterator[None]:
    """Say that a stage begins, and put its name into the lines of the log until it ends."""
    with log_fields(stage=stage):
        _say(f"{stage}{how}")
        yield


def _say(what: str) -> None:
    console.print(f"[bold]retrain: {what}[/bold]")


def _report(watch: Stopwatch, outputs: Mapping[str, Any]) -> RunReport:
    return RunReport(
        stage="retrain",
        reused=outputs["status"] in ("nothing new", "already running"),
        inputs={},
        outputs=dict(outputs),
        metrics={},
        seconds=watch.seconds(),
    )
