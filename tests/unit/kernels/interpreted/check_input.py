"""The fused training input and the corruption of tokens against their twin and float64."""

import faulthandler
import mmap
import multiprocessing

import pytest
import torch

from cil import rng
from kernels import input_torch, input_triton, loss_triton
from kernels.launch import Tuning

HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
"""Half a unit in the last place of 1."""


def case(shape, *, seed=0, cond_frames=1, dtype=torch.float32):
    batch, _, *rest = shape
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=generator)

    return {
        "clean": randn(*shape).to(dtype),
        "cond": randn(batch, cond_frames, *rest).to(dtype),
        "scales": randn(batch, 5),
        "level": torch.rand(batch, generator=generator),
        "key": torch.tensor([2**40 + 17, 5]),
        "sample_ids": torch.arange(batch) * 1000003 + 7,
    }


SETTINGS = {
    "noise": "shared",
    "logit": None,
    "dropout": 0.0,
    "dtype": torch.float32,
    "target_dtype": torch.float32,
    "channels_first": False,
}


def assert_same(got, expected, dtype=torch.float32):
    """Equal but for rounding; float32 intermediate results differ by a few units."""
    for ours, twin in zip(got, expected, strict=True):
        assert ours.dtype == twin.dtype
        assert ours.shape == twin.shape
        assert ours.stride() == twin.stride()
        tolerance = 4e-6 + 2.0 * HALF[ours.dtype] * twin.double().abs() * (
            ours.dtype != torch.float32
        )
        assert ((ours.double() - twin.double()).abs() <= tolerance).all()


@pytest.mark.parametrize(
    ("shape", "cond_frames", "settings"),
    [
        ((2, 3, 2, 8, 8), 1, {"noise": "shared", "logit": (5.0, 1.0), "dropout": 0.5}),
        ((2, 3, 1, 8, 8), 3, {"noise": "shared"}),
        ((1, 3, 2, 8, 8), 1, {"noise": "per_frame", "dtype": torch.bfloat16}),
        ((2, 2, 1, 4, 6), 1, {"noise": "scalar", "logit": (15.0, 0.5), "channels_first": True}),
        ((1, 2, 3, 5, 7), 2, {"noise": "per_frame", "target_dtype": torch.float16}),
        ((2, 1, 2, 3, 3), 1, {"channels_first": True, "dtype": torch.float16}),
        ((2, 1, 1, 1, 1), 1, {"logit": (2.0, 1.0)}),
        ((1, 25, 1, 2, 4), 1, {"noise": "none", "target_dtype": None}),
        ((0, 3, 2, 4, 4), 1, {}),
    ],
)
def test_kernel_and_twin_agree(shape, cond_frames, settings):
    dtype = settings.get("dtype", torch.float32)
    given = case(shape, cond_frames=cond_frames, dtype=dtype)
    chosen = {**SETTINGS, **settings}
    got = input_triton.training_input(*given.values(), **chosen)
    assert_same(got, input_torch.training_input(*given.values(), **chosen))
    if shape[0]:
        assert got[0].abs().sum() > 0


def test_twin_and_kernel_draw_what_the_host_draws():
    """sigma_cond and keep of 16 clips: the noise of cil.rng, to rounding; keep exactly."""
    given = case((16, 1, 1, 1, 1))
    given["level"] = torch.linspace(-2, 2, 16)
    chosen = {**SETTINGS, "logit": (5.0, 1.5), "dropout": 0.4}
    ids, seed, step = given["sample_ids"], 2**40 + 17, 5
    _, _, sigma_cond, keep = input_triton.training_input(*given.values(), **chosen)
    normal = rng.normal((), seed=seed, sample_ids=ids, stream=rng.Stream.SIGMA_COND, step=step)
    uniform = rng.uniform((), seed=seed, sample_ids=ids, stream=rng.Stream.DROPOUT, step=step)
    expected = 5.0 * torch.sigmoid(given["level"] + 1.5 * normal)
    assert (sigma_cond - expected).abs().max().item() < 5e-6
    assert torch.equal(keep, (uniform >= 0.4).float())
    assert 0 < keep.sum() < 16


TUNINGS = [
    Tuning(block=256, frames=4, lanes=8, num_warps=4, approx=False),
    Tuning(block=64, frames=1, lanes=8, num_warps=4, approx=False),
    Tuning(block=128, frames=2, lanes=4, num_warps=1, approx=False),
    Tuning(block=32, frames=3, lanes=1, num_warps=2, approx=False),
]


@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_no_bit_depends_on_block_chunk_or_lanes(noise):
    given = case((1, 3, 1, 8, 10))
    chosen = {**SETTINGS, "noise": noise, "logit": (5.0, 1.0)}
    base = input_triton.training_input(*given.values(), **chosen, tuning=TUNINGS[0])
    for tuning in TUNINGS[1:]:
        other = input_triton.training_input(*given.values(), **chosen, tuning=tuning)
        assert all(map(torch.equal, base, other)), tuning


def test_no_bit_depends_on_layout_or_split():
    given = case((2, 2, 2, 4, 4))
    chosen = {**SETTINGS, "noise": "per_frame", "logit": (5.0, 1.0), "dropout": 0.3}
    base = input_triton.training_input(*given.values(), **chosen)
    first = {**chosen, "channels_first": True}
    given["clean"] = given["clean"].transpose(1, 2).contiguous().transpose(1, 2)
    given["cond"] = given["cond"].expand(-1, 2, -1, -1, -1).contiguous()
    assert all(map(torch.equal, base, input_triton.training_input(*given.values(), **first)))
    for rank in range(2):
        part = {
            name: value if name == "key" else value[rank : rank + 1]
            for name, value in given.items()
        }
        got = input_triton.training_input(*part.values(), **chosen)
        assert all(torch.equal(a[rank : rank + 1], b) for a, b in zip(base, got, strict=True))


def test_any_strides_are_read():
    given = case((2, 2, 2, 4, 8))
    base = input_triton.training_input(*given.values(), **SETTINGS)
    wide = torch.full((2, 2, 2, 9, 17), torch.nan)
    wide[..., 1:9:2, 1::2] = given["clean"]
    turned = given["cond"].permute(4, 3, 0, 2, 1).contiguous().permute(2, 4, 3, 1, 0)
    views = {**given, "clean": wide[..., 1:9:2, 1::2], "cond": turned}
    assert not views["clean"].is_contiguous()
    got = input_triton.training_input(*views.values(), **SETTINGS)
    assert all(map(torch.equal, base, got))


def test_a_dropped_condition_is_zero_even_if_it_is_not_finite():
    given = case((2, 1, 1, 4, 4))
    given["cond"].fill_(torch.nan)
    network_input, _, _, keep = input_triton.training_input(
        *given.values(), **{**SETTINGS, "dropout": 1.0}
    )
    assert keep.tolist() == [0.0, 0.0]
    assert (network_input[:, :, 1] == 0).all()
    assert network_input[:, :, 0].isfinite().all()


def float64_reference(given, noise):
    """The formulas in float64, from the same words."""
    ids, seed, step = given["sample_ids"], 2**40 + 17, 5
    shape = given["clean"].shape[1:]

    def normal(size, stream):
        count = size.numel()
        words = rng.bits(count + count % 2, seed=seed, sample_ids=ids, stream=stream, step=step)
        u = ((words.double() // 512) + 0.5) * 2.0**-23
        radius = torch.sqrt(-2 * torch.log(u[:, ::2]))
        angle = 2 * torch.pi * u[:, 1::2]
        pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
        return pairs.flatten(1)[:, :count].reshape(-1, *size)

    return formulas(given, normal, shape, noise, torch.float64)


def formulas(given, normal, shape, noise, dtype):
    s = [column.to(dtype).reshape(-1, 1, 1, 1, 1) for column in given["scales"].unbind(1)]
    x, level = given["clean"].to(dtype), given["level"].to(dtype).reshape(-1, 1, 1, 1, 1)
    size = {"shared": torch.Size((1, *shape[1:])), "per_frame": shape}[noise]
    eps = normal(shape, 0)
    shown = s[4] * given["cond"].to(dtype) + level * normal(size, 1)
    return torch.cat([s[0] * x + s[1] * eps, shown.expand_as(x)], dim=2), s[2] * x + s[3] * eps


def plain_torch(given, noise):
    """The same in the float32 of torch: what someone writes who does not count his roundings."""
    ids, seed, step = given["sample_ids"], 2**40 + 17, 5

    def normal(size, stream):
        u = rng.bits(size.numel(), seed=seed, sample_ids=ids, stream=stream, step=step)
        u = ((u >> 9).float() + 0.5) * 2.0**-23
        radius = torch.sqrt(-2 * torch.log(u[:, ::2]))
        angle = 2 * torch.pi * u[:, 1::2]
        pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
        return pairs.flatten(1).reshape(-1, *size)

    return formulas(given, normal, given["clean"].shape[1:], noise, torch.float32)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_the_error_is_at_most_twice_that_of_torch(dtype, noise):
    given = case((1, 2, 2, 64, 64), dtype=dtype)
    tuning = Tuning(block=4096, frames=2, lanes=8, num_warps=4, approx=False)
    exact = float64_reference(given, noise)
    chosen = {**SETTINGS, "noise": noise, "dtype": dtype, "target_dtype": dtype}
    got = input_triton.training_input(*given.values(), **chosen, tuning=tuning)
    for ours, theirs, truth in zip(got[:2], plain_torch(given, noise), exact, strict=True):
        error = (ours.double() - truth).abs()
        torchs = (theirs.to(dtype).double() - truth).abs()
        assert 0 < error.max() <= 2 * torchs.max()
        assert error.square().mean() <= 2 * torchs.square().mean()


@pytest.mark.parametrize(
    ("shape", "dtype", "columns"),
    [
        ((2, 3, 50), torch.float32, 50),
        ((2, 7, 11), torch.bfloat16, 11),
        ((1, 1, 1), torch.float16, 1),
        ((2, 5, 6), torch.float32, 9),
        ((0, 5, 6), torch.float32, 6),
    ],
)
def test_tokens_are_corrupted_as_by_the_twin(shape, dtype, columns):
    batch, length, width = shape
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(batch, length, columns, generator=generator).to(dtype)
    values = wide[..., :width]
    numbers = (torch.rand(batch) + 0.5, torch.arange(batch).float(), torch.tensor([-1, 3]))
    ids = torch.arange(batch) + 40
    got = input_triton.corrupt(values, *numbers, ids, 7)
    expected = input_torch.corrupt(values, *numbers, ids, 7)
    assert_same([got], [expected])
    if batch > 1:
        assert (got[0] == 0).all()  # keep is 0
        assert (got[1] != values[1]).any()


def test_tokens_do_not_depend_on_the_block():
    values = torch.randn(1, 3, 33, generator=torch.Generator().manual_seed(4))
    given = (values, torch.ones(1), torch.ones(1), torch.tensor([1, 2]), torch.tensor([3]), 7)
    base = input_triton.corrupt(*given)
    for tuning in TUNINGS:
        assert torch.equal(base, input_triton.corrupt(*given, tuning=tuning))


def far_and_near():
    """Return clips 2**30 elements apart, so that the last two begin past 2**31, and a near copy.

    Memory is only reserved; few pages are touched. The stride itself fits in int32: a larger one
    would be passed as int64 and hide a missing cast.
    """
    no_reserve = 0x4000  # MAP_NORESERVE of Linux, which Python 3.11 does not name
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * (3 * 2**30 + 2**12), flags=flags)
    everything = torch.frombuffer(memory, dtype=torch.float16)
    far = everything.as_strided((4, 1, 1, 8, 8), (2**30, 64, 64, 8, 1))
    near = torch.arange(256.0).reshape(4, 1, 1, 8, 8).half()
    far.copy_(near)
    return far, near


def read_far_video(module):
    far, near = far_and_near()
    rows = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]]).repeat(4, 1)
    numbers = (rows, torch.zeros(4), torch.tensor([1, 2]), torch.arange(4))
    settings = {**SETTINGS, "noise": "none", "target_dtype": torch.float16}
    made = module.training_input(far, far, *numbers, **settings)
    assert torch.equal(made[1], near)
    assert torch.equal(made[0][:, :, 1:], near.float())


def read_far_tokens(module):
    far, near = far_and_near()
    numbers = (torch.zeros(4), torch.ones(4), torch.tensor([1, 2]), torch.arange(4))
    assert torch.equal(module.corrupt(far[:, 0, 0], *numbers, 7), near[:, 0, 0])


def read_far_prediction(module):
    far, near = far_and_near()
    losses, slope = module.square_error(far, near, torch.ones(4), loss=True, grad=True)
    assert (losses == 0).all()
    assert (slope == 0).all()


FAR = {
    read_far_video: ("input_triton", input_triton),
    read_far_tokens: ("input_triton", input_triton),
    read_far_prediction: ("loss_triton", loss_triton),
}


@pytest.mark.parametrize("read", FAR)
def test_clips_beyond_int32_are_found(read):
    read(FAR[read][1])


def run_quietly(read, module):
    faulthandler.disable()  # being killed is what is expected
    read(module)


@pytest.mark.parametrize("read", FAR)
def test_without_int64_clips_beyond_int32_are_not_found(read, mutant):
    """The mutant reads far outside the tensor: its process is killed, or finds other numbers."""
    cast = "b = tl.program_id(1).to(tl.int64)"
    file = FAR[read][0]
    module = mutant(file, cast, cast.removesuffix(".to(tl.int64)"))[file]
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=run_quietly, args=(read, module))
    process.start()
    process.join(60)
    assert process.exitcode not in (0, None)
