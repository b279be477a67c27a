import dataclasses
import json
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train.v2.api.exceptions import WorkerGroupError

from cil.errors import ConfigError, DataError, StageError
from pipelines import train, train_outcome, train_worker
from pipelines.report import RunReport
from pipelines.shard_reader import ShardReader
from pipelines.shards import tar_name
from pipelines.train import train_identity
from pipelines.train_outcome import check_outcome, failed_training
from pipelines.watch import WatchBoard


def change(config, **sections):
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )


@pytest.fixture
def config(encoded_run, small_shards, tmp_path):
    """The configuration of a run with a small data set of its own."""
    small_shards.dataset(tmp_path / "run" / "dataset", shapes=((8, 4, 8, 8),))
    return change(
        encoded_run.config,
        data={"height": 16, "width": 16},
        output={"dir": str(tmp_path / "run")},
    )


def run_without_ray(config):
    with ExitStack() as session:
        return train.run(config, session=session)


# -- identity -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"learning_rate": 1e-3}},
        {"train": {"num_steps": 5}},
        {"train": {"ema_decay": 0.5}},
        {"train": {"precision": "bf16"}},
        {"train": {"trainable": "temporal"}},
        {"train": {"global_batch_size": 8}},
        {"train": {"lr_schedule": "linear"}},
        {"train": {"condition_dropout": 0.1}},
        {"model": {"p_mean": 0.5}},
        {"model": {"motion_bucket_id": 3.0}},
        {"time_noise": {"beta_m": 2.0}},
        {"time_noise": {"preset": "none"}},
    ],
)
def test_what_decides_the_weights_decides_the_identity(encoded_run, sections):
    base = train_identity(encoded_run.config, "f" * 64)
    assert train_identity(change(encoded_run.config, **sections), "f" * 64) != base


def test_seed_and_data_set_decide_the_identity(encoded_run):
    base = train_identity(encoded_run.config, "f" * 64)
    assert train_identity(encoded_run.config, "e" * 64) != base
    assert train_identity(dataclasses.replace(encoded_run.config, seed=1), "f" * 64) != base


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"log_every": 1}},
        {"train": {"checkpoint_every": 1}},
        {"train": {"num_checkpoints_kept": 9}},
        {"train": {"max_failures": 0}},
        {"train": {"num_workers": 1}},
        {"train": {"cpus_per_worker": 2}},
        {"train": {"micro_batch_size": 1}},
        {"train": {"zero_stage": 3}},
        {"train": {"gradient_checkpointing": True}},
        {"train": {"communication_elements": 10}},
        {"train": {"persistent_elements": 10}},
        {"train": {"spike_window": 9, "spike_deviation": 5.0, "spike_pause_steps": 3}},
        {"train": {"stall_warning_s": 5.0}},
        {"time_noise": {"impl": "torch"}},
        {"sample": {"num_steps": 3}},
        {"output": {"dir": "elsewhere"}},
        {"tracking": {"uri": "http://host"}},
        {"cluster": {"num_cpus": 3}},
        {"data": {"videos": "moved"}},
        {"encode": {"num_workers": 9}},
    ],
)
def test_what_does_not_decide_the_weights_keeps_the_identity(encoded_run, sections):
    """A run may be moved, logged more often or resumed with another address."""
    base = train_identity(encoded_run.config, "f" * 64)
    assert train_identity(change(encoded_run.config, **sections), "f" * 64) == base


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"model": {"p_mean": 0.5}}, "model_hash"),
        ({"train": {"trainable": "temporal"}}, "trainable"),
        ({"train": {"zero_stage": 3}}, "zero_stage"),
        ({"train": {"learning_rate": 1.0}}, "config_hash"),
    ],
)
def test_what_differs_is_named_when_a_run_goes_on(config, sections, name):
    """Hashes of all settings would say that something differs, but not what."""
    manifest = train.open_training_data(config).manifest

    def state(config):
        identity = train_identity(config, manifest.fingerprint)
        return train.start_state(config, manifest, identity)

    assert state(config).require_same_run(state(config)) is None
    with pytest.raises(DataError, match=f"another run: {name}"):
        state(change(config, **sections)).require_same_run(state(config))
    other = dataclasses.replace(manifest, identity_hash="x" * 64, fingerprint="y" * 64)
    there = train.start_state(config, other, train_identity(config, "y" * 64))
    with pytest.raises(DataError, match=r"encoder_hash .* is x{64} there and"):
        state(config).require_same_run(there)


# -- before Ray is started ------------------------------------------------------------------------


def test_without_a_data_set_encode_is_named(encoded_run, tmp_path):
    config = change(encoded_run.config, output={"dir": str(tmp_path / "nothing")})
    with pytest.raises(DataError, match="run encode first"):
        run_without_ray(config)
    assert list(tmp_path.iterdir()) == []


def test_more_workers_than_clips_are_refused(config):
    many = change(config, train={"num_workers": 6, "global_batch_size": 6})
    words = "train.num_workers must be <= the number of clips, got 6 workers and 5 clips"
    with pytest.raises(StageError, match=words):
        run_without_ray(many)


@pytest.mark.parametrize(
    ("change_of_data", "words"),
    [
        ({"fps": 4.0}, "data.fps is 4.0, the clips of the data set have 8.0"),
        ({"num_frames": 4}, "settings describe clips of 16x16x4 (height x width x frames), those"),
        ({"height": 64}, "of 64x16x8 (height x width x frames), those of the data set are 16x16x8"),
        ({"width": 64}, "of 16x64x8 (height x width x frames), those of the data set are 16x16x8"),
        ({"buckets": ("8x16x8", "16x16x9")}, "settings describe clips of 8x16x8, 16x16x9 (height"),
    ],
)
def test_a_data_set_of_other_clips_is_refused(config, change_of_data, words):
    """The model would be told the size and rate of the settings, and learn those of the clips."""
    with pytest.raises(ConfigError) as caught:
        run_without_ray(change(config, data=change_of_data))
    assert words in str(caught.value)


def test_several_buckets_are_checked_and_counted(config, small_shards, tmp_path):
    shapes = ((8, 4, 8, 8), (4, 4, 8, 8))
    small_shards.dataset(tmp_path / "run" / "dataset", (3, 2, 1), shapes=shapes)
    several = change(config, data={"buckets": ("16x16x8", "16x16x4")})
    words = r"train.bucket must be one of the data set's buckets \(16x16x4, 16x16x8\), "
    with pytest.raises(ConfigError, match=words + "got 9x9x9"):
        run_without_ray(change(several, train={"bucket": "9x9x9"}))
    with pytest.raises(ConfigError, match=r"clips of 16x16x8 \(.*are 16x16x4, 16x16x8; use the"):
        run_without_ray(change(config, data={"buckets": ("16x16x8",)}))
    # the next check counts the clips of all buckets, or of the one that is named
    seven = {"num_workers": 7, "global_batch_size": 7}
    with pytest.raises(StageError, match="got 7 workers and 6 clips"):
        run_without_ray(change(several, train=seven))
    workers = {"num_workers": 3, "global_batch_size": 3}
    with pytest.raises(StageError, match="got 3 workers and 2 clips"):
        run_without_ray(change(several, train={"bucket": "16x16x4", **workers}))


def test_a_data_set_for_another_model_is_refused_before_anything_starts(encoded_run, tmp_path):
    output = {"dir": str(tmp_path / "run"), "dataset": str(encoded_run.dataset)}
    other = change(encoded_run.config, model={"cross_attention_dim": 64}, output=output)
    with pytest.raises(ConfigError, match=r"data set have the width 32, .*family tiny takes 64"):
        run_without_ray(other)
    assert not (tmp_path / "run" / "train" / "config.yaml").exists()


def test_triton_without_a_gpu_is_refused_before_anything_starts(config):
    with pytest.raises(ConfigError, match=r"time_noise\.impl 'triton' needs a GPU"):
        run_without_ray(change(config, time_noise={"impl": "triton"}))


def test_fewer_clips_per_video_are_no_other_clips(config, tmp_path):
    (tmp_path / "run" / "dataset" / tar_name("shard-000000")).unlink()
    with pytest.raises(DataError, match="is missing; run encode again"):  # the next check
        run_without_ray(change(config, select={"max_clips_per_video": 1}))


def test_a_damaged_shard_is_found_before_anything_is_started(config, tmp_path):
    path = tmp_path / "run" / "dataset" / tar_name("shard-000001")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-000001\.tar is damaged"):
        run_without_ray(config)
    assert not (tmp_path / "run" / "mlflow").exists()
    assert not (tmp_path / "run" / "train" / "mlflow_run.json").exists()


@pytest.mark.parametrize("fault", ["one bit", "missing shard", "another encoder"])
def test_a_fault_of_the_data_set_leaves_the_checkpoint_alone(config, tmp_path, fault):
    """There is a checkpoint of this training; the data set is no longer the one it is of."""
    manifest = train.open_training_data(config).manifest
    identity = train_identity(config, manifest.fingerprint)
    run_folder = tmp_path / "run" / "train" / "ray" / f"train-{identity[:12]}"
    checkpoint = run_folder / "checkpoint_1"
    checkpoint.mkdir(parents=True)
    state = dataclasses.asdict(train.start_state(config, manifest, identity))
    if fault == "another encoder":
        state["encoder_hash"] = "x" * 64
    (checkpoint / "train_state.json").write_text(json.dumps(state))
    latest = {"checkpoint_dir_name": "checkpoint_1"}
    snapshot = run_folder / "checkpoint_manager_snapshot.json"
    listed = {"checkpoint_results": [latest], "checkpoint_report_indices": [0]}
    snapshot.write_text(json.dumps({**listed, "latest_checkpoint_result": latest}))
    before = {path: path.read_bytes() for path in run_folder.rglob("*.json")}
    shard = tmp_path / "run" / "dataset" / tar_name("shard-000001")
    words = "encoder_hash .* is x{64} there and"
    if fault == "one bit":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        words = r"shard-000001\.tar is damaged"
    elif fault == "missing shard":
        shard.unlink()
        words = r"shard-000001\.tar is missing; run encode again"
    with pytest.raises(DataError, match=words):
        run_without_ray(config)
    assert {path: path.read_bytes() for path in run_folder.rglob("*.json")} == before


def test_a_report_of_another_training_is_not_taken_for_this_one(config, tmp_path):
    """It goes on to the check of the shards, which fails here: the report did not stop it."""
    folder = tmp_path / "run" / "train"
    RunReport(
        stage="train",
        reused=False,
        inputs={"identity": "other"},
        outputs={},
        metrics={},
        seconds=1.0,
    ).save(folder / "report.json")
    (tmp_path / "run" / "dataset" / tar_name("shard-000000")).unlink()
    with pytest.raises(DataError, match="is missing; run encode again"):
        run_without_ray(config)
    assert len(ShardReader(tmp_path / "run" / "dataset")) == 5


def test_a_training_that_begins_again_beside_another_says_so(tmp_path, capsys):
    ray = tmp_path / "train" / "ray"
    latest = {"checkpoint_dir_name": "checkpoint_1"}
    listed = {"checkpoint_results": [latest], "checkpoint_report_indices": [0]}
    for name, steps in (("train-old", 600), ("train-new", 2)):
        (ray / name / "checkpoint_1").mkdir(parents=True)
        state = {"format_version": 2, "num_steps": steps}
        (ray / name / "checkpoint_1" / "train_state.json").write_text(json.dumps(state))
    (ray / "train-new" / "checkpoint_1").rename(tmp_path / "new")
    (ray / "train-killed").mkdir()
    snapshot = json.dumps({**listed, "latest_checkpoint_result": latest})
    (ray / "train-old" / "checkpoint_manager_snapshot.json").write_text(snapshot)
    train._say_what_is_not_gone_on_from(ray / "train-new")
    said = " ".join(capsys.readouterr().err.split())
    assert "train: beginning at step 0 as train-new; other settings" in said
    assert "trained train-old (step 600) here, which stays" in said
    train._say_what_is_not_gone_on_from(ray / "train-old")
    (tmp_path / "new").rename(ray / "train-new" / "checkpoint_1")
    (ray / "train-new" / "checkpoint_manager_snapshot.json").write_text(snapshot)
    train._say_what_is_not_gone_on_from(ray / "train-new")
    assert capsys.readouterr().err == ""


OWN = {"identity": "own"}


@pytest.mark.parametrize(
    "content",
    [
        *({}, [], None, 3, "report", {"inputs": {}}, {"inputs": 3}, {"inputs": OWN}),
        {"inputs": OWN, "outputs": []},
        {"inputs": OWN, "outputs": {"mlflow_run_id": "r", "model_sha256": "h"}},
        {"inputs": OWN, "outputs": {"mlflow_run_id": "r", "model_sha256": "h"}, "more": 1},
    ],
    ids=str,
)
def test_a_damaged_report_is_named(config, tmp_path, content):
    manifest = train.open_training_data(config).manifest
    identity = train_identity(config, manifest.fingerprint)
    folder = tmp_path / "run" / "train"
    folder.mkdir()
    text = json.dumps(content).replace('"own"', json.dumps(identity))
    (folder / "report.json").write_text(text)
    words = r"train/report\.json is damaged: .* is missing or of another type; delete it"
    with pytest.raises(DataError, match=words):
        run_without_ray(config)


# -- guards ---------------------------------------------------------------------------------------


@pytest.fixture
def board(monkeypatch):
    """A board that is called as an actor is."""
    board = WatchBoard()

    class Method:
        def __init__(self, method):
            self.remote = method

    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    return SimpleNamespace(stop=Method(board.stop), stopped=Method(board.stopped))


def test_a_gpu_without_memory_is_told_what_helps_and_not_started_again(
    encoded_run, monkeypatch, board
):
    closed = []

    def train_it(settings, resources):
        resources.callback(closed.append, "batches")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(train_worker, "_train", train_it)
    settings = {"config": dataclasses.asdict(encoded_run.config), "watch": board}
    with pytest.raises(StageError, match="too little memory: CUDA out of memory; ") as caught:
        train_worker.train_worker(settings)
    assert str(caught.value).count(" saves about ") == 3
    # of a network so small, the buckets of communication are the most
    assert "by itself: train.communication_elements 50000000 saves about" in str(caught.value)
    assert closed == ["batches"]
    again = train_worker.train_worker(settings)
    assert again == {"failed": {"kind": "StageError", "message": str(caught.value)}}
    assert closed == ["batches"]


def test_damaged_data_is_read_once(monkeypatch, board, tmp_path):
    errors = [DataError("shard-000001.tar is damaged"), DataError("another")]
    calls = []

    def train_it(settings, resources):
        calls.append(1)
        raise errors[len(calls) - 1]

    monkeypatch.setattr(train_worker, "_train", train_it)
    with pytest.raises(DataError, match="shard-000001"):
        train_worker.train_worker({"watch": board})
    failure = {"kind": "DataError", "message": "shard-000001.tar is damaged"}
    assert train_worker.train_worker({"watch": board}) == {"failed": failure}
    assert len(calls) == 1
    with pytest.raises(DataError, match=r"^shard-000001.tar is damaged$"):
        check_outcome({"failed": failure}, tmp_path, "i" * 64)
    with pytest.raises(StageError, match=r"^too little memory$"):
        check_outcome(
            {"failed": {"kind": "StageError", "message": "too little memory"}}, tmp_path, "i" * 64
        )


def test_the_worker_that_says_what_to_do_is_quoted():
    """Where one fails, the others lose their connection to it, and may be told first."""
    lost, damaged = RuntimeError("Connection closed by peer"), DataError("shard-1.tar is damaged")
    failed = failed_training(WorkerGroupError("", {0: lost, 1: damaged}))
    assert (type(failed), str(failed)) == (DataError, "shard-1.tar is damaged")
    failed = failed_training(WorkerGroupError("", {0: lost}))
    assert type(failed) is StageError
    assert str(failed).startswith("training failed on worker 0: RuntimeError: Connection closed")
    failed = failed_training(WorkerGroupError("", {0: ConfigError("too few clips")}))
    assert (type(failed), str(failed)) == (StageError, "too few clips")


def test_a_lost_board_ends_no_training(monkeypatch, board):
    def lose(answer, timeout):
        raise ActorDiedError

    monkeypatch.setattr("ray.get", lose)
    monkeypatch.setattr(train_worker, "_train", lambda settings, resources: {})
    assert train_worker.train_worker({"watch": board}) == {}


@pytest.mark.parametrize("what", ["another error", "a store out of reach"])
def test_other_errors_of_a_worker_are_left_as_they_are(monkeypatch, board, what):
    def train_it(settings, resources):
        if what == "another error":
            raise RuntimeError("something else")
        raise DataError("something else") from OSError("timed out")

    monkeypatch.setattr(train_worker, "_train", train_it)
    for _ in range(2):
        with pytest.raises((RuntimeError, DataError), match="something else"):
            train_worker.train_worker({"watch": board})


def test_a_step_that_is_not_finite_is_written_down_with_its_replay(tmp_path):
    import shlex

    folder = tmp_path / "a run" / "train"
    folder.mkdir(parents=True)
    record = {"step": 12, "what": "loss", "value": "nan", "seed": 3, "clips": ["k1", "k2"]}
    path = train_outcome._write_nonfinite(folder, "i" * 64, record)
    assert path == folder / "nonfinite-step-12.json"
    written = json.loads(path.read_text())
    replay, resume = shlex.split(written.pop("replay")), shlex.split(written.pop("resume"))
    assert written == {**record, "identity": "i" * 64}
    config, output = str(folder / "config.yaml"), str(tmp_path / "a run")
    assert resume == ["cil", "train", "--config", config, "--output.dir", output]
    assert replay == [*resume, "--replay", str(path)]
