"""DeepSpeed at every stage against a plain PyTorch loop on one process, written here."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cil.losses import denoising_loss, draw_training
from cil.models import ClipConditions
from cil.rng import Stream, normal
from pipelines.data_order import DataOrder
from pipelines.dataset import open_dataset
from pipelines.model_folder import build_model, save_model

WORKER = Path(__file__).with_name("zero_worker.py")
STEPS = 10
TRAIN = {
    "num_steps": STEPS,
    "num_workers": 2,
    "global_batch_size": 4,
    "micro_batch_size": 1,  # two micro-batches per update
    "learning_rate": 1e-4,
    "warmup_steps": 3,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "ema_decay": 0.9,
}


def settings_of(encoded_run, **train):
    changed = dataclasses.replace(encoded_run.config.train, **{**TRAIN, **train})
    return dataclasses.replace(encoded_run.config, train=changed)


def run_workers(encoded_run, folder, cases, *, world_size=2):
    """Run cases on a group of processes; returns the result of each by name."""
    rendezvous = folder / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "config": dataclasses.asdict(encoded_run.config),
        "world_size": world_size,
        "rendezvous": str(rendezvous),
        "output": str(folder),
        "cases": [{**case, "train": {**TRAIN, **case["train"]}} for case in cases],
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    from pipelines.config import child_environment

    environment = child_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "spec.json"), str(rank)],
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=580) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world_size, logs[0].read_text()[-3000:]
    return {
        case["name"]: json.loads((folder / case["name"] / "result.json").read_text())
        for case in cases
    }


@dataclasses.dataclass
class Plain:
    """What a plain loop came to."""

    losses: list
    norms: list
    ema: dict
    weights: dict


def rate_by_hand(step):
    """Three steps of warm-up, then a cosine to a tenth at the last step."""
    if step < 3:
        return 1e-4 * (step + 1) / 3
    return 1e-4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 3) / (STEPS - 1 - 3))))


def train_plainly(config, *, only=None, steps=STEPS, dtype=torch.float32):
    """Train on one process with nothing but PyTorch, the whole batch at once.

    In another type than float32, an optimiser in float32 leads and the network follows.
    """
    reader = open_dataset(config)
    model = build_model(config, reader)
    network, seed = model.network.to(dtype), config.seed
    trained = {n: p for n, p in network.named_parameters() if only is None or n in only}
    leading = trained
    if dtype != torch.float32:
        leading = {name: value.detach().float() for name, value in trained.items()}
    optimiser = torch.optim.AdamW(
        leading.values(), betas=(0.9, 0.99), weight_decay=config.train.weight_decay
    )
    corruption = config.time_noise.build(model.schedule)
    ema = {name: value.detach().clone() for name, value in leading.items()}
    ids, losses, norms = torch.arange(4), [], []
    order = DataOrder({reader.bucket: len(reader)}, global_batch_size=4, seed=seed)
    for step in range(steps):
        clips = [reader.clip(index) for index in order.clips(step).indices]
        mean, std = (torch.stack([getattr(c, n) for c in clips]) for n in ("mean", "std"))
        tokens = torch.stack([clip.image_embeds for clip in clips])
        posterior, first = (
            normal(shape, seed=seed, sample_ids=ids, stream=stream, step=step)
            for shape, stream in (
                (mean.shape[1:], Stream.POSTERIOR),
                (mean[:, :1].shape[1:], Stream.COND_POSTERIOR),
            )
        )
        clean = (mean + std * posterior) * model.first_stage.scaling_factor
        draws = draw_training(
            clean.shape,
            schedule=model.schedule,
            corruption=corruption,
            seed=seed,
            sample_ids=ids,
            step=step,
            token_shape=tokens.shape[1:],
        )
        result = denoising_loss(
            model.network_call(
                ClipConditions(
                    fps=torch.full((4,), config.data.fps),
                    motion_bucket_id=torch.full((4,), 127.0),
                    frame_stride=torch.ones(4),
                )
            ),
            clean,
            (mean[:, :1] + std[:, :1] * first) * model.conditioning_scale,
            schedule=model.schedule,
            parameterization=model.parameterization,
            corruption=corruption,
            draws=draws,
            dropout=0.0,
            tokens=tokens,
        )
        network.zero_grad()
        result.loss.backward()
        for name, value in leading.items():
            value.grad = trained[name].grad.float()
        norms.append(torch.nn.utils.clip_grad_norm_(leading.values(), 0.5).item())
        optimiser.param_groups[0]["lr"] = rate_by_hand(step)
        optimiser.step()
        for name, value in trained.items():
            value.data.copy_(leading[name].detach())
        losses.append(result.loss.item())
        for name, value in leading.items():
            ema[name].lerp_(value.detach(), 0.1)
    weights = {name: value.detach().clone() for name, value in network.named_parameters()}
    return Plain(losses=losses, norms=norms, ema=ema, weights=weights)


@pytest.fixture(scope="module")
def plain(encoded_run):
    return train_plainly(settings_of(encoded_run))


@pytest.fixture(scope="module")
def plain_bf16(encoded_run):
    return train_plainly(settings_of(encoded_run), steps=5, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def temporal_names(tiny_model):
    """Parameters of the layers that mix frames, told from the classes that diffusers gives them."""
    from diffusers.models.attention import TemporalBasicTransformerBlock
    from diffusers.models.resnet import AlphaBlender, TemporalResnetBlock

    kinds = (TemporalBasicTransformerBlock, TemporalResnetBlock, AlphaBlender)
    return {
        f"{path}.{name}"
        for path, module in tiny_model.network.named_modules()
        if isinstance(module, kinds) or path.endswith("time_pos_embed")
        for name, _ in module.named_parameters()
    }


def furthest(found, expected):
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def losses(result):
    return [row["loss"] for row in result["rows"]]


def norms(result):
    return [row["grad_norm"] for row in result["rows"]]


def ema_of(folder, case):
    return load_file(folder / case / "last" / "ema.safetensors")


def distance(found, expected, start):
    """How far two sets of weights are apart, as a share of how far they went from the start."""
    assert sorted(found) == sorted(expected)
    apart = sum((found[name] - value).double().square().sum() for name, value in expected.items())
    went = sum((start[name] - value).double().square().sum() for name, value in expected.items())
    assert went > 0
    return (apart / went).sqrt().item()


QUICK = [
    {"name": "stage2", "train": {"zero_stage": 2}, "resume_after": 4},
    {"name": "temporal", "train": {"zero_stage": 2, "trainable": "temporal"}, "stop_after": 4},
    {
        "name": "lora",
        "train": {"zero_stage": 2, "trainable": "lora", "lora_rank": 4, "lora_alpha": 8.0},
        "stop_after": 4,
        "resume_after": 2,
    },
]


@pytest.fixture(scope="module")
def quick(encoded_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return folder, run_workers(encoded_run, folder, QUICK)


def test_two_workers_train_as_one_loop_does(quick, plain, tiny_model):
    """Also across a checkpoint: the run was resumed after four steps."""
    folder, results = quick
    assert max(plain.norms) > 0.5, "no gradient was clipped"
    assert results["stage2"]["ranks_with_the_same_average"] == 2
    assert max(plain.losses) - min(plain.losses) > 0.01
    assert furthest(losses(results["stage2"]), plain.losses) < 2e-7
    assert furthest(norms(results["stage2"]), plain.norms) < 2e-6
    start = tiny_model.network.state_dict()
    assert distance(ema_of(folder, "stage2"), plain.ema, start) < 2e-3
    assert [row["learning_rate"] for row in results["stage2"]["rows"]] == pytest.approx(
        [rate_by_hand(step) for step in range(STEPS)]
    )


def test_temporal_layers_alone_are_trained(quick, encoded_run, temporal_names, tiny_model):
    folder, results = quick
    config = settings_of(encoded_run)
    expected = train_plainly(config, only=temporal_names, steps=4)
    assert furthest(losses(results["temporal"]), expected.losses) < 2e-7
    ema = ema_of(folder, "temporal")
    assert set(ema) == temporal_names
    before = tiny_model.network.state_dict()
    count = sum(before[name].numel() for name in temporal_names)
    assert count < 0.8 * sum(value.numel() for value in before.values())
    # two moments per trained number, and some padding to divide by the workers
    assert count <= results["temporal"]["master_elements"] < count + 8
    assert 2 * count <= results["temporal"]["optimiser_elements"] < 2 * count + 16


def test_adapters_alone_are_trained(quick, encoded_run):
    """Also across a checkpoint: the run was resumed after two steps."""
    folder, results = quick
    config = settings_of(encoded_run, trainable="lora", lora_rank=4, lora_alpha=8.0)
    start = build_model(config, open_dataset(config)).network.state_dict()
    names = {name for name in start if ".lora_A." in name or ".lora_B." in name}
    expected = train_plainly(config, only=names, steps=4)
    assert max(expected.losses) - min(expected.losses) > 0.01
    assert furthest(losses(results["lora"]), expected.losses) < 2e-7
    ema = ema_of(folder, "lora")
    assert set(ema) == names
    assert distance(ema, {name: expected.ema[name] for name in names}, start) < 2e-3
    # the one token of the image is zero here, so attention over it learns nothing
    moving = {name for name in names if ".attn1." in name}
    assert len(moving) == len(names) / 2
    assert [name for name in moving if ema[name].equal(start[name])] == []
    count = sum(start[name].numel() for name in names)
    assert count < 0.2 * sum(value.numel() for value in start.values())
    assert count <= results["lora"]["master_elements"] < count + 8
    assert 2 * count <= results["lora"]["optimiser_elements"] < 2 * count + 16


def test_what_is_frozen_is_exported_bit_for_bit(
    quick, encoded_run, temporal_names, tiny_model, tmp_path
):
    from diffusers import UNetSpatioTemporalConditionModel

    folder, _ = quick
    config = settings_of(encoded_run, trainable="temporal")
    weights = folder / "temporal" / "last" / "ema.safetensors"
    save_model(config, open_dataset(config), tmp_path / "model", weights=weights)
    files = [path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert set(files) == {".json", ".safetensors"}
    network = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / "model" / "unet")
    before, ema = tiny_model.network.state_dict(), ema_of(folder, "temporal")
    for name, value in network.state_dict().items():
        assert value.equal(ema[name] if name in temporal_names else before[name]), name
    changed = [name for name in temporal_names if not ema[name].equal(before[name])]
    assert len(changed) > 0.9 * len(temporal_names)


# -- every stage ----------------------------------------------------------------------------------

STAGES = (0, 1, 2, 3)


def cases_of(stage):
    return [
        {"name": f"fp32-{stage}", "train": {"zero_stage": stage}, "resume_after": 4},
        {
            "name": f"checkpointing-{stage}",
            "train": {"zero_stage": stage, "gradient_checkpointing": True},
        },
        {
            "name": f"bf16-{stage}",
            "train": {"zero_stage": stage, "precision": "bf16"},
            "stop_after": 5,
            "masters": True,
        },
        {
            "name": f"large-{stage}",
            "train": {"zero_stage": stage},
            "stop_after": 1,
            "masters": True,
            "explode": math.inf,
        },
    ]


@pytest.fixture(scope="module", params=STAGES)
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def every(encoded_run, tmp_path_factory, stage):
    folder = tmp_path_factory.mktemp("every")
    return folder, run_workers(encoded_run, folder, cases_of(stage))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "checkpointing"])
def test_every_stage_trains_as_one_loop_does(every, plain, tiny_model, kind, stage):
    folder, results = every
    result = results[f"{kind}-{stage}"]
    start = tiny_model.network.state_dict()
    apart = distance(ema_of(folder, f"{kind}-{stage}"), plain.ema, start)
    print(furthest(losses(result), plain.losses), furthest(norms(result), plain.norms), apart)
    assert furthest(losses(result), plain.losses) < 2e-7
    assert furthest(norms(result), plain.norms) < 2e-6
    assert apart < 2e-3
    if kind == "fp32":  # resumed: the shards of the average are those that were saved
        assert result["ranks_with_the_same_average"] == 2


@pytest.mark.slow
def test_every_stage_trains_as_one_loop_does_in_bf16(every, plain, plain_bf16, stage):
    _, results = every
    found = losses(results[f"bf16-{stage}"])
    print(furthest(found, plain_bf16.losses), furthest(found, plain.losses[:5]))
    assert furthest(found, plain_bf16.losses) < 5e-4
    assert 0 < furthest(found, plain.losses[:5]) < 3e-3  # bf16 itself is 2e-3 away


@pytest.mark.slow
def test_the_average_is_that_of_the_full_precision_weights_bit_for_bit(every, stage):
    folder, _ = every
    files = [folder / f"bf16-{stage}" / f"masters{step}.safetensors" for step in range(6)]
    average, *later = [load_file(path) for path in files]
    for weights in later:
        for name, value in average.items():
            value.lerp_(weights[name], 1 - TRAIN["ema_decay"])
    exported = ema_of(folder, f"bf16-{stage}")
    assert {value.dtype for value in exported.values()} == {torch.float32}
    assert [n for n, value in exported.items() if not average[n].equal(value.reshape(-1))] == []
    assert any(not value.equal(value.bfloat16().float()) for value in exported.values())


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(every, stage):
    folder, results = every
    result = results[f"large-{stage}"]
    assert re.match("the gradient norm of step 0 is (inf|nan);", result["error"])
    assert result["record"]["what"] == "gradient norm"
    assert len(result["record"]["clips"]) == 4
    before, after = (
        load_file(folder / f"large-{stage}" / f"masters{step}.safetensors") for step in (0, 1)
    )
    assert all(after[name].equal(value) for name, value in before.items())


# -- workers and loss scale -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 4])
def test_losses_do_not_depend_on_the_number_of_workers(encoded_run, tmp_path, plain, world_size):
    case = {"name": "case", "train": {"zero_stage": 2, "num_workers": world_size}, "stop_after": 4}
    result = run_workers(encoded_run, tmp_path, [case], world_size=world_size)["case"]
    print(furthest(losses(result), plain.losses[:4]))
    assert furthest(losses(result), plain.losses[:4]) < 1e-6


@pytest.mark.slow
def test_a_step_that_overflows_in_fp16_is_repeated_at_a_smaller_scale(encoded_run, tmp_path, plain):
    cases = [
        {
            "name": f"{name}-{stage}",
            "train": {"zero_stage": stage, "precision": "fp16", "num_workers": 1},
            "stop_after": 2,
            "masters": True,
            **({"explode": 1000.0} if name == "large" else {}),
        }
        for stage in (2, 3)
        for name in ("fp16", "large")
    ]
    results = run_workers(encoded_run, tmp_path, cases, world_size=1)
    for stage in (2, 3):
        found = losses(results[f"fp16-{stage}"])
        print(furthest(found, plain.losses[:2]), results[f"large-{stage}"]["rows"])
        assert 0 < furthest(found, plain.losses[:2]) < 2e-3
        assert furthest(norms(results[f"fp16-{stage}"]), plain.norms[:2]) < 2e-2
        rows = results[f"large-{stage}"]["rows"]
        assert len(rows) == 2
        assert 1 < rows[0]["loss_scale"] < 65536
        assert rows[0]["loss"] == found[0]  # the same weights, clips and noise at every attempt
        files = [tmp_path / f"large-{stage}" / f"masters{step}.safetensors" for step in (0, 1, 2)]
        first, second, third = [load_file(path)["conv_in.weight"] for path in files]
        assert not first.equal(second)
        assert not second.equal(third)
