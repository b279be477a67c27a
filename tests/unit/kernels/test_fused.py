import pytest
import torch
from torch.library import opcheck

from cil.moments import LatentMoments
from kernels import fused, rng_torch
from kernels.fused import LogitNormal

OPS = torch.ops.cil_kernels


def given(batch=2, frames=3, channels=2, height=4, width=6, *, cond_frames=1):
    generator = torch.Generator().manual_seed(1)

    def randn(*size):
        return torch.randn(size, generator=generator)

    return {
        "clean": randn(batch, frames, channels, height, width),
        "cond": randn(batch, cond_frames, channels, height, width),
        "key": fused.make_key(3, 4),
        "sample_ids": torch.arange(batch) + 5,
        "scales": randn(batch, 5),
        "level": torch.rand(batch, generator=generator),
    }


LAW = LogitNormal(beta_m=5.0)


# -- operators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_dtype", [torch.bfloat16, None])
@pytest.mark.parametrize("channels_first", [False, True])
def test_opcheck_of_the_training_input(target_dtype, channels_first):
    g = given()
    g["clean"].requires_grad_(), g["cond"].requires_grad_()
    order = ("clean", "cond", "scales", "level", "key", "sample_ids")
    rest = ("shared", 5.0, 1.0, 0.3, torch.float32, target_dtype, channels_first)
    opcheck(OPS.training_input.default, (*(g[name] for name in order), *rest))


def test_opcheck_of_the_others():
    g = given()
    x = torch.randn(2, 3, 4, requires_grad=True)
    opcheck(OPS.corrupt.default, (x, g["level"], torch.ones(2), g["key"], g["sample_ids"], 7))
    target, prediction = g["clean"], torch.randn(2, 3, 2, 4, 6, requires_grad=True)
    opcheck(OPS.square_error.default, (prediction, target, g["level"]))
    plain = (prediction.detach(), target, g["level"])
    opcheck(OPS.square_error_and_grad.default, plain)
    opcheck(OPS.square_error_grad.default, (*plain, g["level"]))
    opcheck(OPS.square_error_and_grad.default, (prediction, target, g["level"]))
    opcheck(OPS.square_error_grad.default, (prediction, target, g["level"], g["level"]))
    m = fused.no_moments((3, 2, 4, 6))
    opcheck(OPS.update_moments.default, (m.count, m.mean, m.m2, target, None))
    opcheck(OPS.update_moments.default, (m.count, m.mean, m.m2, target, target.abs()))
    opcheck(OPS.update_moments.default, (m.count, m.mean, m.m2, prediction, None))


def test_what_has_no_gradient_on_a_gpu_has_none_here():
    g = given()
    leaf = g["clean"].clone().requires_grad_()
    weight = g["level"].clone().requires_grad_()
    both = fused.square_error_and_grad(leaf, g["clean"], weight)
    slope = OPS.square_error_grad(leaf, g["clean"], weight, weight)
    moments = fused.update_moments(fused.no_moments((3, 2, 4, 6)), leaf)
    for result in (*both, slope, moments.count, moments.mean, moments.m2):
        assert not result.requires_grad
    assert fused.square_error(leaf, g["clean"], weight).requires_grad


@pytest.mark.parametrize("stream", [-1, 2**31])
def test_corrupting_refuses_a_stream_that_is_none(stream):
    numbers = {"key": fused.make_key(1, 2), "sample_ids": torch.arange(2)}
    with pytest.raises(ValueError, match="stream must be in"):
        fused.corrupt(torch.zeros(2, 3), **numbers, sigma_cond=torch.ones(2), stream=stream)


@pytest.mark.parametrize(
    "bad",
    [
        {"beta_m": float("nan")},
        {"beta_m": -1.0},
        {"beta_m": 0.0},
        {"beta_m": float("inf")},
        {"beta_m": 1.0, "scale": 0.0},
    ],
)
def test_a_law_without_a_distribution_is_refused(bad):
    with pytest.raises(ValueError, match="must be > 0 and finite"):
        LogitNormal(**bad)


def test_the_lower_32_bits_of_a_sample_id_count():
    """As in the kernel, which casts to uint32."""

    def words(ids):
        return rng_torch.bits(8, key=fused.make_key(1, 2), sample_ids=torch.tensor(ids), stream=0)

    assert torch.equal(words([2**32 + 3, -1]), words([3, 2**32 - 1]))


@pytest.mark.parametrize("layout", ["bfchw", "bcfhw"])
def test_compiled_without_a_break_is_the_same(layout):
    def step(clean, cond, key):
        made = fused.training_input(
            clean, cond, **rest, key=key, law=LAW, dropout=0.3, layout=layout
        )
        prediction = made.network_input.chunk(2, dim=2 if layout == "bfchw" else 1)[0]
        loss = fused.square_error(prediction, made.target, layout=layout)
        return *made, loss

    rest = given()
    clean, cond, key = (rest.pop(name) for name in ("clean", "cond", "key"))
    if layout == "bcfhw":
        clean, cond = clean.transpose(1, 2).contiguous(), cond.transpose(1, 2)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number in (1, 2):  # a key with other numbers must not be compiled in
        key = fused.make_key(3, number)
        expected = step(clean, cond, key)
        for ours, eager in zip(compiled(clean, cond, key), expected, strict=True):
            assert torch.equal(ours, eager)
    assert not torch.equal(expected[0], step(clean, cond, fused.make_key(3, 1))[0])


# -- meaning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["none", "shared", "per_frame", "scalar"])
def test_both_layouts_give_the_same_numbers(noise):
    g = given()
    base = fused.training_input(**g, noise=noise, law=LAW, dropout=0.5)
    g["clean"], g["cond"] = (g[name].transpose(1, 2).contiguous() for name in ("clean", "cond"))
    other = fused.training_input(**g, noise=noise, law=LAW, dropout=0.5, layout="bcfhw")
    assert other.network_input.is_contiguous()
    assert other.network_input.shape == (2, 4, 3, 4, 6)
    for ours, turned in ((base.network_input, other.network_input), (base.target, other.target)):
        assert torch.equal(ours, turned.transpose(1, 2))
    assert torch.equal(base.sigma_cond, other.sigma_cond)
    assert torch.equal(base.keep, other.keep)


def test_gradients_are_those_of_the_formula():
    g = given(cond_frames=1)
    clean, cond = g["clean"].requires_grad_(), g["cond"].requires_grad_()
    uniform = rng_torch.uniform(key=g["key"], sample_ids=g["sample_ids"], stream=rng_torch.DROPOUT)
    made = fused.training_input(**g, dropout=uniform.mean().item())
    assert sorted(made.keep.tolist()) == [0.0, 1.0]
    into, onto = torch.randn_like(made.network_input), torch.randn_like(made.target)
    ours = torch.autograd.grad(
        (made.network_input * into).sum() + (made.target * onto).sum(), (clean, cond)
    )
    s = [column.reshape(-1, 1, 1, 1, 1) for column in g["scales"].unbind(1)]
    kept = made.keep.reshape(-1, 1, 1, 1, 1)
    network_input = torch.cat([s[0] * clean, (kept * s[4] * cond).expand_as(clean)], dim=2)
    plain = torch.autograd.grad(
        (network_input * into).sum() + (s[2] * clean * onto).sum(), (clean, cond)
    )
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    numbers = {name: g[name] for name in ("key", "sample_ids")}
    out = fused.corrupt(tokens, **numbers, sigma_cond=g["level"], keep=made.keep)
    (slope,) = torch.autograd.grad(out.sum(), tokens)
    assert torch.equal(slope, made.keep.reshape(-1, 1, 1).expand(2, 3, 4))


@pytest.mark.parametrize("layout", ["bfchw", "bcfhw"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_square_error_and_its_gradient_are_torchs(layout, weighted):
    generator = torch.Generator().manual_seed(2)
    prediction = torch.randn(3, 2, 4, 3, 5, generator=generator, requires_grad=True)
    target = torch.randn(3, 2, 4, 3, 5, generator=generator)
    weight = torch.tensor([1.0, 0.5, 3.0]) if weighted else None
    losses = fused.square_error(prediction, target, weight, layout=layout)
    plain = (prediction - target).square().flatten(1).mean(1)
    if weight is not None:
        plain = plain * weight
    assert torch.allclose(losses, plain, rtol=1e-6)
    upstream = torch.tensor([1.0, 2.0, -1.0])
    (ours,) = torch.autograd.grad((losses * upstream).sum(), prediction)
    (theirs,) = torch.autograd.grad((plain * upstream).sum(), prediction)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    both = fused.square_error_and_grad(prediction.detach(), target, weight, layout=layout)
    assert torch.equal(both[0], losses.detach())
    ones = fused.square_error(prediction, target, weight, layout=layout).sum()
    assert torch.equal(both[1], torch.autograd.grad(ones, prediction)[0])


def test_corrupting_keeps_any_shape():
    for shape in ((2,), (2, 5), (2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5)):
        batch = shape[0]
        values = torch.zeros(shape)
        numbers = {"key": fused.make_key(1, 2), "sample_ids": torch.arange(batch)}
        out = fused.corrupt(values, **numbers, sigma_cond=torch.ones(batch))
        assert out.shape == shape
        flat = fused.corrupt(values.reshape(batch, 1, -1) if batch else values, **numbers,
                             sigma_cond=torch.ones(batch))  # fmt: skip
        assert torch.equal(out.flatten(), flat.flatten())


def test_moments_go_back_and_forth_to_the_host():
    shape = (2, 1, 3, 4)
    latents = torch.randn(7, *shape, generator=torch.Generator().manual_seed(3))
    moments = fused.no_moments(shape)
    for part in latents.split(3):
        moments = fused.update_moments(moments, part)
    host = LatentMoments().update(latents)
    there = LatentMoments.from_state_dict(
        {"count": moments.count, "mean": moments.mean, "m2": moments.m2}
    )
    assert there.count == host.count == 7
    assert (there.mean - host.mean).abs().max() < 1e-14
    assert there.variance == pytest.approx(host.variance, rel=1e-13)


def test_an_empty_batch_is_fine():
    made = fused.training_input(**given(batch=0), law=LAW)
    assert made.network_input.shape == (0, 3, 4, 4, 6)
    assert made.sigma_cond.shape == made.keep.shape == (0,)
    empty = torch.zeros(0, 3, 2, 4, 6)
    assert fused.square_error(empty, empty).shape == (0,)
    moments = fused.update_moments(fused.no_moments((3, 2, 4, 6)), empty)
    assert int(moments.count) == 0


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"clean": torch.zeros(2, 3, 2, 4)}, "clean must have 5 dimensions"),
        ({"clean": torch.zeros(2, 3, 2, 4, 6).double()}, "clean must be float32, bfloat16"),
        ({"clean": torch.zeros(2, 3, 2, 0, 6)}, "no other empty dimension"),
        ({"cond": torch.zeros(2, 2, 2, 4, 6)}, "cond must have the shape of clean"),
        ({"cond": torch.zeros(2, 1, 2, 4, 5)}, "cond must have the shape of clean"),
        ({"cond": torch.zeros(2, 1, 2, 4, 6, device="meta")}, "cond must be on cpu"),
        ({"scales": torch.zeros(2, 3)}, r"scales must have the shape \(2, 5\)"),
        ({"scales": torch.zeros(2, 5).double()}, "scales must be torch.float32"),
        ({"level": torch.zeros(3)}, r"level must have the shape \(2,\)"),
        ({"key": torch.zeros(2)}, "key must be torch.int64"),
        ({"sample_ids": torch.zeros(2, dtype=torch.int32)}, "sample_ids must be torch.int64"),
        ({"sample_ids": torch.zeros(2, dtype=torch.int64, device="meta")}, "sample_ids must be on"),
        ({"noise": "frame"}, "unknown noise='frame'"),
        ({"layout": "bfhwc"}, "layout must be bfchw or bcfhw"),
        ({"dropout": 1.5}, "dropout must be in"),
        ({"dtype": torch.int32}, "dtype must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        fused.training_input(**{**given(), **change})


def test_sizes_beyond_int32_are_refused_and_a_large_batch_is_not():
    """Nothing is allocated: the tensors are expanded, or on the meta device."""
    g = given(batch=1)
    frame = torch.zeros(1, 1, 1, 1, 1)
    g["clean"] = g["cond"] = frame.expand(1, 2**10, 1, 2**10, 2**10)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*30 elements, got 1073741824"):
        fused.training_input(**g)
    far = torch.empty(2**31 + 8, device="meta")
    g["clean"] = far.as_strided((1, 2, 1, 1, 1), (1, 2**31, 1, 1, 1))
    with pytest.raises(ValueError, match=r"must span fewer than 2\*\*31"):
        fused.training_input(**g)
    with pytest.raises(ValueError, match="at most 65535 clips"):
        fused.corrupt(torch.zeros(1, 1).expand(65536, 1), key=g["key"], sample_ids=g["key"],
                      sigma_cond=g["level"])  # fmt: skip
    meta = {
        name: torch.empty(size, dtype=dtype, device="meta")
        for name, size, dtype in (
            ("clean", (64, 25, 4, 72, 1024), torch.float32),
            ("cond", (64, 1, 4, 72, 1024), torch.float32),
            ("key", (2,), torch.int64),
            ("sample_ids", (64,), torch.int64),
            ("scales", (64, 5), torch.float32),
            ("level", (64,), torch.float32),
        )
    }
    assert fused.training_input(**meta).network_input.numel() > 2**29


def test_other_refusals():
    g = given()
    x = g["clean"]
    with pytest.raises(ValueError, match="target must have the shape"):
        fused.square_error(x, x[:, :1])
    with pytest.raises(ValueError, match=r"weight must have the shape \(2,\)"):
        fused.square_error(x, x, torch.ones(3))
    with pytest.raises(ValueError, match="latents must have the shape"):
        fused.update_moments(fused.no_moments((3, 2, 4, 5)), x)
    for function in (fused.square_error, fused.square_error_and_grad):
        with pytest.raises(ValueError, match="layout must be bfchw or bcfhw, got 'typo'"):
            function(x, x, layout="typo")
    none = fused.no_moments((3, 2, 4, 6))
    many = fused.Moments(count=none.count.expand(2), mean=none.mean, m2=none.m2)
    with pytest.raises(ValueError, match="count must be one number"):
        fused.update_moments(many, x)
    with pytest.raises(ValueError, match="std must have the shape"):
        fused.update_moments(fused.no_moments((3, 2, 4, 6)), x, x[:1])
    for seed, step in ((2**64, 0), (-(2**63) - 1, 0), (0, 2**32), (0, -1)):
        with pytest.raises(ValueError, match=r"seed|step"):
            fused.make_key(seed, step)
    assert fused.make_key(2**64 - 1, 3).tolist() == [-1, 3]
