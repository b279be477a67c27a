import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from cil.errors import ConfigError, DataError
from pipelines.__main__ import _main
from pipelines.batches import BatchReader
from pipelines.dataset import open_training_data
from pipelines.replay import replay_step
from pipelines.train import train_identity
from pipelines.train_step import TrainStep


@pytest.fixture
def record(encoded_run, tmp_path):
    """Write the record of a step that was not finite; returns its path."""
    data = open_training_data(encoded_run.config)
    identity = train_identity(encoded_run.config, data.manifest.fingerprint)
    path = tmp_path / "nonfinite-step-2.json"
    path.write_text(json.dumps({"step": 2, "what": "loss", "identity": identity}))
    return path


def keys(config):
    data = open_training_data(config)
    return BatchReader(data.readers, global_batch_size=4, seed=config.seed).keys(2)


def test_the_clips_have_the_losses_and_gradients_of_the_step(encoded_run, tiny_model, record):
    report = replay_step(encoded_run.config, str(record))
    clips = report.outputs["clips"]
    assert [clip["key"] for clip in clips] == keys(encoded_run.config)
    assert report.outputs["broken"] == []
    data = open_training_data(encoded_run.config)
    batches = BatchReader(data.readers, global_batch_size=4, seed=encoded_run.config.seed)
    network = tiny_model.network

    class Engine:
        device = torch.device("cpu")

        def __call__(self, *arguments, **named):
            return network(*arguments, **named)

    take = TrainStep(encoded_run.config, tiny_model, batches, Engine(), world_size=1)
    whole = take.loss(batches.batch(2), 2)
    assert sum(clip["loss"] for clip in clips) / 4 == pytest.approx(whole.loss.item(), rel=1e-5)
    assert [clip["sigma_cond"] for clip in clips] == pytest.approx(whole.sigma_cond.tolist())
    norms = [clip["grad_norm"] for clip in clips]
    gradient = torch.autograd.grad(whole.loss, list(network.parameters()), allow_unused=True)
    norm = math.sqrt(sum(part.square().sum().item() for part in gradient if part is not None))
    assert 0 < norm <= sum(norms) / 4 * (1 + 1e-5), "the mean is not longer than its parts"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_broken_clip_is_named(encoded_run, record, monkeypatch, capsys, value):
    read = BatchReader.batch

    def batch(self, step):
        found = read(self, step)
        found.mean[1, 0, 0, 0, 0] = value
        return found

    monkeypatch.setattr(BatchReader, "batch", batch)
    config = record.parent / "config.yaml"
    from pipelines.config import config_to_yaml

    config.write_text(config_to_yaml(encoded_run.config))
    assert _main(["train", "--config", str(config), "--replay", str(record), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])["replay"]["outputs"]
    broken = keys(encoded_run.config)[1]
    assert found["broken"] == [broken]
    assert found["clips"][1]["grad_norm"] == "nan"
    (marked,) = [line for line in captured.err.splitlines() if "<- not finite" in line]
    assert f"place 1, {broken}" in marked


def test_the_weights_of_the_step_are_taken(encoded_run, tiny_model, record):
    before = replay_step(encoded_run.config, str(record))
    weights = {name: p.detach() * 2 for name, p in tiny_model.network.named_parameters()}
    save_file(weights, record.with_suffix(".safetensors"))
    after = replay_step(encoded_run.config, str(record))
    assert after.inputs["weights"] == str(record.with_suffix(".safetensors"))
    assert after.outputs["clips"][0]["loss"] != before.outputs["clips"][0]["loss"]


def test_another_run_is_refused(encoded_run, record):
    train = dataclasses.replace(encoded_run.config.train, learning_rate=1e-5)
    other = dataclasses.replace(encoded_run.config, train=train)
    with pytest.raises(ConfigError, match="is of another run"):
        replay_step(other, str(record))
    with pytest.raises(ConfigError, match="does not exist"):
        replay_step(encoded_run.config, str(record.with_name("none.json")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *(("[", "is not JSON"), ("[]", "holds no fields, got list"), ("null", "holds no fields")),
        *(("{IDENTITY}", "it must have a step"), ('{IDENTITY, "step": 2}', "it must have a step")),
        ('{IDENTITY, "step": "2", "what": "loss"}', "got '2' and 'loss'"),
        ('{IDENTITY, "step": -2, "what": "loss"}', "got -2 and 'loss'"),
    ],
)
def test_a_damaged_record_is_named(encoded_run, record, content, words):
    identity = json.loads(record.read_bytes())["identity"]
    record.write_text(content.replace("IDENTITY", f'"identity": "{identity}"'))
    with pytest.raises(DataError, match=rf"nonfinite-step-2\.json .*{words}"):
        replay_step(encoded_run.config, str(record))
