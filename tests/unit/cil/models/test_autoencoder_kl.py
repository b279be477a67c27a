"""The autoencoders of diffusers as a first stage, against diffusers called directly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file

from cil.errors import ConfigError, DataError
from cil.models import FirstStage, FirstStageOptions, load_first_stage
from cil.models.autoencoder_kl import AutoencoderKLFirstStage

ROOT = Path(__file__).parents[4]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = {"image": AutoencoderKL, "temporal": AutoencoderKLTemporalDecoder}


def network(kind):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        down = ("DownEncoderBlock2D",) * 4
        if kind == "temporal":
            made = AutoencoderKLTemporalDecoder(
                block_out_channels=(32, 32, 32, 64), down_block_types=down, scaling_factor=0.25
            )
        else:
            made = AutoencoderKL(
                block_out_channels=(8, 16, 16, 16),
                down_block_types=down,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=4,
                latent_channels=6,
            )
        # Fresh weights leave some branches silent: draw all of them again.
        for value in made.parameters():
            value.data += 0.05 * torch.randn(value.shape)
    return made.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for kind in CLASSES:
        found[kind] = tmp_path_factory.mktemp(kind)
        network(kind).save_pretrained(found[kind])
    return found


@pytest.fixture(params=list(CLASSES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (5, 64, 96, 3), dtype=torch.uint8, generator=generator)


def as_input(frames):
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def options(**given):
    return FirstStageOptions(**given)


def test_posterior_is_that_of_diffusers(folders, kind, frames):
    codec = load_first_stage(folders[kind])
    expected = network(kind).encode(as_input(frames)).latent_dist
    posterior = codec.encode(frames)
    assert isinstance(codec, FirstStage)
    assert torch.equal(posterior.mean, expected.mean)
    assert torch.equal(posterior.std, expected.std)
    assert posterior.mean.shape == (5, codec.latent_channels, 8, 12)
    assert not posterior.mean.requires_grad
    assert torch.equal(codec.encode(frames.numpy()).mean, expected.mean)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_start_at_the_first_frame_and_change_rounding_only(folders, kind, frames, size):
    codec = load_first_stage(folders[kind], options=options(frames_per_chunk=size))
    posterior = codec.encode(frames)
    vae = network(kind)
    parts = [vae.encode(as_input(frames[i : i + size])).latent_dist for i in range(0, 5, size)]
    assert torch.equal(posterior.mean, torch.cat([part.mean for part in parts]))
    assert torch.equal(posterior.std, torch.cat([part.std for part in parts]))
    whole = vae.encode(as_input(frames)).latent_dist
    torch.testing.assert_close(posterior.mean, whole.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.std, whole.std, rtol=0, atol=1e-5)


def test_tiles_are_those_of_diffusers(folders, kind, frames):
    codec = load_first_stage(folders[kind], options=options(tile_size=32))
    if kind == "temporal":
        # The class has no tiles, so an image autoencoder is given the same encoder by its weights.
        parts = network(kind).state_dict()
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 64), down_block_types=("DownEncoderBlock2D",) * 4
        )
        report = vae.load_state_dict(
            {k: v for k, v in parts.items() if k.startswith(("encoder.", "quant_conv."))},
            strict=False,
        )
        assert not report.unexpected_keys
        assert all(k.startswith(("decoder.", "post_quant_conv.")) for k in report.missing_keys)
    else:
        vae = network(kind)
    # In training mode torch picks other kernels, which round differently.
    vae.eval().requires_grad_(requires_grad=False)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 4
    expected = vae.encode(as_input(frames)).latent_dist
    posterior = codec.encode(frames)
    assert torch.equal(posterior.mean, expected.mean)
    assert torch.equal(posterior.std, expected.std)
    whole = load_first_stage(folders[kind])
    assert float((posterior.mean - whole.encode(frames).mean).abs().max()) > 0.01
    small = frames[:, :32, :32]
    assert torch.equal(codec.encode(small).mean, whole.encode(small).mean)
    assert codec.fingerprint() == whole.fingerprint()


def to_bytes(pixels):
    return ((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("chunk", "cuts"), [(None, [5]), (2, [2, 2, 1])])
def test_frames_are_those_of_diffusers(folders, kind, frames, chunk, cuts):
    codec = load_first_stage(folders[kind], options=options(decode_frames_per_chunk=chunk))
    latents = codec.encode(frames).mean
    vae = network(kind)
    expected = [
        vae.decode(part, **({"num_frames": len(part)} if kind == "temporal" else {})).sample
        for part in latents.split(cuts)
    ]
    decoded = codec.decode(latents)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == frames.shape
    # Rounding to bytes is done in another order: one step at a tie is allowed.
    difference = decoded.int() - to_bytes(torch.cat(expected)).int()
    assert int(difference.abs().max()) <= 1
    assert float((difference != 0).float().mean()) < 1e-3


def test_the_temporal_decoder_sees_its_chunk_only(folders, frames):
    whole = load_first_stage(folders["temporal"])
    latents = whole.encode(frames).mean
    alone = load_first_stage(folders["temporal"], options=options(decode_frames_per_chunk=1))
    assert not torch.equal(whole.decode(latents), alone.decode(latents))
    assert torch.equal(alone.decode(latents)[1:2], whole.decode(latents[1:2]))


def test_bfloat16_is_near_and_keeps_the_published_weights(folders, kind, frames, tmp_path):
    exact = load_first_stage(folders[kind])
    codec = load_first_stage(folders[kind], options=options(dtype="bfloat16"))
    posterior, expected = codec.encode(frames), exact.encode(frames)
    assert posterior.mean.dtype == torch.float32
    error = float((posterior.mean - expected.mean).abs().max() / expected.mean.abs().max())
    assert 1e-4 < error < 0.05
    codec.save(tmp_path)
    assert load_first_stage(tmp_path).fingerprint() == exact.fingerprint() == codec.fingerprint()


def test_saved_folder_keeps_every_byte_and_diffusers_reads_it(folders, kind, frames, tmp_path):
    codec = load_first_stage(folders[kind])
    codec.save(tmp_path / "a")
    codec.save(tmp_path / "b")
    again = load_first_stage(tmp_path / "a")
    again.save(tmp_path / "c")
    for name in ("first_stage.json", "vae/config.json", f"vae/{WEIGHTS}"):
        parts = [(tmp_path / part / name).read_bytes() for part in "abc"]
        assert parts[0] == parts[1] == parts[2]
    assert again.fingerprint() == codec.fingerprint()
    assert again.scaling_factor == codec.scaling_factor == network(kind).config.scaling_factor
    assert torch.equal(again.encode(frames).mean, codec.encode(frames).mean)
    theirs = CLASSES[kind].from_pretrained(tmp_path / "a" / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        theirs = theirs.encode(as_input(frames)).latent_dist.mean
    assert torch.equal(theirs, codec.encode(frames).mean)


def test_fingerprint_names_weights_and_settings_not_the_place(folders, kind, tmp_path):
    first = load_first_stage(folders[kind]).fingerprint()
    shutil.copytree(folders[kind], tmp_path / "pipeline" / "vae")
    moved = tmp_path / "pipeline" / "vae"
    config = json.loads((moved / "config.json").read_text())
    config |= {"_name_or_path": "elsewhere", "_diffusers_version": "0.24.0"}
    (moved / "config.json").write_text(json.dumps(config))
    assert load_first_stage(tmp_path / "pipeline").fingerprint() == first
    assert AutoencoderKLFirstStage(network(kind)).fingerprint() == first
    (moved / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    scaled = load_first_stage(moved)
    assert scaled.scaling_factor == 0.5
    (moved / "config.json").write_text(json.dumps(config))
    tensors = load_file(moved / WEIGHTS)
    tensors["decoder.conv_out.bias"][1] += 1e-3
    save_file(tensors, moved / WEIGHTS)
    assert len({first, scaled.fingerprint(), load_first_stage(moved).fingerprint()}) == 3


def test_settings_at_their_default_do_not_count_as_lists_or_tuples(tmp_path):
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    vae.save_pretrained(tmp_path)
    assert isinstance(vae.config.down_block_types, tuple)
    assert isinstance(json.loads((tmp_path / "config.json").read_text())["down_block_types"], list)
    codec = load_first_stage(tmp_path)
    assert codec.fingerprint() == AutoencoderKLFirstStage(vae).fingerprint()
    assert codec.downsampling == 1


def test_old_names_of_attention_weights_are_read(folders, frames, tmp_path):
    shutil.copytree(folders["image"], tmp_path / "old")
    renamed = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = {}
    for name, value in load_file(tmp_path / "old" / WEIGHTS).items():
        for new, old in renamed.items():
            name = name.replace(new, old)  # noqa: PLW2901
        tensors[name] = value
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, tmp_path / "old" / WEIGHTS)
    old, new = load_first_stage(tmp_path / "old"), load_first_stage(folders["image"])
    assert old.fingerprint() == new.fingerprint()
    assert torch.equal(old.encode(frames).mean, new.encode(frames).mean)


def test_the_published_size_has_the_published_numbers():
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=768,
        )
    codec = AutoencoderKLFirstStage(vae.to_empty(device="cpu"), options=options(tile_size=512))
    assert (codec.downsampling, codec.latent_channels) == (8, 4)
    assert codec.scaling_factor == 0.18215
    assert sum(value.numel() for value in vae.parameters()) == 97_742_847


PRINT_DIGESTS = """
import hashlib, sys, torch
from cil.models import load_first_stage

def digests(folders):
    frames = torch.arange(9 * 64 * 64 * 3).remainder(251).to(torch.uint8).reshape(9, 64, 64, 3)
    for folder in folders:
        codec = load_first_stage(folder)
        for _ in range(2):
            posterior = codec.encode(frames)
            data = posterior.mean.numpy().tobytes() + posterior.std.numpy().tobytes()
            yield hashlib.sha256(data).hexdigest()
"""
IN_A_CHILD = "torch.set_num_threads(1)\nprint(*digests(sys.argv[1:]))"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_bytes_are_the_same_in_every_process(folders):
    here = {}
    exec(PRINT_DIGESTS, here)
    given = [str(folder) for folder in folders.values()]
    expected = list(here["digests"](given))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRINT_DIGESTS + IN_A_CHILD, *given],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected
    assert [expected[0], expected[2]] == [expected[1], expected[3]]
    assert len(set(expected)) == 2


def copy_of(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_pickled_weights_are_refused_unread(folders, tmp_path):
    folder = copy_of(folders["image"], tmp_path)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled weights only .*save_pretrained"):
        load_first_stage(folder)


def test_half_precision_copies_are_not_taken_for_the_weights(folders, tmp_path):
    folder = copy_of(folders["image"], tmp_path)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(DataError, match=r"fp16.safetensors but not .*renamed"):
        load_first_stage(folder)


def test_missing_parts_are_named(folders, tmp_path):
    with pytest.raises(DataError, match="no diffusers folder either"):
        load_first_stage(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither config.json nor vae/config.json"):
        AutoencoderKLFirstStage.from_diffusers(tmp_path)
    folder = copy_of(folders["image"], tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(DataError, match=f"holds no {WEIGHTS}"):
        load_first_stage(folder)


def without(tensors):
    tensors.pop("encoder.conv_in.bias")


def with_another(tensors):
    tensors["encoder.extra.weight"] = torch.zeros(2)


def with_another_shape(tensors):
    tensors["encoder.conv_in.weight"] = torch.zeros(9, 3, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "'missing': .*encoder.conv_in.bias"),
        (with_another, "'unexpected': .*encoder.extra.weight"),
        (with_another_shape, "encoder.conv_in.weight"),
    ],
)
def test_weights_of_another_network_are_refused(folders, kind, tmp_path, change, message):
    folder = copy_of(folders[kind], tmp_path)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(DataError, match=message):
        load_first_stage(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "holds a 'AutoencoderTiny'; .* reads AutoencoderKL"),
        ({"magic": 3}, "does not know: magic"),
        ({"quantization_config": {"quant_method": "x"}}, "does not know: quantization_config"),
        ({"shift_factor": 0.1}, "sets shift_factor"),
        ({"block_out_channels": "abc"}, "cannot load"),
    ],
)
def test_other_settings_are_refused(folders, tmp_path, change, message):
    folder = copy_of(folders["image"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=message):
        load_first_stage(folder)


def test_damaged_folders_are_refused(folders, tmp_path):
    load_first_stage(folders["image"]).save(tmp_path)
    path = tmp_path / "vae" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is damaged"):
        load_first_stage(tmp_path)
    path.write_bytes(bytes(data[:1000]))
    with pytest.raises(DataError, match="cannot load"):
        load_first_stage(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of bfloat16, float32, got 'float16'"),
        ({"frames_per_chunk": 0}, "frames_per_chunk must be >= 1, got 0"),
        ({"decode_frames_per_chunk": -1}, "decode_frames_per_chunk must be >= 1, got -1"),
        ({"tile_size": 40}, "multiple of 32 pixels.* got 40"),
        ({"device": "teapot"}, "cannot use the device 'teapot'"),
        ({"device": "meta"}, "cannot use the device 'meta'"),
    ],
)
def test_wrong_options_are_refused(folders, given, message):
    with pytest.raises(ConfigError, match=message):
        load_first_stage(folders["image"], options=options(**given))


def test_wrong_frames_and_latents_are_refused(folders):
    codec = load_first_stage(folders["image"])
    with pytest.raises(DataError, match="multiples of 8, got 60 x 64"):
        codec.encode(np.zeros((2, 60, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"uint8, got torch\.float32"):
        codec.encode(torch.zeros(2, 64, 64, 3))
    with pytest.raises(DataError, match="must have C = 6"):
        codec.decode(torch.zeros(2, 4, 8, 8))
    with pytest.raises(DataError, match="latents must be finite"):
        codec.decode(torch.full((1, 6, 8, 8), float("nan")))


def test_latents_that_are_not_finite_stop_the_run(folders, frames, tmp_path):
    folder = copy_of(folders["image"], tmp_path)
    tensors = load_file(folder / WEIGHTS)
    tensors["quant_conv.bias"][0] = float("inf")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(DataError, match="latents that are not finite, in float32"):
        load_first_stage(folder).encode(frames)
    tensors["decoder.conv_out.bias"][0] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(DataError, match="pixels that are not finite"):
        load_first_stage(folder).decode(torch.zeros(1, 6, 8, 8))


@pytest.mark.gpu
def test_a_gpu_computes_float32_without_tf32_and_repeats_itself(folders, kind, frames):
    codec = load_first_stage(folders[kind], options=options(device="cuda"))
    expected = load_first_stage(folders[kind])
    first = codec.encode(frames)
    assert first.mean.device.type == "cpu"
    assert torch.equal(first.mean, codec.encode(frames).mean)
    torch.testing.assert_close(first.mean, expected.encode(frames).mean, rtol=0, atol=5e-5)
    assert codec.fingerprint() == expected.fingerprint()
    assert int((codec.decode(first.mean).int() - expected.decode(first.mean).int()).abs().max()) < 2
