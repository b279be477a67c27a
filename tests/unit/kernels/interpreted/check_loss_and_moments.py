"""The square error with its gradient, and the moments, against float64."""

import pytest
import torch

from cil.moments import LatentMoments
from kernels import loss_torch, loss_triton, moments_torch, moments_triton


def pair(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(shape, generator=generator).to(dtype)
    target = torch.randn(shape, generator=generator).to(dtype)
    return prediction, target, torch.rand(shape[0], generator=generator) + 0.5


def exact(prediction, target, weight, upstream):
    error = prediction.double() - target.double()
    loss = weight.double() * error.square().flatten(1).mean(1)
    factor = 2 * weight.double() * upstream.double() / error[0].numel()
    return loss, error * factor.reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 2, 1, 4, 6), (1, 1, 1, 1, 1), (1, 1, 2, 40, 33)])
def test_loss_and_gradient_are_at_most_twice_as_wrong_as_torchs(shape, dtype):
    prediction, target, weight = pair(shape, dtype)
    upstream = torch.arange(1.0, shape[0] + 1)
    truth = exact(prediction, target, weight, upstream)
    losses, none = loss_triton.square_error(prediction, target, weight, loss=True, grad=False)
    _, slope = loss_triton.square_error(prediction, target, weight, upstream, loss=False, grad=True)
    torchs = loss_torch.square_error(prediction, target, weight, upstream, loss=True, grad=True)
    assert none.numel() == 0
    assert losses.dtype == torch.float32
    assert slope.dtype == dtype
    for ours, theirs, true in zip((losses, slope), torchs, truth, strict=True):
        spacing = 2.0**-23 * true.abs().max()  # torch may be right to the last bit by luck
        error = (ours.double() - true).abs().max()
        assert error <= 2 * (theirs.double() - true).abs().max() + spacing


def test_both_at_once_are_the_same_bits():
    given = pair((2, 2, 2, 8, 8))
    losses, slope = loss_triton.square_error(*given, loss=True, grad=True)
    assert torch.equal(losses, loss_triton.square_error(*given, loss=True, grad=False)[0])
    assert torch.equal(slope, loss_triton.square_error(*given, loss=False, grad=True)[1])


def test_no_bit_of_a_loss_depends_on_layout_strides_or_the_clips_beside_it():
    prediction, target, weight = pair((2, 2, 2, 5, 7))
    base, slope = loss_triton.square_error(prediction, target, weight, loss=True, grad=True)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (prediction, target)]
    wide = torch.zeros(2, 2, 2, 5, 9)[..., :7].copy_(prediction)
    for given in (turned, (wide, target)):
        again = loss_triton.square_error(*given, weight, loss=True, grad=True)
        assert torch.equal(again[0], base)
        assert torch.equal(again[1], slope)
    alone = loss_triton.square_error(
        prediction[1:2], target[1:2], weight[1:2], loss=True, grad=True
    )
    assert torch.equal(alone[0], base[1:2])
    assert torch.equal(alone[1], slope[1:2])


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_the_sum_of_a_block_is_the_tree_of_its_neighbours():
    """In numpy, from the definition; numbers of which another order makes another sum."""
    shape = (1, 1, 1, 32, 32)
    prediction, target, _ = pair(shape, seed=8)
    tree = (prediction - target).square().flatten().numpy()
    while tree.size > 1:
        tree = tree[::2] + tree[1::2]
    got, _ = loss_triton.square_error(prediction, target, torch.ones(1), loss=True, grad=False)
    assert got.numpy() == tree / 1024
    squares = (prediction - target).square().flatten()
    halves = squares.numpy()
    while halves.size > 1:
        halves = halves[: halves.size // 2] + halves[halves.size // 2 :]
    assert halves != tree
    for bad in (torch.nan, torch.inf):
        prediction[0, 0, 0, 9, 9] = bad
        got, _ = loss_triton.square_error(prediction, target, torch.ones(1), loss=True, grad=False)
        assert torch.equal(got.isnan(), torch.tensor([bad]).isnan())
        assert not got.isfinite().any()


def test_a_loss_of_many_runs_adds_all_of_them(monkeypatch):
    """More partial sums than one pass of the second kernel takes."""
    monkeypatch.setattr(loss_triton, "BLOCK", 8)
    shape = (1, 3, 2, 3, 4)
    prediction, target = torch.ones(shape), torch.zeros(shape)
    assert loss_triton.square_error(prediction, target, torch.ones(1), loss=True, grad=False)[
        0
    ].item() == pytest.approx(1.0, abs=1e-6)


def test_an_empty_batch_has_no_loss():
    losses, slope = loss_triton.square_error(*pair((0, 1, 1, 2, 2)), loss=True, grad=True)
    assert (losses.shape, slope.shape) == ((0,), (0, 1, 1, 2, 2))


def fresh(shape):
    zero = torch.zeros(shape, dtype=torch.float64)
    return torch.zeros((), dtype=torch.int64), zero, zero.clone()


@pytest.mark.parametrize("with_std", [False, True])
def test_moments_are_those_of_the_host(with_std):
    shape = (2, 3, 5, 7)
    generator = torch.Generator().manual_seed(5)
    moments, state = LatentMoments(), fresh(shape)
    for clips in (1, 3, 0, 2):
        latents = torch.randn(clips, *shape, generator=generator) * 3 + 1000
        std = torch.rand(clips, *shape, generator=generator) if with_std else None
        moments.update(latents, std)
        state = moments_triton.update_moments(*state, latents, std)
    count, mean, m2 = state
    assert int(count) == moments.count == 6
    assert (mean - moments.mean).abs().max() <= 1e-12 * 1000
    expected = moments.position_variance * 6
    assert ((m2 - expected).abs() / expected).max() <= 1e-12


def test_moments_of_more_clips_than_one_launch_takes(monkeypatch):
    monkeypatch.setattr(moments_triton, "MAX_CLIPS", 2)
    latents = torch.randn(5, 1, 1, 2, 3, generator=torch.Generator().manual_seed(6))
    got = moments_triton.update_moments(*fresh((1, 1, 2, 3)), latents.half(), None)
    expected = moments_torch.update_moments(*fresh((1, 1, 2, 3)), latents.half(), None)
    for ours, twin in zip(got, expected, strict=True):
        assert torch.allclose(ours, twin, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_moments_do_not_hide_what_is_not_finite():
    latents = torch.ones(2, 1, 1, 1, 3)
    latents[0, 0, 0, 0, 0], latents[1, 0, 0, 0, 1] = torch.nan, torch.inf
    _, mean, m2 = moments_triton.update_moments(*fresh((1, 1, 1, 3)), latents, None)
    assert mean.isfinite().flatten().tolist() == [False, False, True]
    assert m2.isfinite().flatten().tolist() == [False, False, True]
