"""The kernels on a GPU, against their twin in torch on the CPU and against float64.

`make test-gpu`; needs torch, triton, numpy and pytest.
"""

import math

import pytest
import torch
from torch.library import opcheck

from cil import rng
from cil.moments import LatentMoments
from kernels import fused, input_torch, input_triton, loss_torch
from kernels.fused import LogitNormal
from kernels.launch import Tuning

pytestmark = pytest.mark.gpu

HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
NVIDIA = torch.version.hip is None


def case(shape, device, *, cond_frames=1, dtype=torch.float32, seed=0):
    batch, _, *rest = shape
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=generator)

    given = {
        "clean": randn(*shape).to(dtype),
        "cond": randn(batch, cond_frames, *rest).to(dtype),
        "scales": randn(batch, 5),
        "level": torch.rand(batch, generator=generator),
        "key": torch.tensor([2**40 + 17, 5]),
        "sample_ids": torch.arange(batch) * 1000003 + 7,
    }
    return {name: value.to(device) for name, value in given.items()}


SETTINGS = {
    "noise": "shared",
    "logit": None,
    "dropout": 0.0,
    "dtype": torch.float32,
    "target_dtype": torch.float32,
    "channels_first": False,
}


# -- noise -----------------------------------------------------------------------------------------


def two_streams(device, *, approx):
    shape = (3, 2, 2, 64, 128)
    given = case(shape, device)
    given["scales"] = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]], device=device).repeat(3, 1)
    given["level"] = torch.ones(3, device=device)
    tuning = Tuning(block=1024, frames=2, lanes=8, num_warps=4, approx=approx)
    settings = {**SETTINGS, "noise": "per_frame", "target_dtype": None}
    made = input_triton.training_input(*given.values(), **settings, tuning=tuning)[0].cpu()
    return given, made[:, :, :2], made[:, :, 2:]


@pytest.mark.parametrize("approx", [False, True])
def test_noise_is_that_of_the_host_and_good(approx, device, statistics):
    if approx and not NVIDIA:
        pytest.skip("the approximations are PTX")
    given, video, cond = two_streams(device, approx=approx)
    for noise, stream in ((video, 0), (cond, 1)):
        host = rng.normal(
            noise.shape[1:],
            seed=2**40 + 17,
            sample_ids=given["sample_ids"].cpu(),
            stream=stream,
            step=5,
        )
        assert (noise - host).abs().max().item() < 1e-5
    statistics.assert_good_noise(video, cond)


# -- the training input ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("noise", ["none", "shared", "per_frame", "scalar"])
@pytest.mark.parametrize(
    "video",
    [
        ((2, 16, 4, 40, 64), 1),
        ((2, 25, 4, 72, 128), 1),
        ((2, 3, 4, 5, 7), 3),
        ((3, 1, 1, 1, 1), 1),
        ((1, 25, 3, 9, 11), 1),
        ((0, 3, 2, 4, 4), 1),
    ],
)
def test_kernel_and_twin_agree_in_both_layouts(video, noise, dtype, device):
    shape, cond_frames = video
    given = case(shape, device, cond_frames=cond_frames, dtype=dtype)
    settings = {"law": LogitNormal(beta_m=5.0), "noise": noise, "dropout": 0.4}
    made = fused.training_input(**given, **settings)
    twin = fused.training_input(**{n: value.cpu() for n, value in given.items()}, **settings)
    # normal numbers are within 1e-5, and are multiplied by sigma_cond up to 5 and scales up to 4
    noise_error = 2e-5 if dtype == torch.float32 else 2e-4
    for ours, theirs in zip(made, twin, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        tolerance = noise_error + 2.0 * HALF_ULP[ours.dtype] * theirs.double().abs()
        assert ((ours.cpu().double() - theirs.double()).abs() <= tolerance).all()
    assert torch.equal(made.keep.cpu(), twin.keep)
    turned = {**given, **{n: given[n].transpose(1, 2).contiguous() for n in ("clean", "cond")}}
    other = fused.training_input(**turned, **settings, layout="bcfhw")
    assert torch.equal(other.network_input.transpose(1, 2), made.network_input)
    assert torch.equal(other.target.transpose(1, 2), made.target)


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_no_bit_depends_on_how_the_work_is_split(noise, dtype, device):
    given = case((4, 16, 4, 40, 64), device, dtype=dtype)
    settings = {
        **SETTINGS,
        "noise": noise,
        "logit": (5.0, 1.0),
        "dropout": 0.3,
        "dtype": dtype,
        "target_dtype": dtype,
    }
    base = input_triton.training_input(*given.values(), **settings)
    approx = NVIDIA and dtype != torch.float32
    for lanes in (8, 4, 1):
        for block, frames, num_warps in ((1024, 1, 4), (512, 3, 4), (256, 16, 1), (2048, 4, 8)):
            tuning = Tuning(
                block=block, frames=frames, lanes=lanes, num_warps=num_warps, approx=approx
            )
            other = input_triton.training_input(*given.values(), **settings, tuning=tuning)
            assert all(map(torch.equal, base, other)), tuning
    for rank in range(4):
        part = {
            name: value if name == "key" else value[rank : rank + 1]
            for name, value in given.items()
        }
        got = input_triton.training_input(*part.values(), **settings)
        assert all(torch.equal(a[rank : rank + 1], b) for a, b in zip(base, got, strict=True))
    wide = torch.full((4, 16, 4, 81, 129), torch.nan, device=device, dtype=dtype)
    wide[..., 1::2, 1::2] = given["clean"]
    views = {
        **given,
        "clean": wide[..., 1::2, 1::2],
        "cond": given["cond"].expand(-1, 16, *[-1] * 3),
    }
    assert all(map(torch.equal, base, input_triton.training_input(*views.values(), **settings)))


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_the_error_is_at_most_twice_that_of_torch(noise, dtype, device):
    given = case((2, 16, 4, 40, 64), device, dtype=dtype)

    def formulas(arithmetic):
        s = [c.to(arithmetic).reshape(-1, 1, 1, 1, 1) for c in given["scales"].unbind(1)]
        x, z = given["clean"].to(arithmetic), given["cond"].to(arithmetic)

        def normal(size, stream):
            words = rng.bits(
                math.prod(size), seed=2**40 + 17, sample_ids=given["sample_ids"], stream=stream,
                step=5,
            )  # fmt: skip
            u = ((words >> 9).to(arithmetic) + 0.5) * 2.0**-23
            radius, angle = torch.sqrt(-2 * torch.log(u[:, ::2])), 2 * torch.pi * u[:, 1::2]
            pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
            return pairs.reshape(-1, *size)

        shape = tuple(x.shape[1:])
        eps = normal(shape, 0)
        size = shape if noise == "per_frame" else (1, *shape[1:])
        shown = s[4] * z + given["level"].to(arithmetic).reshape(-1, 1, 1, 1, 1) * normal(size, 1)
        return (
            torch.cat([s[0] * x + s[1] * eps, shown.expand_as(x)], dim=2),
            s[2] * x + s[3] * eps,
        )

    made = fused.training_input(**given, noise=noise)
    for ours, theirs, truth in zip(
        made[:2], formulas(torch.float32), formulas(torch.float64), strict=True
    ):
        error = (ours.double() - truth).abs()
        torchs = (theirs.to(dtype).double() - truth).abs()
        assert 0 < error.max() <= 2 * torchs.max()
        assert error.square().mean() <= 2 * torchs.square().mean()


def test_more_than_two_to_the_31_elements(device):
    """Five clips of 2**28 latents make 2.7e9 elements of output, 5.4 GB; the last is compared."""
    clip = (1, 16, 4, 2048, 2048)
    given = case((5, 1, 1, 1, 1), device, dtype=torch.float16)
    given["clean"] = torch.linspace(-2, 2, 2048, device=device).half().expand(5, *clip[1:])
    given["cond"] = given["clean"][:, :1]
    whole = fused.training_input(**given, with_target=False).network_input
    assert whole.numel() > 2**31
    last = {name: value if name == "key" else value[4:] for name, value in given.items()}
    alone = fused.training_input(**last, with_target=False).network_input
    assert torch.equal(whole[4:], alone)
    assert not torch.equal(whole[3:4, :1], alone[:, :1])


def test_tokens_agree_with_their_twin(device):
    for shape, dtype in (((4, 257, 1280), torch.bfloat16), ((3, 7, 11), torch.float32)):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        numbers = {
            "key": fused.make_key(-3, 7),
            "sample_ids": torch.arange(shape[0]),
            "sigma_cond": torch.linspace(0.1, 5, shape[0]),
            "keep": (torch.arange(shape[0]) != 1).float(),
        }
        twin = fused.corrupt(values, **numbers)
        moved = {name: value.to(device) for name, value in numbers.items()}
        ours = fused.corrupt(values.to(device), **moved).cpu()
        tolerance = 1e-4 + 2.0 * HALF_ULP[dtype] * twin.double().abs()
        assert ((ours.double() - twin.double()).abs() <= tolerance).all()
        assert (ours[1] == 0).all()


# -- operators, compiler, graphs ------------------------------------------------------------------


def step_function(noise="shared"):
    def step(clean, cond, **numbers):
        made = fused.training_input(
            clean,
            cond,
            **numbers,
            law=LogitNormal(beta_m=5.0),
            noise=noise,
            dropout=0.3,
        )
        prediction = made.network_input[:, :, : clean.shape[2]]
        return *made, fused.square_error(prediction, made.target)

    return step


def test_opcheck(device):
    given = case((2, 3, 2, 8, 8), device)
    given["clean"].requires_grad_()
    order = ("clean", "cond", "scales", "level", "key", "sample_ids")
    rest = ("shared", 5.0, 1.0, 0.3, torch.float32, torch.bfloat16, True)
    ops = torch.ops.cil_kernels
    opcheck(ops.training_input.default, (*(given[name] for name in order), *rest))
    clean, level = given["clean"].detach(), given["level"]
    prediction = clean.clone().requires_grad_()
    opcheck(ops.square_error.default, (prediction, clean * 0.5, level))
    opcheck(ops.square_error_and_grad.default, (clean, clean * 0.5, level))
    tokens = torch.randn(2, 5, 6, device=device, requires_grad=True)
    numbers = (level, torch.ones_like(level), given["key"], given["sample_ids"], 7)
    opcheck(ops.corrupt.default, (tokens, *numbers))
    m = fused.no_moments((3, 2, 8, 8), device)
    opcheck(ops.update_moments.default, (m.count, m.mean, m.m2, clean, None))


def test_compiled_and_eager_agree(device):
    given = case((2, 16, 4, 40, 64), device, dtype=torch.bfloat16)
    step = step_function()
    compiled = torch.compile(step, fullgraph=True)
    for number in (1, 2):
        given["key"] = fused.make_key(3, number, device)
        for ours, eager in zip(compiled(**given), step(**given), strict=True):
            assert torch.equal(ours, eager)


def test_nothing_waits_for_the_device(device):
    given = case((2, 16, 4, 40, 64), device, dtype=torch.bfloat16)
    step = step_function()
    step(**given)
    moments = fused.no_moments(given["clean"].shape[1:], device)
    fused.update_moments(moments, given["clean"])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(**given)
        fused.update_moments(moments, given["clean"])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_graph_gives_fresh_noise_on_every_replay(device):
    given = case((2, 16, 4, 40, 64), device, dtype=torch.bfloat16)
    given["key"] = fused.make_key(11, 0, device)
    step = step_function("per_frame")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(**given)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step(**given)
        given["key"][1].add_(1)
    seen = []
    for number in range(3):
        graph.replay()
        torch.cuda.synchronize()
        seen.append([part.clone() for part in made])
        eager = step(**{**given, "key": fused.make_key(11, number, device)})
        assert all(map(torch.equal, seen[-1], eager)), number
    assert not torch.equal(seen[0][0], seen[1][0])
    assert given["key"].tolist() == [11, 3]


def test_the_input_is_one_launch_without_temporaries(device):
    given = case((4, 16, 4, 40, 64), device, dtype=torch.bfloat16)
    fused.training_input(**given)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        made = fused.training_input(**given)
        torch.cuda.synchronize()
    kernels = [
        event
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
    ]
    assert [event.name for event in kernels] == ["training_input_kernel"]
    outputs = sum(part.numel() * part.element_size() for part in made)
    assert torch.cuda.max_memory_allocated() - before <= outputs + 4 * 512


# -- loss and moments -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("shape", [(2, 16, 4, 40, 64), (3, 3, 2, 5, 7), (1, 1, 1, 1, 1)])
def test_loss_and_gradient(shape, dtype, device):
    generator = torch.Generator().manual_seed(4)
    prediction = torch.randn(shape, generator=generator).to(device, dtype)
    target = torch.randn(shape, generator=generator).to(device, dtype)
    weight = torch.rand(shape[0], generator=generator).to(device) + 0.5
    leaf = prediction.clone().requires_grad_()
    losses = fused.square_error(leaf, target, weight)
    upstream = torch.arange(1.0, shape[0] + 1, device=device)
    (slope,) = torch.autograd.grad(losses, leaf, upstream)
    error = prediction.double() - target.double()
    truth = weight.double() * error.square().flatten(1).mean(1)
    factor = 2 * weight.double() * upstream.double() / error[0].numel()
    torchs = loss_torch.square_error(prediction, target, weight, upstream, loss=True, grad=True)
    exact = (truth, error * factor.reshape(-1, 1, 1, 1, 1))
    for ours, theirs, true in zip((losses, slope), torchs, exact, strict=True):
        spacing = 2.0**-23 * true.abs().max()  # torch may be right to the last bit by luck
        assert (ours.double() - true).abs().max() <= (
            2 * (theirs.double() - true).abs().max() + spacing
        )
    plain = (prediction, target, weight)
    both = fused.square_error_and_grad(*plain)
    for _ in range(5):
        again = fused.square_error_and_grad(*plain)
        assert all(map(torch.equal, both, again))
    assert torch.equal(both[0], losses)
    turned = [x.transpose(1, 2).contiguous() for x in plain[:2]]
    other = fused.square_error_and_grad(*turned, weight, layout="bcfhw")
    assert torch.equal(other[0], both[0])
    assert torch.equal(other[1].transpose(1, 2), both[1])
    alone = fused.square_error_and_grad(*(part[-1:] for part in plain))
    assert torch.equal(alone[0], both[0][-1:])


@pytest.mark.parametrize("dtype", HALF_ULP)
@pytest.mark.parametrize("shape", [(2, 16, 4, 40, 64), (3, 3, 2, 5, 7)])
def test_no_bit_of_a_loss_depends_on_strides_or_alignment(shape, dtype, device):
    """Loads of 128 bits, of one element and of every fourth give other layouts in registers."""
    generator = torch.Generator().manual_seed(9)
    prediction, target = (
        torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2)
    )
    weight = torch.rand(shape[0], generator=generator).to(device) + 0.5
    base = fused.square_error_and_grad(prediction, target, weight)

    def channels_last(x):
        return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)

    def offset_by_one(x):
        return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)

    def holes(x):
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    for change in (channels_last, offset_by_one, holes):
        for given in (
            (change(prediction), target),
            (prediction, change(target)),
            (change(prediction), change(target)),
        ):
            again = fused.square_error_and_grad(*given, weight)
            assert all(map(torch.equal, again, base)), change.__name__
            assert torch.equal(fused.square_error(*given, weight), base[0]), change.__name__


@pytest.mark.parametrize("with_std", [False, True])
def test_moments_are_those_of_the_host(with_std, device):
    shape = (4, 4, 20, 33)
    generator = torch.Generator().manual_seed(5)
    host, moments = LatentMoments(), fused.no_moments(shape, device)
    for clips in (1, 7, 0, 70, 3):
        latents = torch.randn(clips, *shape, generator=generator) * 3 + 100
        std = torch.rand(clips, *shape, generator=generator) if with_std else None
        host.update(latents, std)
        moved = None if std is None else std.to(device)
        moments = fused.update_moments(moments, latents.to(device), moved)
    assert int(moments.count) == host.count == 81
    assert (moments.mean.cpu() - host.mean).abs().max() <= 1e-12 * 100
    expected = host.position_variance * 81
    assert ((moments.m2.cpu() - expected).abs() / expected).max() <= 1e-12


def test_the_twin_is_what_a_cpu_runs():
    given = case((1, 1, 1, 2, 2), "cpu")
    got = fused.training_input(**given)
    twin = input_torch.training_input(*given.values(), **SETTINGS)
    assert all(map(torch.equal, got, twin))
