"""The patch codec: exact moments, honest posterior, crisp pictures, refusals."""

import json

import pytest
import torch

from cil.errors import ConfigError, DataError
from cil.models import FirstStage, FirstStageOptions, load_first_stage
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA


def sprites(num_frames, seed=0, size=32):
    """Anti-aliased orange discs of random place and radius on dark blue: (F, H, W, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    x, y, radius = torch.rand(3, num_frames, 1, 1, generator=generator)
    grid = torch.arange(size).float()
    distance = torch.hypot(
        grid[None, None, :] - size * (0.2 + 0.6 * x), grid[None, :, None] - size * (0.2 + 0.6 * y)
    )
    cover = (size / 8 * (1 + radius) - distance + 0.5).clamp(0, 1)[..., None]
    dark, light = torch.tensor([20.0, 24.0, 44.0]), torch.tensor([240.0, 140.0, 60.0])
    return (dark + cover * (light - dark)).round().to(torch.uint8)


def moments_of(frames, patch_size=4):
    moments = PatchMoments(patch_size=patch_size)
    moments.update(frames)
    return moments


@pytest.fixture(scope="module")
def frames():
    return sprites(200)


@pytest.fixture(scope="module")
def codec(frames):
    return PatchPCA.fit(moments_of(frames), latent_channels=6)


def psnr(a, b):
    return float(-10 * torch.log10((a.double() - b.double()).square().mean() / 255**2))


def test_new_sprites_come_back_crisp(codec):
    frames = sprites(50, seed=1)
    assert isinstance(codec, FirstStage)
    assert psnr(codec.decode(codec.encode(frames).mean), frames) > 31.5


def test_decoding_a_mean_is_the_least_squares_projection(codec):
    frames = sprites(1, seed=5)
    patch = frames[0, 8:12, 16:20].double().flatten()
    basis, mean = codec._tensors["basis"].double(), codec._tensors["mean"].double()
    best = basis @ torch.linalg.lstsq(basis, (patch - mean)[:, None]).solution[:, 0] + mean
    decoded = codec.decode(codec.encode(frames).mean)[0, 8:12, 16:20].double().flatten()
    assert float((decoded - best.clamp(0, 255)).abs().max()) < 0.6


def test_more_channels_reconstruct_better(frames):
    scores = []
    for channels in (1, 3, 6, 12):
        codec = PatchPCA.fit(moments_of(frames), latent_channels=channels)
        scores.append(psnr(codec.decode(codec.encode(frames).mean), frames))
    assert scores == sorted(scores)
    assert scores[-1] - scores[0] > 10


def test_posterior_is_that_of_the_linear_gaussian_model(codec):
    # Check the closed form against conditioning the joint Gaussian of (z, x), by brute force.
    parts = codec._tensors
    basis, mean = parts["basis"].double(), parts["mean"].double() / 127.5
    prior = torch.diag(parts["variances"] - parts["residual"])
    marginal = basis @ prior @ basis.T + parts["residual"] * torch.eye(48, dtype=torch.float64)
    gain = prior @ basis.T @ torch.linalg.inv(marginal)
    frames = sprites(1, seed=3)
    posterior = codec.encode(frames)
    patch = frames[0, 12:16, 8:12].double().flatten() / 127.5
    torch.testing.assert_close(
        posterior.mean[0, :, 3, 2].double(), gain @ (patch - mean), rtol=1e-5, atol=1e-6
    )
    cov = prior - gain @ basis @ prior
    torch.testing.assert_close(
        posterior.std[0, :, 3, 2].double(), cov.diagonal().sqrt(), rtol=1e-5, atol=1e-6
    )


def test_scaled_latents_have_unit_mean_square(codec, frames):
    posterior = codec.encode(frames)
    latents = posterior.sample(
        torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    )
    assert float((latents * codec.scaling_factor).square().mean()) == pytest.approx(1, abs=5e-3)


def test_moments_are_exact_under_any_partition(frames):
    whole = moments_of(frames)
    parts = [moments_of(part) for part in (frames[70:], frames[:3], frames[3:70])]
    merged = PatchMoments(patch_size=4)
    for part in parts:
        merged.merge(part)
    assert merged.count == whole.count == 200 * 64
    assert torch.equal(merged.total, whole.total)
    assert torch.equal(merged.second, whole.second)
    fitted = [PatchPCA.fit(m, latent_channels=6).fingerprint() for m in (whole, merged)]
    assert fitted[0] == fitted[1]


def test_bytes_do_not_depend_on_the_order_of_summation(codec, frames):
    # Permuting the values of a patch permutes every sum; exact sums must not notice.
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    basis, mean = codec._tensors["basis"].double(), codec._tensors["mean"].double()
    patch = frames[:, :4, :4].reshape(200, 48).double() - mean
    assert torch.equal(patch @ basis, patch[:, order] @ basis[order])
    latents = codec.encode(frames).mean
    assert torch.equal(latents[7:9], codec.encode(frames[7:9]).mean)
    assert torch.equal(codec.decode(latents)[7:9], codec.decode(latents[7:9]))


def test_largest_entry_of_each_direction_is_positive(codec):
    basis = codec._tensors["basis"]
    assert bool((basis.max(0).values >= basis.min(0).values.abs()).all())


def test_save_and_load_keep_every_byte(codec, frames, tmp_path):
    codec.save(tmp_path / "a")
    codec.save(tmp_path / "b")
    again = load_first_stage(tmp_path / "a")
    assert again.fingerprint() == codec.fingerprint()
    assert again.scaling_factor == codec.scaling_factor
    assert torch.equal(again.encode(frames).mean, codec.encode(frames).mean)
    for name in ("first_stage.json", "first_stage.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_fingerprint_names_the_codec(codec, frames):
    others = [
        PatchPCA.fit(moments_of(frames), latent_channels=5),
        PatchPCA.fit(moments_of(frames[:150]), latent_channels=6),
        PatchPCA.fit(moments_of(frames, patch_size=8), latent_channels=6),
    ]
    assert len({codec.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_a_damaged_folder_is_refused(codec, tmp_path):
    codec.save(tmp_path)
    path = tmp_path / "first_stage.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is damaged"):
        load_first_stage(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        load_first_stage(tmp_path)
    settings = json.loads((tmp_path / "first_stage.json").read_text())
    (tmp_path / "first_stage.json").write_text(json.dumps({**settings, "kind": "magic"}))
    known = "autoencoder_kl, autoencoder_kl_wan, patch_pca"
    with pytest.raises(DataError, match=f"unknown kind of first stage, 'magic'; known: {known}"):
        load_first_stage(tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 32, 32, 3), "uint8, got torch.float32"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"\(F, H, W, 3\), got \(32, 32, 3\)"),
        (torch.zeros(2, 30, 32, 3, dtype=torch.uint8), "multiples of 4, got 30 x 32"),
        (torch.zeros(0, 32, 32, 3, dtype=torch.uint8), "got \\(0, 32, 32, 3\\)"),
    ],
)
def test_wrong_frames_are_refused(codec, bad, message):
    with pytest.raises(DataError, match=message):
        codec.encode(bad)
    with pytest.raises(DataError, match=message):
        moments_of(bad)


def test_fit_says_what_is_missing(frames):
    with pytest.raises(DataError, match="more than 48 patches are needed, got 16"):
        PatchPCA.fit(moments_of(frames[:1, :16, :16]), latent_channels=6)
    with pytest.raises(DataError, match="vary in 0 directions only, 6 latent_channels"):
        PatchPCA.fit(moments_of(torch.full_like(frames, 9)), latent_channels=6)
    with pytest.raises(ConfigError, match=r"must be in 1..47 .* got 48"):
        PatchPCA.fit(moments_of(frames), latent_channels=48)
    with pytest.raises(DataError, match="patch_size 4 and 8"):
        moments_of(frames).merge(moments_of(frames, patch_size=8))


def test_latents_that_are_not_numbers_are_refused(codec):
    with pytest.raises(DataError, match="must be finite"):
        codec.decode(torch.full((1, 6, 8, 8), float("nan")))
    with pytest.raises(DataError, match="must have C = 6"):
        codec.decode(torch.zeros(1, 4, 8, 8))


def test_options_of_networks_are_refused(codec, tmp_path):
    codec.save(tmp_path)
    load_first_stage(tmp_path, options=FirstStageOptions())
    with pytest.raises(ConfigError, match="kind patch_pca has no options"):
        load_first_stage(tmp_path, options=FirstStageOptions(dtype="bfloat16"))
