"""The card of a registered model, in markdown: what it is, from what, and what its numbers are.

It becomes the description of the version in the registry and an artifact of its MLflow run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from pipelines import tracking
from pipelines.config import RunConfig
from pipelines.gate.rules import Decision
from pipelines.source_commit import COMMIT_TAG, DIRTY_TAG
from pipelines.storage import write_atomic
from pipelines.tracking.registered_model import LONGEST_TEXT
from pipelines.tracking.versions import ModelVersion, describe_version

__all__ = ["CARD_FILE", "publish_model_card"]

CARD_FILE = "model_card.md"
_NOT_STATED = "not stated"
_THE_REST = f"the rest is in {CARD_FILE}"


def publish_model_card(
    config: RunConfig,
    version: ModelVersion,
    path: Path,
    *,
    decision: Decision | None = None,
    parent: str | None = None,
) -> Path:
    """Write the card of a version, make it its description, and send it to the training's run.

    A description holds 5000 signs: of a longer card it has the first lines, and says where the rest
    is.

    Args:
        config: the run; its section card says what no measurement can.
        version: of the model.
        path: the file.
        decision: of the gate, if it has judged.
        parent: version that training began with.

    Returns:
        The path.

    Raises:
        StageError: MLflow failed.
    """
    text = "\n".join(_lines(config, version, decision, parent))
    write_atomic(path, text.encode())
    describe_version(config, version.version, _description(text))
    tracking.log_files(tracking.tracking_uri(config), version.run_id, [path])
    return path


def _lines(
    config: RunConfig, version: ModelVersion, decision: Decision | None, parent: str | None
) -> Iterator[str]:
    card, tags = config.card, version.tags
    yield f"# {version.name}, version {version.version}"
    yield ""
    yield card.description or "An image-to-video diffusion model: an image in, a short video out."
    yield ""
    yield "| | |"
    yield "|---|---|"
    rows = {
        "Intended use": card.intended_use,
        "Out of scope": card.out_of_scope,
        "Licence of the weights": card.weights_license,
        "Licence of the training data": card.data_license,
        "Contact": card.contact,
        "Registered": version.created.isoformat(timespec="seconds"),
        "Family": tags.get("family", config.model.family),
        "Began from": "fresh or published weights" if parent is None else f"version {parent}",
        "Data set": tags.get("manifest_fingerprint", _NOT_STATED),
        "Code": _code(tags),
        "MLflow run": version.run_id,
    }
    for name, value in rows.items():
        yield f"| {name} | {_cell(value)} |"
    yield ""
    yield "## Training"
    yield ""
    train, data = config.train, config.data
    yield (
        f"{train.num_steps} steps of {train.global_batch_size} clips of {data.num_frames} frames "
        f"at {data.fps:g} Hz, {_sizes(config)}; {train.trainable} parameters trained, "
        f"{train.precision}, learning rate {train.learning_rate:g}, seed {config.seed}. "
        f"Noise on the conditioning image: {config.time_noise.preset}."
    )
    yield ""
    yield (
        f"Sampled from start time M = {config.sample.start_time:g} "
        f"{'with' if config.sample.analytic_init else 'without'} Analytic-Init, "
        f"{config.sample.num_steps} steps, unless asked otherwise."
    )
    yield ""
    yield "## Gate"
    yield ""
    if decision is None:
        yield "No gate has judged this version."
    else:
        against = "its bounds" if decision.against is None else f"version {decision.against}"
        yield f"**{'Passed' if decision.passed else 'Refused'}** against {against}."
        yield ""
        yield "| rule | verdict | numbers |"
        yield "|---|---|---|"
        for ruling in decision.rulings:
            verdict = "passed" if ruling.passed else "failed"
            yield f"| {_cell(ruling.name)} | {verdict} | {_cell(ruling.text)} |"
        yield ""
        yield (
            "Intervals are over held-out clips of the same kind; they say nothing about other data "
            "or another training. See docs/evaluation.md for what each number means."
        )
    yield ""
    files = [name for name in tracking.artifacts_of(config, version.run_id) if name != CARD_FILE]
    if files:
        yield "## Evidence"
        yield ""
        yield "Pages, pictures and videos, as artifacts of the MLflow run:"
        yield ""
        for name in files:
            yield f"- [{name}]({quote(name)})"
        yield ""
    yield "## Limits"
    yield ""
    yield card.limitations or (
        "Motion and image alignment trade against each other; a lower leak does not promise more "
        "motion. The model knows what its training data show and nothing else."
    )
    yield ""


def _description(text: str) -> str:
    """Cut a card to what the registry takes, at the end of a line if there is one."""
    text = text.replace("\0", "")
    if len(text) <= LONGEST_TEXT:
        return text
    kept, _, _ = text[: LONGEST_TEXT - len(_THE_REST) - 1].rpartition("\n")
    return f"{kept}\n\n{_THE_REST}"


def _code(tags: Mapping[str, str]) -> str | None:
    commit = tags.get(COMMIT_TAG)
    changed = tags.get(DIRTY_TAG) == "true"
    return f"commit {commit}, with changes" if commit and changed else commit and f"commit {commit}"


def _sizes(config: RunConfig) -> str:
    data = config.data
    return ", ".join(data.buckets) if data.buckets else f"{data.height} x {data.width} pixels"


def _cell(value: str | None) -> str:
    """Write a text into a cell of a table, whatever is in it."""
    text = " ".join((value or _NOT_STATED).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
