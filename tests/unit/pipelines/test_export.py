"""Checkpoints that DeepSpeed wrote, exported and opened with the libraries that users have."""

import copy
import dataclasses
import json
import pickle
import pickletools
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cil.errors import ConfigError, DataError
from cil.models import load
from pipelines.__main__ import _main
from pipelines.config import child_environment, config_to_yaml
from pipelines.dataset import open_training_data
from pipelines.export import export_checkpoint, list_checkpoints
from pipelines.model_folder import build_model
from pipelines.storage import hash_of_folder, write_json
from pipelines.train import train_identity

WORKER = Path(__file__).with_name("zero_worker.py")
LORA = {"trainable": "lora", "lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 2e-2}
CASES = {
    "stage0-bf16": {"zero_stage": 0, "precision": "bf16"},
    "stage2": {"zero_stage": 2},
    "stage3": {"zero_stage": 3, "persistent_elements": 0, "gradient_checkpointing": True},
    "whole": {"zero_stage": 2, "trainable": "all", "lora_alpha": None, "learning_rate": 1e-3},
}
SLOW_CASES = {
    f"stage{stage}-{precision}": {"zero_stage": stage, "precision": precision}
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
}
STEPS = 2
PROMISED = 1e-6
"""How far outputs of order one may be apart, computed in float64: then only the weights differ."""


def train_in_processes(encoded_run, folder, cases, *, world_size):
    """Train each case; returns the results by name."""
    rendezvous = folder / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    spec = {
        "config": dataclasses.asdict(encoded_run.config),
        "world_size": world_size,
        "rendezvous": str(rendezvous),
        "output": str(folder),
        "cases": [
            {
                "name": name,
                "train": {**LORA, "num_steps": STEPS, "num_workers": world_size, **train},
                "masters": True,
            }
            for name, train in cases.items()
        ],
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    environment = child_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    log = folder / "log"
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "spec.json"), str(rank)],
            env=environment,
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world_size, log.read_text()[-3000:]
    return {name: json.loads((folder / name / "result.json").read_text()) for name in cases}


@pytest.fixture(scope="module")
def trained(encoded_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_in_processes(encoded_run, folder, CASES, world_size=1)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder as training leaves it, with its settings and its checkpoints."""

    config: object
    folder: Path
    ray: Path

    def network(self, weights):
        """Build the network that was trained, with adapters, and give it some weights."""
        network = build_model(self.config, open_training_data(self.config).largest).network
        missing, unexpected = network.load_state_dict(weights, strict=False)
        assert unexpected == []
        assert len(missing) + len(weights) == len(network.state_dict())
        return network.eval()


def make_run(encoded_run, source, folder, train, *, world_size=1, steps=(1, 2, 3), last=3):
    """Lay out a run around a checkpoint, as Ray does; every step gets a copy of it."""
    config = dataclasses.replace(
        encoded_run.config,
        train=dataclasses.replace(
            encoded_run.config.train,
            **{**LORA, "num_steps": STEPS, "num_workers": world_size, **train},
        ),
        output=dataclasses.replace(
            encoded_run.config.output, dir=str(folder), dataset=str(encoded_run.dataset)
        ),
    )
    identity = train_identity(config, open_training_data(config).manifest.fingerprint)
    ray = folder / "train" / "ray" / f"train-{identity[:12]}"
    ray.mkdir(parents=True)
    (folder / "train" / "config.yaml").write_text(config_to_yaml(config))
    for step in steps:
        checkpoint = ray / f"checkpoint_{step}"
        # without hashes, as checkpoints of older versions: its files are changed here
        shutil.copytree(source, checkpoint, ignore=shutil.ignore_patterns("sha256"))
        state = json.loads((checkpoint / "train_state.json").read_text())
        state |= {"num_steps": step, "config_hash": identity}
        (checkpoint / "train_state.json").write_text(json.dumps(state))
        if step != last:  # format version 1: the whole average in the last one alone
            (checkpoint / "ema.safetensors").unlink()
    (ray / "checkpoint_9").mkdir()  # on disk, but never committed
    results = [
        {"version": 0, "checkpoint_dir_name": f"checkpoint_{step}", "metrics": {}}
        for step in reversed(steps)
    ]
    snapshot = {
        "ray_version": "2.60.0",
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results), 0, -1)),
        "latest_checkpoint_result": {**results[0], "checkpoint_dir_name": f"checkpoint_{last}"},
    }
    write_json(ray / "checkpoint_manager_snapshot.json", snapshot)
    return Run(config=config, folder=folder, ray=ray)


@pytest.fixture
def run_of(trained, encoded_run, tmp_path):
    def make(name, **more):
        source = trained[0] / name / "last"
        return make_run(encoded_run, source, tmp_path / "run", CASES[name], **more)

    return make


def outputs(network):
    """Call a network of SVD on drawn inputs, twice at different noise levels."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    settings = network.config
    with torch.no_grad():
        return copy.deepcopy(network).double()(
            draw(2, settings["num_frames"], settings["in_channels"], 8, 8),
            torch.tensor([0.3, -0.8], dtype=torch.float64),
            draw(2, 1, settings["cross_attention_dim"]),
            torch.tensor([[7.0, 127.0, 0.0], [7.0, 127.0, 0.5]], dtype=torch.float64),
            return_dict=False,
        )[0]


def apart(one, other):
    return (outputs(one) - outputs(other)).abs().max().item()


def masters(folder, name, network):
    """Return the fp32 weights at the end of a training, as DeepSpeed's own function told them."""
    file = max((folder / name).glob("masters*.safetensors"), key=lambda p: int(p.stem[7:]))
    shapes = network.state_dict()
    return {key: value.reshape(shapes[key].shape) for key, value in load_file(file).items()}


def holds_no_pickle(folder):
    """Look into every file: only JSON that parses and safetensors that begin as such."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        assert not zipfile.is_zipfile(path), path
        if path.suffix == ".json":
            json.loads(content)
        else:
            assert path.suffix == ".safetensors", path
            length = int.from_bytes(content[:8], "little")
            assert isinstance(json.loads(content[8 : 8 + length]), dict), path
        with pytest.raises(Exception, match=r"."):
            list(pickletools.genops(content))
    return sorted(path.relative_to(folder).as_posix() for path in files)


# -- training -------------------------------------------------------------------------------------


def columns(results, column):
    return {name: [row[column] for row in result["rows"]] for name, result in results.items()}


def test_every_stage_trains_the_same_adapters(trained):
    _, results = trained
    losses, norms = columns(results, "loss"), columns(results, "grad_norm")
    assert losses["stage2"][1] != losses["whole"][1]
    assert all(norm > 1e-3 for norm in norms["stage2"])
    # with gradient checkpointing: the inputs of the network need no gradient, its adapters get one
    assert losses["stage3"] == pytest.approx(losses["stage2"], abs=5e-7)
    assert norms["stage3"] == pytest.approx(norms["stage2"], rel=1e-4)
    assert losses["stage0-bf16"] == pytest.approx(losses["stage2"], abs=2e-2)


@pytest.mark.parametrize("name", [name for name in CASES if name != "whole"])
def test_what_is_frozen_has_no_optimiser_state(trained, name):
    """Two moments per number of the adapters, whatever the stage; padding apart."""
    folder, results = trained
    adapter = load_file(folder / name / "last" / "ema.safetensors")
    count = sum(value.numel() for value in adapter.values())
    assert all(".lora_" in name for name in adapter)
    assert 2 * count <= results[name]["optimiser_elements"] < 2 * count + 16
    assert results["whole"]["optimiser_elements"] > 10 * results[name]["optimiser_elements"]


# -- export ---------------------------------------------------------------------------------------


def check_export(run, source, name, out, *, live):
    """Export, open with diffusers, and compare with the network that was trained."""
    from diffusers import UNetSpatioTemporalConditionModel

    report = export_checkpoint(run.folder, out, live=live)
    plain = run.network({})
    average = load_file(source / name / "last" / "ema.safetensors")
    trained = run.network(masters(source, name, plain) if live else average)
    found = UNetSpatioTemporalConditionModel.from_pretrained(out, subfolder="unet").eval()
    assert apart(found, trained) <= PROMISED
    assert apart(found, plain) > 1e-3, "nothing was trained"
    return report, found


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *(("stage2", "ema"), ("stage2", "live"), ("stage3", "live")),
        *(("stage0-bf16", "live"), ("whole", "ema"), ("whole", "live")),
    ],
)
def test_the_exported_folder_is_the_trained_network(run_of, trained, tmp_path, name, weights):
    run, out = run_of(name), tmp_path / "out"
    report, found = check_export(run, trained[0], name, out, live=weights == "live")
    files = holds_no_pickle(out)
    assert "unet/diffusion_pytorch_model.safetensors" in files
    assert ("adapter/adapter_model.safetensors" in files) == (name != "whole")
    weights_read = load("tiny", out).network.state_dict()
    assert all(weights_read[name].equal(value) for name, value in found.state_dict().items())
    assert report.inputs["checkpoint"] == str(run.ray / "checkpoint_3")
    assert report.metrics == {"steps": 3.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_adapter_opens_with_peft_on_the_network_it_was_trained_for(
    run_of, trained, tiny_model, tmp_path
):
    from peft import PeftModel

    run, out = run_of("stage2"), tmp_path / "out"
    export_checkpoint(run.folder, out)
    wrapped = PeftModel.from_pretrained(copy.deepcopy(tiny_model.network), out / "adapter")
    live = run.network(load_file(trained[0] / "stage2" / "last" / "ema.safetensors"))
    assert apart(wrapped.base_model.model.eval(), live) == 0
    merged = wrapped.merge_and_unload().state_dict()
    written = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(written) == set(merged)
    assert all(written[name].equal(value) for name, value in merged.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
@pytest.mark.parametrize("live", [False, True])
def test_shards_of_two_workers_are_put_together(two_workers, encoded_run, tmp_path, name, live):
    folder = two_workers
    run = make_run(
        encoded_run, folder / name / "last", tmp_path / "run", SLOW_CASES[name], world_size=2
    )
    check_export(run, folder, name, tmp_path / "out", live=live)


@pytest.fixture(scope="module")
def two_workers(encoded_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    train_in_processes(encoded_run, folder, SLOW_CASES, world_size=2)
    return folder


# -- which checkpoint -----------------------------------------------------------------------------


def test_only_what_ray_committed_is_listed(run_of, capsys):
    report = list_checkpoints(run_of("stage2").folder)
    listed = [
        (each["name"], each["step"], each["weights"], each["last"])
        for each in report.outputs["checkpoints"]
    ]
    assert listed == [
        ("checkpoint_1", 1, ["live"], False),
        ("checkpoint_2", 2, ["live"], False),
        ("checkpoint_3", 3, ["ema", "live"], True),
    ]
    shown = capsys.readouterr()
    assert shown.out == ""
    first, *_, last = shown.err.splitlines()
    assert re.fullmatch(r"checkpoint_1  step 1  20\d\d-\d\d-\d\dT[\d:]{8}Z  live", first)
    assert last.endswith("ema, live  (last)")


def test_the_last_one_is_the_one_that_training_goes_on_from(run_of, tmp_path):
    """Not the one with the highest score, which Ray may list last."""
    run = run_of("stage2", last=2)
    report = export_checkpoint(run.folder, tmp_path / "out")
    assert report.inputs["checkpoint"] == str(run.ray / "checkpoint_2")


@pytest.mark.parametrize("asked", ["name", "folder"])
def test_an_older_one_can_be_asked_for(run_of, tmp_path, asked):
    run = run_of("stage2")
    words = "checkpoint_1" if asked == "name" else str(run.ray / "checkpoint_1")
    report = export_checkpoint(run.folder, tmp_path / "out", checkpoint=words, live=True)
    assert report.metrics == {"steps": 1.0}


@pytest.mark.parametrize("asked", ["checkpoint_9", "../run", "/", "x"])
def test_what_is_not_committed_is_refused(run_of, tmp_path, asked):
    words = "is no committed checkpoint of this run; there are: checkpoint_1, checkpoint_2, check"
    with pytest.raises(DataError, match=words):
        export_checkpoint(run_of("stage2").folder, tmp_path / "out", checkpoint=asked)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_an_average_says_what_to_do(run_of, tmp_path):
    with pytest.raises(DataError, match=r"has no ema.safetensors: .* or take --weights live"):
        export_checkpoint(run_of("stage2").folder, tmp_path / "out", checkpoint="checkpoint_1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage", ["average", "state", "other parameters", "other run", "snapshot", "names", "all gone"]
)
def test_damage_is_named_and_nothing_is_written(run_of, tmp_path, damage):
    run = run_of("stage2")
    checkpoint, snapshot = run.ray / "checkpoint_3", run.ray / "checkpoint_manager_snapshot.json"
    words = {
        "average": "ema.safetensors is damaged",
        "state": r"checkpoint_3 is damaged \(JSONDecodeError",
        "other parameters": "must hold the parameters that are trained; 129 are missing or too",
        "other run": "was written with other settings",
        "snapshot": "is not as Ray writes it",
        "names": "is not as Ray writes it",
        "all gone": r"all checkpoints that .* lists are gone \(checkpoint_1, checkpoint_2, check",
    }[damage]
    if damage == "average":
        file = checkpoint / "ema.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "state":
        (checkpoint / "train_state.json").write_text("{")
    elif damage == "other parameters":
        save_file({"other": torch.zeros(1)}, checkpoint / "ema.safetensors")
    elif damage == "other run":
        state = json.loads((checkpoint / "train_state.json").read_text())
        write_json(checkpoint / "train_state.json", {**state, "config_hash": "0" * 64})
    elif damage == "snapshot":
        snapshot.write_text("{}")
    elif damage == "names":
        snapshot.write_text(snapshot.read_text().replace("checkpoint_2", "../checkpoint_2"))
    else:
        for step in (1, 2, 3):
            shutil.rmtree(run.ray / f"checkpoint_{step}")
    with pytest.raises(DataError, match=words):
        export_checkpoint(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["deleted", "state"])
def test_a_damaged_checkpoint_leaves_the_others(run_of, tmp_path, capsys, damage):
    """Deleting its folder is what the messages about a damaged checkpoint say."""
    run = run_of("stage2", last=2)
    for name in ("ema.safetensors", "train_state.json"):
        assert (run.ray / "checkpoint_2" / name).exists()
    if damage == "deleted":
        shutil.rmtree(run.ray / "checkpoint_2")
    else:
        (run.ray / "checkpoint_2" / "train_state.json").write_text("{")
        words = r"checkpoint_2 is damaged .* There are also checkpoint_1, checkpoint_3: cil export"
        with pytest.raises(DataError, match=words):
            export_checkpoint(run.folder, tmp_path / "out")
    capsys.readouterr()
    listed = list_checkpoints(run.folder).outputs["checkpoints"]
    said = " ".join(capsys.readouterr().err.split())
    assert [each["name"] for each in listed] == ["checkpoint_1", "checkpoint_3"]
    assert [each["last"] for each in listed] == [False, damage == "deleted"]
    assert "checkpoint_2" in said.partition("warning: ")[2]
    report = export_checkpoint(run.folder, tmp_path / "out", checkpoint="checkpoint_3", live=True)
    assert report.inputs["checkpoint"] == str(run.ray / "checkpoint_3")
    if damage == "deleted":
        report = export_checkpoint(run.folder, tmp_path / "last", live=True)
        assert report.inputs["checkpoint"] == str(run.ray / "checkpoint_3")


@pytest.mark.parametrize("place", ["full", "file", "below a file"])
def test_nothing_is_overwritten(run_of, tmp_path, place):
    out = tmp_path / "out"
    if place == "full":
        out.mkdir()
        (out / "kept").write_text("of the user")
    else:
        out.write_text("of the user")
    before = sorted(tmp_path.rglob("*"))
    run = run_of("stage2")
    asked = out / "folder" if place == "below a file" else out
    with pytest.raises(ConfigError, match=r"^--out: "):
        export_checkpoint(run.folder, asked)
    left = [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "run" not in path.parents]
    assert left == [*before, tmp_path / "run"]


def test_a_failure_while_writing_leaves_nothing(run_of, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run, out = run_of("stage2"), tmp_path / "out"
    monkeypatch.setattr("pipelines.model_folder.replace_folder", full)
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(run.folder, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_an_empty_folder_is_filled(run_of, tmp_path):
    (tmp_path / "out").mkdir()
    export_checkpoint(run_of("stage2").folder, tmp_path / "out")
    assert (tmp_path / "out" / "model.json").exists()


def test_a_run_without_checkpoints_says_so(run_of, tmp_path):
    run = run_of("stage2")
    (run.ray / "checkpoint_manager_snapshot.json").unlink()
    assert list_checkpoints(run.folder).outputs == {"checkpoints": []}
    with pytest.raises(DataError, match="has committed no checkpoint yet"):
        export_checkpoint(run.folder, tmp_path / "out")
    with pytest.raises(DataError, match="has no training"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "out")


def test_a_training_of_another_identity_is_named(run_of, tmp_path):
    run = run_of("stage2")
    other = run.ray.with_name("train-0123456789ab")
    run.ray.rename(other)
    words = r"has committed no checkpoint yet.* trained train-0123456789ab \(step 3\): export that"
    with pytest.raises(DataError, match=words):
        export_checkpoint(run.folder, tmp_path / "out")
    (other / "checkpoint_3" / "train_state.json").unlink()
    with pytest.raises(DataError, match=r"train-0123456789ab \(its last step is not readable\)"):
        export_checkpoint(run.folder, tmp_path / "out")
    (other / "checkpoint_manager_snapshot.json").write_text("{}")
    with pytest.raises(DataError, match=r"train.checkpoint_every steps$"):
        export_checkpoint(run.folder, tmp_path / "out")


# -- pickles --------------------------------------------------------------------------------------


class Trap:
    """What a foreign pickle may do: call anything when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "extra.pt", "no zip"])
def test_a_pickle_that_would_run_code_is_never_read(run_of, tmp_path, file):
    run = run_of("stage2")
    sprung = tmp_path / "sprung"
    state = run.ray / "checkpoint_3" / "state"
    if file == "no zip":
        (state / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(Trap(sprung)))
        words = "mp_rank_00_model_states.pt is no file of DeepSpeed"
    else:
        torch.save({"module": Trap(sprung)}, state / file)
        words = rf"{file} would call .*pathlib.Path.*, which DeepSpeed does not write"
    with pytest.raises(DataError, match=words):
        export_checkpoint(run.folder, tmp_path / "out", live=True)
    assert not sprung.exists()
    assert not (tmp_path / "out").exists()


def test_the_average_is_exported_without_looking_at_a_pickle(run_of, tmp_path, monkeypatch):
    run = run_of("stage2")
    shutil.rmtree(run.ray / "checkpoint_3" / "state")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    export_checkpoint(run.folder, tmp_path / "out")
    with pytest.raises(DataError, match="has no state of DeepSpeed"):
        export_checkpoint(run.folder, tmp_path / "other", live=True)


# -- command line ---------------------------------------------------------------------------------


def test_the_command_prints_one_object(run_of, tmp_path, capsys):
    run = run_of("stage2")
    common = ["export", "--json", f"--output.dir={run.folder}"]
    assert _main([*common, "--list"]) == 0
    listed = json.loads(capsys.readouterr().out)["export"]["outputs"]["checkpoints"]
    assert [each["step"] for each in listed] == [1, 2, 3]
    assert _main([*common, "--out", str(tmp_path / "out"), "--weights", "live"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    outputs = json.loads(line)["export"]["outputs"]
    assert outputs == {
        "model": str(tmp_path / "out"),
        "model_sha256": hash_of_folder(tmp_path / "out"),
    }


def test_a_mistake_is_one_message(run_of, tmp_path, capsys):
    run = ("--output.dir", str(tmp_path))
    for words, code, message in [
        ([*run], 2, "cil export needs --out FOLDER, or --list"),
        ([*run, "--out", "x", "--config", "y"], 2, "takes no --config"),
        ([*run, "--out", "x", "--weights", "both"], 2, "invalid choice: 'both'"),
        ([*run, "--out", str(tmp_path / "x")], 1, "has no training"),
        (["--out", "x"], 2, "--output.dir"),
    ]:
        assert _main(["export", *words]) == code
        shown = capsys.readouterr()
        assert shown.out == ""
        assert message in shown.err


def test_help_says_that_live_weights_are_in_pickles(capsys):
    assert _main(["export", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "which are pickles (torch.load without weights_only), and a pickle can run code" in words
    assert "cil export --output.dir build/demo/run --list" in words
