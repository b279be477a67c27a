import dataclasses
import json

import pytest

from pipelines import doctor
from pipelines.config import validate_config


@pytest.fixture
def checks(tmp_path, capsys, monkeypatch):
    """Run the doctor: exit code and its checks by name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(**sections):
        raw = {"output": {"dir": str(tmp_path / "out")}, **sections}
        code = doctor.run(validate_config(raw, source="test"), as_json=True)
        out, err = capsys.readouterr()
        (line,) = out.splitlines()
        found = json.loads(line)["doctor"]
        assert len(err.splitlines()) == len(found)
        return code, {check["name"]: check for check in found}, err

    return run


def test_a_good_environment_passes_and_is_left_as_it_was(checks, tmp_path):
    code, found, _ = checks()
    assert {name for name, check in found.items() if check["state"] == "fail"} == set()
    assert code == 0
    assert {"python", "torch", "ray", "mlflow", "ffmpeg", "gpu", "disk", "output"} <= set(found)
    assert found["gpu"]["state"] in ("ok", "warn")
    assert "inside PyAV" in found["ffmpeg"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_fails_with_what_to_do(checks, tmp_path):
    (tmp_path / "file").write_text("x")
    code, found, err = checks(
        output={"dir": str(tmp_path / "file" / "x")},
        tracking={"uri": "ftp://me:s3cret@host"},
        data={"videos": str(tmp_path / "missing")},
    )
    assert code == 1
    failed = {name: check for name, check in found.items() if check["state"] == "fail"}
    assert set(failed) == {"output", "mlflow", "videos"}
    assert "choose a folder" in failed["output"]["found"]
    assert "give a folder with videos, a pattern, a table" in failed["videos"]["found"]
    assert "s3cret" not in err + json.dumps(found)


def test_a_data_set_elsewhere_is_a_check_of_its_own(checks, tmp_path):
    (tmp_path / "file").write_text("x")
    place = str(tmp_path / "file" / "clips")
    code, found, _ = checks(output={"dir": str(tmp_path / "out"), "dataset": place})
    assert code == 1
    assert {name for name, check in found.items() if check["state"] == "fail"} == {"dataset"}
    assert "output.dataset: cannot write to" in found["dataset"]["found"]


def test_a_missing_package_fails_and_names_the_command(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    real = doctor.version

    def version(name):
        if name == "decord":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    (missing,) = [check for check in doctor._packages() if check.state == "fail"]
    assert (missing.name, missing.found) == ("decord", "not installed")
    assert "make setup" in missing.advice


def test_the_other_kernels_distribution_is_a_failure(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.17")
    check = doctor._hf_kernels()
    assert check.state == "fail"
    assert "pip uninstall kernels" in check.advice


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "fail")]
)
def test_python_must_be_one_that_is_supported(monkeypatch, version, state):
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0, "final", 0))
    assert doctor._python().state == state


@pytest.mark.parametrize(
    ("free_gib", "state"), [(1, "warn"), (4.9, "warn"), (5, "ok"), (500, "ok")]
)
def test_little_room_is_a_warning(monkeypatch, tmp_path, free_gib, state):
    from types import SimpleNamespace

    free = SimpleNamespace(free=int(free_gib * 2**30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: free)
    config = validate_config({"output": {"dir": str(tmp_path / "new")}}, source="test")
    assert doctor._disk(config).state == state


def test_a_check_is_frozen():
    check = doctor.Check(name="x", state="ok", found="y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.state = "fail"
