"""Published checkpoints at full size, without their weights, and the first stage's numbers."""

import gzip
import json
import struct

import pytest
import torch
from safetensors.torch import load_file

from cil.models.checkpoint_files import read_checkpoint
from cil.models.lvdm import LVDMConfig, LVDMUNet, Resampler
from cil.models.lvdm.checkpoint import join_lvdm, split_lvdm
from cil.models.lvdm.schedule_buffers import schedule_buffers
from cil.models.lvdm.vae import vae_from_ldm, vae_to_ldm
from cil.models.strict_loading import load_strict
from cil.noise_schedule import VPSchedule


def described(golden, name):
    return json.loads(gzip.decompress((golden / f"{name}.json.gz").read_bytes()))


def write_sparse(path, shapes):
    """Write float32 zeros of these shapes as safetensors that take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


@pytest.fixture(scope="module")
def vae(golden):
    found = json.loads((golden / "resampler_vae_A.json").read_text())["vae"]
    weights = load_file(golden / "resampler_vae_A.weights.safetensors")
    tensors = load_file(golden / "resampler_vae_A.io.safetensors")
    part = {n.removeprefix("vae."): v for n, v in weights.items() if n.startswith("vae.")}
    return found, part, {n.removeprefix("vae."): v for n, v in tensors.items()}


@torch.no_grad()
def test_first_stage(vae):
    found, part, t = vae
    network = vae_from_ldm(part, source="resampler_vae_A")

    def close(value, wanted):
        torch.testing.assert_close(value, wanted, rtol=0, atol=2e-5)

    posterior = network.encode(t["pixels"]).latent_dist
    close(posterior.mean, t["mean"])
    close(posterior.logvar, t["logvar"])
    close(network.decode(t["mean"]).sample, t["decode_of_mean"])
    close(network.decode(t["z"]).sample, t["decode_of_z"])
    back = vae_to_ldm(network)
    assert sorted(back) == sorted(part)
    for name, value in part.items():
        assert torch.equal(back[name], value.float()), name
    assert sorted(found["key_map"]) == sorted(back)
    assert len(back) == found["diffusers_conversion"]["noprefix"]["n_src"]


def test_schedule_buffers(golden):
    t = load_file(golden / "ddim_A.safetensors")
    made = schedule_buffers(VPSchedule(zero_terminal_snr=True, base_scale=0.7), v_prediction=True)

    def close(found, wanted):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)

    close(made["betas"], t["betas_zsnr"])
    close(made["alphas_cumprod"], t["alphas_cumprod_zsnr"])
    close(made["scale_arr"], t["scale_arr"])
    assert all(bool(value.isfinite().all()) for value in made.values())
    plain = schedule_buffers(VPSchedule(), v_prediction=False)
    assert "scale_arr" not in plain
    close(plain["alphas_cumprod"], t["alphas_cumprod_plain"])
    close(plain["sqrt_recip_alphas_cumprod"], t["alphas_cumprod_plain"].double().rsqrt().float())


@pytest.mark.parametrize("family", ["dynamicrafter", "videocrafter"])
def test_a_whole_checkpoint_at_full_size(golden, vae, tmp_path, family):
    full = described(golden, f"full_{family}_keys")
    shapes = {
        part["checkpoint_prefix"] + name: shape
        for part in full.values()
        for name, shape in part["keys"].items()
    }
    path = tmp_path / "model.safetensors"
    size = write_sparse(path, shapes)
    assert size > 6e9
    vae_from_ldm(vae[1], source="small")  # imports what is imported late, which takes memory too
    before = rss()
    parts = split_lvdm(read_checkpoint(path), source=path)
    with torch.device("meta"):
        networks = {
            "unet": LVDMUNet(LVDMConfig.published(full["unet"]["config"])),
            "image_proj_model": Resampler(**full["image_proj_model"]["config"]),
        }
    load_strict(networks["unet"], parts.unet, source=path)
    load_strict(networks["image_proj_model"], parts.projector, source=path)
    first_stage = vae_from_ldm(parts.first_stage, source=path)
    # nothing was copied and, as nothing was read, nothing was paged in either
    assert rss() - before < 200e6
    for name, network in networks.items():
        assert sum(p.numel() for p in network.parameters()) == full[name]["n_params"]
        assert not any(p.is_meta for p in network.parameters())
    back = vae_to_ldm(first_stage)
    assert {n: list(v.shape) for n, v in back.items()} == full["first_stage_model"]["keys"]
    assert list(back) == list(full["first_stage_model"]["keys"])
    joined = join_lvdm(
        parts.replace(
            unet=networks["unet"].state_dict(),
            projector=networks["image_proj_model"].state_dict(),
            first_stage=back,
        )
    )
    assert {n: list(v.shape) for n, v in joined.items()} == shapes
    assert list(joined) == list(shapes)


def test_svd_at_full_size(golden, tmp_path):
    from diffusers import UNetSpatioTemporalConditionModel

    full = described(golden, "full_svd_unet_keys")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_sparse(path, full["keys"])
    before = rss()
    config = {name: tuple(v) if isinstance(v, list) else v for name, v in full["config"].items()}
    with torch.device("meta"):
        network = UNetSpatioTemporalConditionModel(**config)
    load_strict(network, read_checkpoint(tmp_path), source=tmp_path)
    assert rss() - before < 200e6
    assert [n for n, _ in network.named_parameters()] == list(full["keys"])
    assert sum(p.numel() for p in network.parameters()) == full["n_params"]


def rss():
    """Return the bytes resident in memory, maps of files included."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
