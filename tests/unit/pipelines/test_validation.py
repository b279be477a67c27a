"""Validation of a checkpoint of fresh weights, against computations of its own."""

import dataclasses
import json
import shutil
from functools import partial

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cil.analytic_init import AnalyticInit
from cil.errors import DataError
from cil.generate import generate
from cil.metrics.motion import motion_score
from cil.rng import Stream, normal, uniform
from pipelines.checkpoint_sums import write_sums
from pipelines.config import dataset_of
from pipelines.dataset import open_dataset, open_training_data
from pipelines.held_out import is_held_out
from pipelines.validate_command import run_command
from pipelines.validation import read_history, step_folder, validate
from pipelines.validation_clips import choose_clips, sample_id
from pipelines.validation_leak import TIMES, leak_by_time
from pipelines.validation_loss import binned_level, held_out_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(encoded_run):
    """The encoded run with two of its five videos held out, whichever their hashes choose."""
    videos = sorted(set(open_dataset(encoded_run.config).videos()))
    fractions = [number / 100 for number in range(1, 100)]
    kept = {f: sum(is_held_out(video, f) for video in videos) for f in fractions}
    own = dataclasses.replace(
        encoded_run.config.validate,
        held_out_fraction=next(f for f in fractions if kept[f] == 2),
        num_clips=3,
        num_videos=2,
        num_steps=2,
        num_bins=3,
    )
    return dataclasses.replace(encoded_run.config, validate=own)


@pytest.fixture(scope="module")
def data(config):
    return open_training_data(config)


@pytest.fixture(scope="module")
def clips(data):
    chosen = choose_clips(data, 3)
    assert len(chosen) == 3
    return chosen


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    parameters = dict(tiny_model.network.named_parameters())
    tensors = {name: value.detach().clone() for name, value in parameters.items()}
    save_file(tensors, folder / "ema.safetensors")
    (folder / "train_state.json").write_text(json.dumps({"num_steps": 12}))
    return folder


@pytest.fixture(scope="module")
def validated(config, checkpoint, tmp_path_factory):
    train_folder = tmp_path_factory.mktemp("train")
    record = validate(
        config, checkpoint=checkpoint, identity="i" * 64, folder=step_folder(train_folder, 12)
    )
    return step_folder(train_folder, 12), record


# -- which clips ----------------------------------------------------------------------------------


def test_clips_are_held_out_ones_and_stay_the_same(data, clips):
    kept = [key for reader in data.held_out.values() for key in reader.sample_keys()]
    keys = [clip.stored.record.key for clip in clips]
    assert set(keys) <= set(kept)
    assert [c.stored.record.key for c in choose_clips(data, 2)] == keys[:2]
    assert len(choose_clips(data, 99)) == len(kept)
    assert choose_clips(data, 3, bucket="1x1x1") == []


def test_noise_of_a_clip_is_no_noise_of_training():
    ids = [sample_id(f"{n:032x}") for n in range(0, 2**128, 2**124)]
    assert min(ids) >= 2**31
    assert max(ids) < 2**32 - 1
    assert len(set(ids)) == len(ids)


# -- loss -----------------------------------------------------------------------------------------


def test_bins_are_equally_likely_parts_of_the_training_levels(tiny_model):
    ids = torch.arange(400) + 2**31
    edges = []
    for number in range(5):
        level = binned_level(tiny_model, ids, seed=0, number=number, num_bins=5)
        rank = tiny_model.schedule.rank(level.double())
        assert float(rank.min()) >= number / 5 - 1e-6
        assert float(rank.max()) <= (number + 1) / 5 + 1e-6
        assert bool(level.isfinite().all())
        edges.append(float(rank.mean()))
    # the mean of a uniform number in a bin of width 1/5, to 4 standard errors
    expected = (np.arange(5) + 0.5) / 5
    assert edges == pytest.approx(expected, abs=4 * 0.2 / np.sqrt(12 * 400))


def test_the_last_level_is_finite_however_the_number_is_drawn(tiny_model, monkeypatch):
    from pipelines import validation_loss

    almost_one = torch.tensor([1 - 2**-24])
    monkeypatch.setattr(validation_loss, "uniform", lambda *_, **__: almost_one)
    level = binned_level(tiny_model, torch.tensor([0]), seed=0, number=4, num_bins=5)
    assert bool(level.isfinite().all())


@pytest.mark.parametrize("noised", [True, False])
def test_the_loss_is_that_of_a_plain_computation(config, tiny_model, clips, noised):
    """EDM by its formulas, clip by clip, without the functions of training."""
    tiny_model.network.eval()
    found = held_out_loss(tiny_model, clips, config, device=CPU)
    name = "loss" if noised else "loss_clean"
    scale, losses = tiny_model.first_stage.scaling_factor, []
    law = config.time_noise.build(tiny_model.schedule)
    for number in range(3):
        row = []
        for clip in clips:
            mean, std, ids = clip.stored.mean, clip.stored.std, [clip.sample_id]

            def drawn(shape, stream, ids=ids, number=number):
                return normal(shape, seed=config.seed, sample_ids=ids, stream=stream, step=number)

            u = uniform((), seed=config.seed, sample_ids=ids, stream=Stream.TIME, step=number)
            model = tiny_model.config
            rank = (number + u.double()) / 3
            sigma = torch.exp(model.p_mean + model.p_std * torch.special.ndtri(rank)).float()
            clean = (mean + std * drawn(mean.shape, Stream.POSTERIOR)[0]) * scale
            first = (mean[:1] + std[:1] * drawn(mean[:1].shape, Stream.COND_POSTERIOR)[0]) * scale
            noise = drawn(mean.shape, Stream.VIDEO_NOISE)[0]
            sigma_cond = torch.zeros(1)
            if noised:
                n = drawn((), Stream.SIGMA_COND)
                sigma_cond = law.law.sigma_cond(rank.float(), n)
                first = first + sigma_cond * drawn(mean[:1].shape, Stream.COND_NOISE)[0]
            noisy = clean + sigma * noise
            c_in = 1 / torch.sqrt(1 + sigma**2)
            shown = torch.cat([c_in * noisy, first.expand_as(clean)], dim=1)
            ids = torch.tensor([[8.0, 127.0, float(sigma_cond)]])
            with torch.no_grad():
                output = tiny_model.network(
                    shown[None], sigma.log() / 4, clip.stored.image_embeds[None], ids
                ).sample[0]
            denoised = c_in**2 * noisy - sigma * c_in * output  # SVD's sign of c_out
            weight = (sigma**2 + 1) / sigma**2
            row.append(float(weight * (denoised - clean).square().mean()))
        losses.append(row)
        assert found["by_bin"][number][name] == pytest.approx(np.mean(row), rel=2e-4)
        assert found["by_bin"][number]["n"] == 3
    per_clip = np.mean(losses, axis=0)
    assert found[f"val_{name}"] == pytest.approx(np.mean(per_clip), rel=2e-4)
    error = np.std(per_clip, ddof=1) / np.sqrt(3)
    assert found[f"val_{name}_error"] == pytest.approx(error, rel=5e-3)


def test_the_loss_does_not_depend_on_the_batch_size(config, tiny_model, clips):
    results = []
    for size in (1, 2, 8):
        own = dataclasses.replace(config.validate, batch_size=size)
        changed = dataclasses.replace(config, validate=own)
        results.append(held_out_loss(tiny_model, clips, changed, device=CPU)["val_loss"])
    assert results == pytest.approx([results[0]] * 3, rel=1e-5)


def test_one_clip_has_no_standard_error(config, tiny_model, clips):
    found = held_out_loss(tiny_model, clips[:1], config, device=CPU)
    assert found["val_loss_error"] is None
    assert found["by_bin"][0]["loss_error"] is None


# -- leak -----------------------------------------------------------------------------------------


class Fixed:
    """A model whose prediction is known: the condition, or the clean video of the noisy one."""

    def __init__(self, model, mix):
        self._model, self._mix = model, mix
        for name in ("first_stage", "conditioning_scale", "schedule", "config", "image_tokens"):
            setattr(self, name, getattr(model, name))
        self.told_motion_of_clips = False
        self.sizes = []

    def denoise(self, noisy, sigma, condition):
        self.sizes.append(len(noisy))
        video = noisy / (1 + sigma.reshape(-1, 1, 1, 1, 1))
        return self._mix * video + (1 - self._mix) * condition.conditioning_latents


def test_a_model_that_copies_the_image_transfers_no_motion(config, tiny_model, clips):
    found = leak_by_time(Fixed(tiny_model, 0.0), clips, config, device=CPU)
    assert found["val_motion_transfer"] == pytest.approx(0.0, abs=1e-12)
    assert found["val_condition_dominance"] == 1.0
    assert found["val_one_step_motion"] == pytest.approx(0.0, abs=1e-12)
    assert found["per_clip"] == pytest.approx([0.0] * 3, abs=1e-12)


def test_a_model_that_reads_the_video_transfers_its_motion(config, tiny_model, clips):
    """By its formula x / (1 + sigma), at every time."""
    found = leak_by_time(Fixed(tiny_model, 1.0), clips, config, device=CPU)
    assert [row["time"] for row in found["by_time"]] == list(TIMES)
    for row in found["by_time"]:
        expected = 1 / (1 + row["level"])
        assert row["motion_transfer_ratio"] == pytest.approx(expected, rel=1e-4)
        assert row["condition_dominance"] == 0.0
        assert row["n"] == 3


def test_clips_are_swapped_across_batches(config, tiny_model, clips):
    results = []
    for size in (1, 2, 8):
        own = dataclasses.replace(config.validate, batch_size=size)
        model = Fixed(tiny_model, 0.5)
        changed = dataclasses.replace(config, validate=own)
        results.append(leak_by_time(model, clips, changed, device=CPU))
        assert max(model.sizes) <= size
    assert results[0]["val_condition_dominance"] == pytest.approx(
        results[2]["val_condition_dominance"], rel=1e-6
    )
    assert 0 < results[0]["val_condition_dominance"] < 1


# -- the whole ------------------------------------------------------------------------------------


def test_everything_is_written(validated):
    folder, record = validated
    names = {"metrics.json", "grid.png"}
    names |= {f"video-{n:02d}{suffix}" for n in range(2) for suffix in (".gif", ".mp4")}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "metrics.json").read_text()) == record
    assert record["step"] == 12
    assert record["n"] == {"loss": 3, "leak": 3, "videos": 2}
    assert all(np.isfinite(value) for value in record["metrics"].values())
    bins = [record["metrics"][f"val_loss_bin_{number}"] for number in range(3)]
    assert record["metrics"]["val_loss"] == pytest.approx(np.mean(bins))


def test_videos_show_the_clip_and_the_sample(validated, config, encoded_run, tiny_model, data):
    """The sample is that of our sampler, and motion is measured on what is written."""
    folder, record = validated
    clips = choose_clips(data, 2, bucket=data.largest.bucket)
    moments = AnalyticInit.load(_statistics(encoded_run, tiny_model, folder.parent))
    for number, clip in enumerate(clips):
        (video,) = generate(
            tiny_model,
            clip.image,
            seed=config.seed + number,
            start_time=config.sample.start_time,
            analytic_init=moments,
            num_steps=2,
        )
        row = record["videos"][number]
        assert row["key"] == clip.stored.record.key
        assert row["motion_sample"] == pytest.approx(
            motion_score(np.asarray(video)).consistent, rel=1e-3
        )
        decoded = np.asarray(tiny_model.first_stage.decode(clip.stored.mean))
        assert row["motion_real"] == pytest.approx(motion_score(decoded).consistent, rel=1e-6)
        frames = encoded_run.frames(clip.stored.record).astype(float)
        assert np.abs(decoded - frames).mean() < 0.3 * np.abs(frames - frames.mean()).mean()
        with av.open(str(folder / f"video-{number:02d}.mp4")) as file:
            shown = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
        assert len(shown) == 8
        left = shown[:, -256:, :256].reshape(8, 32, 8, 32, 8, 3).mean((2, 4))
        right = shown[:, -256:, 264:520].reshape(8, 32, 8, 32, 8, 3).mean((2, 4))
        decoded = decoded.astype(float)
        assert np.abs(left - decoded).mean() < 12
        assert np.abs(right - np.asarray(video).astype(float)).mean() < 12
        assert np.abs(right - decoded).mean() > 30
        with Image.open(folder / f"video-{number:02d}.gif") as image:
            assert image.n_frames == 8
            assert image.info["duration"] in (120, 130)


def _statistics(encoded_run, tiny_model, folder):
    from pipelines.shards import load_manifest, moments_of, read_moments

    names = [entry.name for entry in load_manifest(encoded_run.dataset).entries()]
    total = moments_of({name: read_moments(encoded_run.dataset, name) for name in names})
    path = folder / "analytic_init.safetensors"
    scale = tiny_model.first_stage.scaling_factor
    AnalyticInit.from_moments(total, {}).scaled(scale).save(path)
    return path


def test_it_can_be_repeated(validated, config, checkpoint, tmp_path):
    folder, record = validated
    again = validate(config, checkpoint=checkpoint, identity="i" * 64, folder=tmp_path / "again")
    assert {**again, "seconds": 0} == {**record, "seconds": 0}
    for name in ("video-01.gif", "grid.png"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_history_is_that_of_one_training(validated):
    folder, record = validated
    train_folder = folder.parent.parent
    for step, identity in ((2, "i" * 64), (30, "o" * 64)):
        other = step_folder(train_folder, step)
        other.mkdir(exist_ok=True)
        changed = {**record, "step": step, "identity": identity}
        (other / "metrics.json").write_text(json.dumps(changed))
    assert [row["step"] for row in read_history(train_folder, "i" * 64)] == [2, 12]


def test_without_videos_the_rest_is_measured(config, checkpoint, tmp_path, validated):
    own = dataclasses.replace(config.validate, num_videos=0, num_clips=1)
    changed = dataclasses.replace(config, validate=own)
    record = validate(changed, checkpoint=checkpoint, identity="i", folder=tmp_path / "step")
    assert record["n"] == {"loss": 1, "leak": 0, "videos": 0}
    assert record["settings"] != validated[1]["settings"]
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["metrics.json"]
    assert "val_loss_error" not in record["metrics"]


def test_without_held_out_clips_it_is_refused(config, checkpoint, tmp_path):
    own = dataclasses.replace(config.validate, held_out_fraction=0.0)
    changed = dataclasses.replace(config, validate=own)
    with pytest.raises(DataError, match="no held-out clips"):
        validate(changed, checkpoint=checkpoint, identity="i", folder=tmp_path / "step")


def test_weights_of_another_run_are_refused(config, tmp_path):
    save_file({"other": torch.zeros(1)}, tmp_path / "ema.safetensors")
    (tmp_path / "train_state.json").write_text(json.dumps({"num_steps": 1}))
    with pytest.raises(DataError, match="must hold the parameters that are trained"):
        validate(config, checkpoint=tmp_path, identity="i", folder=tmp_path / "step")
    assert not (tmp_path / "step").exists()


@pytest.mark.parametrize("name", ["ema.safetensors", "train_state.json"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_damaged_weights_give_no_numbers(config, checkpoint, tmp_path, name, by_hand):
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    write_sums(damaged, 0)
    content = bytearray((damaged / name).read_bytes())
    content[-2] ^= 1
    (damaged / name).write_bytes(content)
    output = dataclasses.replace(config.output, dir=str(tmp_path), dataset=str(dataset_of(config)))
    own = dataclasses.replace(config, output=output)
    numbers = partial(validate, own, checkpoint=damaged, identity="i" * 64, folder=tmp_path / "to")
    if by_hand:
        numbers = partial(run_command, own, checkpoint=str(damaged))
    with pytest.raises(DataError, match=rf"damaged is damaged: {name} was written with the sha256"):
        numbers()
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
