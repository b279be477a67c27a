"""A sweep of two arms through the real stages; the second call finds everything done."""

import csv
import json
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep_file(cil, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    base = yaml.safe_load(cil.config.read_text())
    (folder / "small.yaml").write_text(yaml.safe_dump(base))
    path = folder / "two.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "base": "small.yaml",
                "common": {
                    "train.num_steps": 4,
                    "train.checkpoint_every": 2,
                    "validate": {
                        "held_out_fraction": 0.3,
                        "num_clips": 4,
                        "num_videos": 2,
                        "num_steps": 2,
                    },
                    "data.videos": str(cil.videos),
                    "output.dir": str(folder / "out"),
                },
                "arms": {"naive": {"time_noise.preset": "none"}, "base": {}},
            },
            sort_keys=False,
        )
    )
    return path


def test_two_arms_share_the_data_and_are_reported_side_by_side(cil, sweep_file):
    first = cil(*cil.command("sweep", str(sweep_file), "--json"))
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout.splitlines()[-1])["sweep"]
    assert report["metrics"]["finished"] == 2
    assert report["metrics"]["failed"] == 0
    output = sweep_file.parent / "out"
    arms = output / "sweep" / "arms"
    statistics = [
        (arms / name / "seed-0" / "estimate" / "analytic_init.safetensors").read_bytes()
        for name in ("naive", "base")
    ]
    shared = (output / "estimate" / "analytic_init.safetensors").read_bytes()
    assert statistics == [shared, shared]
    assert not list(arms.rglob("manifest.json"))
    trained = [
        json.loads((arms / name / "seed-0" / "train" / "report.json").read_text())
        for name in ("naive", "base")
    ]
    assert trained[0]["inputs"]["dataset"] == trained[1]["inputs"]["dataset"]
    assert trained[0]["inputs"]["identity"] != trained[1]["inputs"]["identity"]
    ledgers = [
        [
            json.loads(line)
            for line in next((arms / name / "seed-0" / "train").glob("ledger-*.jsonl"))
            .read_text()
            .splitlines()
        ]
        for name in ("naive", "base")
    ]
    assert ledgers[0] == ledgers[1]  # the same clips in the same steps
    with (output / "sweep" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    clean = [row for row in rows if row["measure"] == "val_loss_clean"]
    assert [row["arm"] for row in clean] == ["naive", "base"]
    assert all(float(row["value"]) > 0 for row in clean)
    page = (output / "sweep" / "report.html").read_text()
    assert page.count("data:image/gif;base64,") >= 2 * 3
    check_tags(output, arms)

    second = cil(*cil.command("sweep", str(sweep_file), "--json", "--register"))
    assert second.returncode == 0, second.stderr
    again = json.loads(second.stdout.splitlines()[-1])["sweep"]
    assert again["metrics"]["finished"] == 2
    check_versions(output)

    third = cil(*cil.command("sweep", str(sweep_file), "--json"))
    assert third.returncode == 0, third.stderr
    last = json.loads(third.stdout.splitlines()[-1])["sweep"]
    assert last["reused"]
    assert last["metrics"]["reused"] == 2
    assert "naive, seed 0: train (was complete)" in third.stderr


def store(output: Path):
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{output}/mlflow/mlflow.db")


def check_tags(output: Path, arms: Path) -> None:
    """Both trainings are in one store, tagged; nothing is registered."""
    client = store(output)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(experiments) if "sweep" in run.data.tags]
    assert {run.data.tags["sweep_arm"] for run in runs} == {"naive", "base"}
    assert {run.data.tags["sweep"] for run in runs} == {"two"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert client.search_model_versions() == []
    for name in ("naive", "base"):
        assert (arms / name / "seed-0" / "register" / "model" / "model.json").exists()


def check_versions(output: Path) -> None:
    """Each arm is a version with its tags, and no alias moves from arm to arm."""
    versions = store(output).search_model_versions()
    assert {version.tags["sweep_arm"] for version in versions} == {"naive", "base"}
    assert len(versions) == 2
    assert not any(version.aliases for version in versions)
