import dataclasses
import json

import pytest
import torch

from cil.losses import NetworkInputs
from cil.models import ClipConditions, build
from pipelines import memory_advice
from pipelines.__main__ import _main
from pipelines.activations import MeasuredNetwork, measure_network
from pipelines.config import validate_config
from pipelines.engine import choose_trainable
from pipelines.memory_advice import savings
from pipelines.plan_training import choices, plan_training
from pipelines.settings import TrainConfig
from pipelines.train_memory import NetworkSize, rank_bytes


def tiny():
    return build("tiny", seed=0, num_frames=2, height=32, width=32, downsampling=4)


@pytest.fixture(scope="module")
def measured():
    return measure_network(TrainConfig(), tiny, micro_batch_size=2, choose=choose_trainable)


def saved_bytes(model, clips):
    """Bytes that autograd keeps for the backward pass, by hooks, each storage once."""
    found = {}
    weights = {p.untyped_storage().data_ptr() for p in model.network.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    latents, ones = torch.randn(clips, *model.latents_shape), torch.ones(clips)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.network_call(ClipConditions(fps=ones, motion_bucket_id=ones, frame_stride=ones))(
            NetworkInputs(
                noisy=latents,
                time=ones,
                conditioning_latents=latents.clone(),
                tokens=torch.zeros(clips, 1, model.config.cross_attention_dim),
                sigma_cond=ones,
                keep=ones,
            )
        )
    return sum(size for size, _ in found.values())


def test_activations_are_what_autograd_keeps_and_a_little_in_passing(measured):
    """Measured without values, against a pass with values and torch's own hooks."""
    saved = saved_bytes(tiny(), 2)
    assert saved <= measured.plain < 1.2 * saved
    assert measured.checkpointed < 0.7 * measured.plain
    assert measured.size.total == sum(p.numel() for p in tiny().network.parameters())
    assert measured.activations(4, checkpointing=False) == 2 * measured.plain


def test_a_plan_without_a_data_set_takes_the_settings(tmp_path, capsys):
    settings = [
        *("--output.dir", str(tmp_path / "out"), "--data.height", "64", "--train.num-steps", "30"),
        *("--train.trainable", "temporal", "--gpu-memory-gib", "1", "--stage", "train", "--json"),
    ]
    assert _main(["plan", *settings]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out.splitlines()[-1])["plan"]
    assert not (tmp_path / "out").exists()
    inputs, outputs, metrics = plan["inputs"], plan["outputs"], plan["metrics"]
    assert inputs["buckets"] == ["64x32x8"]
    assert inputs["clips"] is None
    assert outputs["steps"]["epochs"] is None
    assert outputs["steps"]["clips_seen"] == 30 * 8
    assert 0 < metrics["parameters_trained"] < metrics["parameters"]
    assert metrics["checkpoints_bytes"] == 2 * metrics["checkpoint_bytes"]
    assert {row["num_workers"] for row in outputs["memory"]} == {1, 2, 4, 8}
    assert outputs["workers_left_out"] == [16]
    assert {row["zero_stage"] for row in outputs["memory"]} == {0, 1, 2, 3}
    fits = [row["total"] <= 0.9 * 2**30 for row in outputs["memory"]]
    assert [row["fits"] for row in outputs["memory"]] == fits
    assert outputs["fits"]["zero_stage"] == 0
    for words in ("fits into 1 GiB (given", "by ZeRO stage", "does not divide over 16 workers"):
        assert words in captured.err


def test_a_plan_reads_the_data_set_that_is_there(encoded_run):
    plan = plan_training(encoded_run.config, gpu_memory_gib=0.001)
    assert plan.inputs["buckets"] == ["32x32x8"]
    clips = plan.inputs["clips"]
    train = encoded_run.config.train
    epochs = train.num_steps * train.global_batch_size / clips
    assert plan.outputs["steps"]["epochs"] == round(epochs, 2)
    assert plan.outputs["fits"] is None


# -- out of memory --------------------------------------------------------------------------------

LARGE = MeasuredNetwork(
    size=NetworkSize(total=10**9, trained=10**9),
    precision="fp32",
    micro_batch_size=4,
    plain=8 * 10**9,
    checkpointed=10**9,
)


def test_the_settings_that_save_most_come_first():
    train = TrainConfig(
        num_workers=2, use_gpu=True, zero_stage=1, communication_elements=10_000_000
    )
    found = dict(savings(train, LARGE))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    # by hand, in bytes for each of 10^9 numbers: 8 of activations become 4 of an update
    assert found["train.gradient_checkpointing true"] == 4 * 10**9
    assert found["train.micro_batch_size 2"] == 4 * 10**9
    assert found["train.zero_stage 2"] == 2 * 10**9
    # masters, moments and average on the host
    assert found["train.offload_optimizer true"] == (4 + 8 + 4) * 10**9 // 2
    # weights and gradients of half the size, and activations that an update then equals
    bf16 = rank_bytes(
        TrainConfig(
            num_workers=2,
            use_gpu=True,
            zero_stage=1,
            precision="bf16",
            communication_elements=10_000_000,
        ),
        LARGE.size,
        activations=4 * 10**9,
    ).total
    fp32 = rank_bytes(train, LARGE.size, activations=8 * 10**9).total
    assert found["train.precision bf16"] == fp32 - bf16 > 0


def test_what_cannot_be_changed_is_not_advised():
    train = TrainConfig(
        zero_stage=3,
        precision="bf16",
        gradient_checkpointing=True,
        micro_batch_size=1,
        communication_elements=1_000_000,
    )
    assert savings(train, LARGE) == []


def test_a_gpu_without_memory_is_told_three_settings_and_what_they_save(encoded_run, monkeypatch):
    large = dataclasses.replace(LARGE, plain=80 * 10**9, checkpointed=10**9)
    monkeypatch.setattr(memory_advice, "measure_run", lambda config: large)
    text = memory_advice.memory_advice(encoded_run.config)
    assert text.count("saves about") == 3
    assert "train.gradient_checkpointing true saves about " in text


def test_adapters_are_counted(tmp_path):
    raw = {"output": {"dir": str(tmp_path)}, "train": {"trainable": "lora", "lora_rank": 4}}
    config = validate_config(raw, source="the test")
    planned = plan_training(config).metrics["parameters_trained"]
    layers = [
        (layer.in_features, layer.out_features)
        for name, layer in tiny().network.named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    assert planned == sum(4 * (ins + outs) for ins, outs in layers) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_plan_offers_only_what_training_takes(precision):
    raw = {"use_gpu": True, "precision": precision, "global_batch_size": 8}
    offered = list(choices(validate_config({"train": raw}, source="t").train, workers=(1, 2)))
    assert len({(c.num_workers, c.zero_stage, c.offload_optimizer) for c in offered}) == len(
        offered
    )
    assert {c.zero_stage for c in offered} == ({1, 2, 3} if precision == "fp16" else {0, 1, 2, 3})
    for choice in offered:
        given = {**raw, "zero_stage": choice.zero_stage, "num_workers": choice.num_workers}
        validate_config(
            {"train": {**given, "offload_optimizer": choice.offload_optimizer}}, source="t"
        )
