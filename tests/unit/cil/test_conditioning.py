import pytest
import torch

from cil import DataError, corrupt_elements, corrupt_latents
from cil.conditioning import (
    drop,
    keep_mask,
    keep_text_and_image,
    noise_shape,
    replace_by_noise,
)

LATENTS = torch.zeros(2, 3, 4, 5, 6)
SIGMA = torch.tensor([1.0, 2.0])


def noise_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_shared_noise_is_the_same_in_every_frame():
    noise = noise_of((2, 1, 4, 5, 6))
    got = corrupt_latents(LATENTS, SIGMA, noise, "shared")
    for frame in range(3):
        assert torch.equal(got[:, frame], SIGMA[:, None, None, None] * noise[:, 0])
    assert torch.equal(got, corrupt_latents(LATENTS, SIGMA, noise[:, 0], "shared"))


def test_per_frame_noise_differs_between_frames():
    noise = noise_of((2, 3, 4, 5, 6))
    got = corrupt_latents(LATENTS, SIGMA, noise, "per_frame")
    assert torch.equal(got, SIGMA[:, None, None, None, None] * noise)


def test_scalar_noise_shifts_the_whole_clip():
    noise = noise_of((2, 1, 1, 1, 1))
    got = corrupt_latents(LATENTS, SIGMA, noise, "scalar")
    assert torch.equal(got, (SIGMA * noise.flatten()).reshape(2, 1, 1, 1, 1).expand_as(got))


@pytest.mark.parametrize("mode", ["shared", "scalar"])
def test_of_more_noise_than_needed_the_first_is_used(mode):
    full = noise_of((2, 3, 4, 5, 6))
    frames, *rest = noise_shape(mode, (3, 4, 5, 6))
    part = full[(slice(None), slice(frames), *(slice(size) for size in rest))]
    assert torch.equal(
        corrupt_latents(LATENTS, SIGMA, full, mode), corrupt_latents(LATENTS, SIGMA, part, mode)
    )


@pytest.mark.parametrize("mode", ["shared", "per_frame", "scalar"])
def test_noise_shape_is_accepted_and_the_dtype_kept(mode):
    latents = LATENTS.to(torch.bfloat16)
    noise = noise_of((2, *noise_shape(mode, latents.shape[1:])))
    got = corrupt_latents(latents, SIGMA, noise, mode)
    assert got.shape == latents.shape
    assert got.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("latents", "sigma", "noise", "mode"),
    [
        (LATENTS[0], SIGMA, LATENTS, "shared"),
        (LATENTS, SIGMA[:1], LATENTS, "shared"),
        (LATENTS, SIGMA[:, None], LATENTS, "shared"),
        (LATENTS, SIGMA, LATENTS[:, :2], "per_frame"),
        (LATENTS, SIGMA, LATENTS[..., :5], "per_frame"),
        (LATENTS, SIGMA, LATENTS[:1], "scalar"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(latents, sigma, noise, mode):
    with pytest.raises(DataError, match="got"):
        corrupt_latents(latents, sigma, noise, mode)


def test_tokens_get_independent_noise():
    tokens, noise = noise_of((2, 7, 8), 1), noise_of((2, 7, 8), 2)
    got = corrupt_elements(tokens, SIGMA, noise)
    torch.testing.assert_close(got, tokens + SIGMA[:, None, None] * noise)
    with pytest.raises(DataError, match=r"must have the shape \(2, 7, 8\)"):
        corrupt_elements(tokens, SIGMA, noise[:, :1])


def test_dropout_has_its_probability_and_removes_everything():
    uniform = torch.linspace(0.0005, 0.9995, 1000)
    keep = keep_mask(uniform, 0.1)
    assert float(keep.sum()) == 900
    assert bool((keep_mask(uniform, 0.0) == 1).all())
    values = torch.tensor([[float("nan")], [3.0]])
    assert drop(values, torch.tensor([0.0, 1.0])).tolist() == [[0.0], [3.0]]


def test_text_and_image_are_dropped_in_three_cases():
    keep_text, keep_image = keep_text_and_image(torch.tensor([0.02, 0.07, 0.12, 0.6]), 0.05)
    assert keep_text.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert keep_image.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_tokens_are_replaced_below_the_probability():
    tokens, noise = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    got = replace_by_noise(tokens, noise, torch.tensor([0.94, 0.96]))
    assert got.mean((1, 2)).tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="of the tokens"):
        replace_by_noise(tokens, noise[:1], torch.tensor([0.1, 0.2]))
