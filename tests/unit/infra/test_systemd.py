"""infra/systemd: parsed always, and by systemd itself where it is installed."""

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from pipelines.config import dataset_of, load_config
from pipelines.environment_variables import variables_for

FOLDER = Path(__file__).parents[3] / "infra" / "systemd"
SERVICE, TIMER = "cil-retrain.service", "cil-retrain.timer"
CALENDAR = re.compile(r"\*-\*-\* ([01]\d|2[0-3]):[0-5]\d:[0-5]\d UTC")


def unit(name):
    parser = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read(FOLDER / name)  # a setting that stands twice is an error
    return parser


def test_the_service_runs_retrain_and_knows_its_exit_codes():
    service = unit(SERVICE)["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).is_absolute()
    assert words == ["-m", "pipelines", "retrain", "--config", "/etc/cil/retrain.yaml"]
    assert service["Type"] == "oneshot"
    assert service["SuccessExitStatus"] == "3"  # the gate refused; 1 and 2 are failures
    assert service["KillMode"] == "mixed"


def test_the_service_is_no_root_and_has_its_secrets_from_a_file():
    service = unit(SERVICE)["Service"]
    assert service["User"] == "cil"
    assert service["NoNewPrivileges"] == "true"
    assert service["EnvironmentFile"] == "/etc/cil/retrain.env"
    assert "Environment" not in service
    values = dict(
        line.split("=", 1)
        for line in (FOLDER / "retrain.env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert values.items() >= variables_for("job").items()
    secret = [name for name in values if re.search("PASSWORD|SECRET|KEY", name)]
    assert len(secret) == 3
    assert all(values[name] == "" for name in secret)


def writable(service):
    """Folders below which a unit with ProtectSystem=strict may write, by the words of the unit."""
    assert service["ProtectSystem"] == "strict"
    states = [Path("/var/lib") / name for name in service["StateDirectory"].split()]
    return states + [Path(name) for name in service.get("ReadWritePaths", "").split()]


def below(place, folders):
    return any(Path(place).is_relative_to(folder) for folder in folders)


def test_the_sample_writes_where_the_unit_may(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "CIL_OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)
    service, config = unit(SERVICE)["Service"], load_config(FOLDER / "retrain.yaml")
    folders = writable(service)
    for place in (config.output.dir, dataset_of(config)):
        assert below(place, folders), f"{place} is read-only under the unit"
    environment = dict(
        line.split("=", 1)
        for line in (FOLDER / "retrain.env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert below(environment["HOME"], folders)
    assert service["ProtectHome"] == "true"
    for place in (config.data.videos, config.model.pretrained):
        assert not below(place, [Path("/home"), Path("/root")])
    assert not below("/mnt/cil/retrain", folders)
    assert config.train.num_workers == 1


def test_the_steps_to_install_make_what_the_unit_names():
    text, service = (FOLDER / SERVICE).read_text(), unit(SERVICE)["Service"]
    steps = "\n".join(line for line in text.splitlines() if line.startswith("#   "))
    assert re.search(rf"useradd .* {service['User']}$", steps, re.M)
    assert f"-C {service['WorkingDirectory']}" in steps
    assert service["ExecStart"].startswith(service["WorkingDirectory"])
    for source, place in re.findall(r"install .*?(infra/\S+) (/etc/\S+)", steps):
        assert (FOLDER.parents[1] / source).is_file()
        assert place in (service["EnvironmentFile"], shlex.split(service["ExecStart"])[-1])
    assert steps.count("sudo install") == 2
    for name in (SERVICE, TIMER):
        assert f"infra/systemd/{name}" in steps


def test_the_timer_starts_the_service_every_night():
    timer = unit(TIMER)
    assert CALENDAR.fullmatch(timer["Timer"]["OnCalendar"])
    assert timer["Timer"]["Unit"] == SERVICE
    assert (FOLDER / timer["Timer"]["Unit"]).exists()
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert timer["Timer"]["Persistent"] == "true"


def verify(folder):
    """Ask systemd; None where it is not installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return None
    paths = [str(folder / name) for name in (SERVICE, TIMER)]
    return subprocess.run(
        [program, "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )


@pytest.fixture
def installed(tmp_path):
    """The units as they would be installed, with a program that is there."""
    for name in (SERVICE, TIMER):
        text = (FOLDER / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/cil/.venv/bin/python", "/bin/true"))
    return tmp_path


def test_systemd_has_nothing_to_say(installed):
    done = verify(installed)
    if done is not None:
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (TIMER, "OnCalendar=*-*-* 01:30:00 UTC", "OnCalendar=every night"),
        (SERVICE, "KillMode=mixed", "KillModes=mixed"),
        (SERVICE, "Type=oneshot", "Type=once"),
        (SERVICE, "ExecStart=/bin/true", "ExecStart=true-that-is-nowhere"),
    ],
)
def test_systemd_would_say_so(installed, name, old, new):
    path = installed / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    done = verify(installed)
    if done is not None:
        assert done.returncode != 0 or done.stderr
