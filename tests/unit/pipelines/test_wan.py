"""wan from videos to a trained step, a model folder and a video: clips of fewer latent frames."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

import cil.models
from cil.analytic_init import AnalyticInit
from cil.corruption import Corruption
from cil.errors import ConfigError
from cil.generate import generate
from cil.losses import denoising_loss, draw_training
from cil.models.condition_encoders import ImageEncoder, TextEncoder
from pipelines import fused_input, stages
from pipelines.batches import BatchReader
from pipelines.check_conditions import check_conditions
from pipelines.clip_inputs import draw_batch
from pipelines.config import validate_config
from pipelines.dataset import open_dataset, open_training_data
from pipelines.engine import choose_trainable
from pipelines.first_batch import grid_of, step_inputs
from pipelines.leak_probe import ClipProbe
from pipelines.model_folder import build_model, write_model
from pipelines.plan import _clip_bytes
from pipelines.pretrained_parts import model_identity, with_pretrained_parts
from pipelines.shard_reader import ShardReader
from pipelines.shards import load_manifest, moments_of, read_moments
from pipelines.train_step import TrainStep
from pipelines.validation_clips import ClipPlace, drawn_latents, held_out_clip
from pipelines.verify import verify

LATENTS = (3, 4, 8, 8)


def settings(folder, videos, output):
    return {
        "data": {"videos": str(videos), "num_frames": 9, "fps": 8, "height": 32, "width": 32},
        "model": {"family": "wan", "pretrained": str(folder)},
        "time_noise": {"preset": "mild", "noise": "per_frame"},
        "train": {
            "global_batch_size": 2,
            "num_steps": 2,
            "warmup_steps": 0,
            "condition_dropout": 0.3,
        },
        "validate": {"held_out_fraction": 0},
        "output": {"dir": str(output)},
    }


@pytest.fixture(scope="module")
def root(toy_wan, noise, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan_run")
    (folder / "videos").mkdir()
    for seed in range(2):
        noise(folder / "videos" / f"{seed}.mp4", seed)
    return folder


@pytest.fixture(scope="module")
def run(toy_wan, run_encode, root):
    """A data set of two videos, encoded by the parts of a toy model."""
    raw = settings(toy_wan, root / "videos", root / "run")
    config = with_pretrained_parts(validate_config(raw, source="the tests"))
    run_encode(config)
    return config


@pytest.fixture(scope="module")
def reader(run):
    return open_dataset(run)


@pytest.fixture(scope="module")
def model(run, reader):
    """The model that training begins with; tests must not train it."""
    return build_model(run, reader)


@pytest.fixture(scope="module")
def batch(run, reader):
    batches = BatchReader({reader.bucket: reader}, global_batch_size=2, seed=run.seed)
    return batches.batch(0)


def test_the_data_set_holds_what_the_family_needs(run, reader, root, by_hand, toy_wan):
    codec = cil.models.load_first_stage(toy_wan)
    vision = ImageEncoder.from_folder(toy_wan, tokens="hidden", layer="penultimate", crop="clip")
    text = TextEncoder.from_folder(toy_wan, max_length=512)
    assert reader.latents_shape == LATENTS
    for index in range(len(reader)):
        clip = reader.clip(index)
        frames = by_hand(root / "videos" / clip.record.path)[clip.record.frames]
        assert len(frames) == 9
        posterior = codec.encode(frames)
        shown = codec.encode_conditioning(frames[0], 9)
        for name, exact in (
            ("mean", posterior.mean),
            ("std", posterior.std),
            ("conditioning_latents", shown),
        ):
            assert torch.equal(getattr(clip, name), exact.bfloat16().float()), name
        assert torch.equal(clip.image_embeds, vision.encode(frames[0]))
        assert torch.equal(clip.text_embeds, text.encode(clip.record.caption).tokens)
    assert verify(run.output.dir + "/dataset", root / "cache").outputs["faults"] == []
    check_conditions(run, open_training_data(run))


def test_the_plan_counts_latent_frames_and_the_conditioning_latents(run, reader):
    other = replace(run, data=replace(run.data, num_frames=5))
    values = 4 * 8 * 8
    one, two = (_clip_bytes(c, f"32x32x{c.data.num_frames}") for c in (run, other))
    assert one - two == 3 * 2 * values, "mean, std and condition of one latent frame, bfloat16"


def test_a_data_set_without_conditioning_latents_is_refused(run, monkeypatch):
    clip = ShardReader.clip
    monkeypatch.setattr(
        ShardReader, "clip", lambda *a: replace(clip(*a), conditioning_latents=None)
    )
    with pytest.raises(ConfigError, match=r"no conditioning latents.*encode the videos again"):
        check_conditions(run, open_training_data(run))


def test_training_is_conditioned_on_what_is_stored(run, model, batch):
    drawn = draw_batch(run, model, batch, sample_ids=torch.arange(2), step=0)
    assert torch.equal(drawn.conditioning, batch.conditioning_latents)
    assert drawn.clean.shape == (2, *LATENTS)
    assert drawn.frame.shape == (2, 1, *LATENTS[1:])
    part = batch.part(1, 2)
    assert torch.equal(part.conditioning_latents, batch.conditioning_latents[1:])


def test_time_noise_hides_every_frame_of_the_condition(run, model, batch):
    seen = step_inputs(run, model, batch, step=0)
    noise = seen.inputs.conditioning_latents - batch.conditioning_latents
    spread = seen.inputs.sigma_cond
    for row in range(2):
        for frame in range(3):
            assert float(noise[row, frame].std() / spread[row]) == pytest.approx(1, abs=0.2)
        assert not torch.allclose(noise[row, 0], noise[row, 1], atol=float(spread[row]) / 10)


def test_the_fused_input_is_the_same(run, model, batch):
    """The kernels' twin on the CPU, for a condition of as many frames as the clip."""
    corruption = run.time_noise.build(model.schedule)
    assert isinstance(corruption, Corruption)
    drawn = draw_batch(run, model, batch, sample_ids=torch.arange(2), step=0)
    losses, inputs = [], []
    for fused in (False, True):
        draws = draw_training(
            LATENTS,
            schedule=model.schedule,
            corruption=corruption,
            seed=1,
            sample_ids=range(2),
            step=3,
            with_noise=not fused,
        )

        def network(given):
            inputs.append(given)
            return given.noisy * 0.5

        chosen = {
            "build_input": fused_input.build_input,
            "square_error": fused_input.square_error,
        }
        result = denoising_loss(
            network,
            drawn.clean,
            drawn.conditioning,
            schedule=model.schedule,
            parameterization=model.parameterization,
            corruption=corruption,
            draws=draws,
            tokens=drawn.tokens,
            **(chosen if fused else {}),
        )
        losses.append(result.per_sample)
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(inputs[1].noisy, inputs[0].noisy)
    torch.testing.assert_close(inputs[1].conditioning_latents, inputs[0].conditioning_latents)


class Engine:
    """What ``TrainStep.loss`` uses of an engine."""

    device = torch.device("cpu")

    def __init__(self, network):
        self.network = network

    def __call__(self, *given, **named):
        return self.network(*given, **named)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_step_gives_gradients_to_what_is_trained(run, reader, batch, trainable):
    config = replace(run, train=replace(run.train, trainable=trainable, lora_rank=2))
    model = build_model(config, reader)
    names = choose_trainable(config.train, model)
    batches = BatchReader({reader.bucket: reader}, global_batch_size=2, seed=run.seed)
    step = TrainStep(config, model, batches, Engine(model.network), world_size=1)
    result = step.loss(batch, 0)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    found = {n for n, p in model.network.named_parameters() if p.grad is not None}
    assert found == names
    if trainable == "lora":
        assert any("add_v_proj.lora_A" in name for name in names)
        assert all("lora_" in name for name in names)


def test_layers_of_time_alone_cannot_be_trained(run, model):
    train = replace(run.train, trainable="temporal")
    with pytest.raises(ConfigError, match=r"train\.trainable 'temporal'; use 'lora'"):
        choose_trainable(train, model)


def test_a_trained_model_folder_samples(run, reader, tmp_path):
    model = build_model(run, reader)
    names = choose_trainable(run.train, model)
    weights = {n: v + 0.01 for n, v in model.network.state_dict().items() if n in names}
    write_model(model, tmp_path / "model", weights)
    found = cil.models.load("wan", tmp_path / "model")
    for name, value in weights.items():
        assert torch.equal(found.network.state_dict()[name], value), name
    dataset = run.output.dir + "/dataset"
    shards = [entry.name for entry in load_manifest(dataset).entries()]
    total = moments_of({name: read_moments(dataset, name) for name in shards})
    statistics = AnalyticInit.from_moments(total, {}).scaled(found.first_stage.scaling_factor)
    assert tuple(statistics.mean.shape) == LATENTS
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    frames = generate(found, image, seed=1, start_time=0.94, analytic_init=statistics, num_steps=2)
    assert frames.shape == (1, 9, 32, 32, 3)
    assert float(frames.float().std()) > 1


def test_the_leak_probe_and_the_picture_take_such_clips(run, reader, model, batch):
    clips = [
        held_out_clip(ClipPlace(key=reader.key(index), reader=reader, index=index))
        for index in range(2)
    ]
    drawn = drawn_latents(clips, model, run, step=None, device=torch.device("cpu"))
    stored = torch.stack([clip.stored.conditioning_latents for clip in clips])
    assert torch.equal(drawn.conditioning, stored)
    model.network.eval()
    probe = ClipProbe(model, drawn, seed=0, batch_size=2).at(0.7, step=0)
    for item in dataclasses.fields(probe):
        value = getattr(probe, item.name)
        if isinstance(value, torch.Tensor):
            assert bool(value.isfinite().all()), item.name
    rows = grid_of(run, model, batch)
    assert len(rows) == 2
    assert all(picture.shape == (32, 32, 3) for row in rows for _, picture in row)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time_noise": {"noise": None}}, "noise must be per_frame for wan, got shared"),
        ({"time_noise": {"noise": "scalar"}}, "noise must be per_frame for wan, got scalar"),
        ({"condition": {"text_length": 77}}, "text_length must be 512 for wan"),
        ({"train": {"conditioning_frame": "random"}}, "conditioning_frame must be first for wan"),
        ({"model": {"p_mean": 1.0}}, "p_mean is not a setting of the family wan"),
        ({"model": {"pretrained": None}}, "wan needs model.pretrained"),
    ],
)
def test_settings_that_do_not_fit_the_family(change, said, tmp_path):
    raw = settings(tmp_path, tmp_path, tmp_path)
    merged = {name: {**raw.get(name, {}), **values} for name, values in change.items()}
    with pytest.raises(ConfigError, match=said):
        validate_config({**raw, **merged}, source="the tests")


@pytest.mark.parametrize("noise", [{"preset": "none"}, {"preset": "mild", "target": "tokens"}])
def test_noise_elsewhere_needs_no_mode(noise, tmp_path):
    raw = {**settings(tmp_path, tmp_path, tmp_path), "time_noise": noise}
    validate_config(raw, source="the tests")


def test_clips_of_another_length_are_refused_before_anything_starts(toy_wan, root, tmp_path):
    raw = settings(toy_wan, root / "videos", tmp_path / "run")
    raw["data"]["num_frames"] = 8
    config = with_pretrained_parts(validate_config(raw, source="the tests"))
    with pytest.raises(ConfigError, match=r"data\.num_frames.*4 k \+ 1 frames.*got 8; use 5 or 9"):
        stages.check_before_start("encode", config)


def test_a_folder_of_another_kind_is_refused(toy_i2vgenxl, tmp_path):
    raw = settings(toy_i2vgenxl, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="must be a folder with transformer/"):
        with_pretrained_parts(validate_config(raw, source="the tests"))


def test_the_shift_is_part_of_what_training_begins_with(toy_wan, tmp_path):
    def identity(**model):
        raw = settings(toy_wan, tmp_path, tmp_path)
        raw["model"] |= model
        return model_identity(validate_config(raw, source="the tests"))

    assert identity() == identity()
    assert identity()["pretrained"].count("-") == 1, "network and scheduler"
    assert identity(flow_shift=5.0) != identity()
