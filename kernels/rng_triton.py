"""Counter-based random numbers inside Triton kernels: the bits of ``rng_torch``, in registers.

`philox` and `to_normals` work on any shape; `normal_block` gives the normal numbers of consecutive
elements of one sample, `normal_number` and `uniform_number` one number per sample.

Two versions of the logarithm, sine and cosine:

* ``APPROX=False``: polynomials, on any device and in the interpreter; error below 2e-6.
* ``APPROX=True``: the PTX approximations lg2, sqrt, sin and cos, half the instructions, NVIDIA
  only; error below 6e-6 by the bounds of the PTX manual. Where u is near 1 the bound of lg2.approx
  is not enough (the radius is the square root of a small number), so a series replaces it.

Nothing here depends on block size: an element's number is a function of its index alone.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

import triton
import triton.language as tl

_TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def key_words(key_ptr):
    """Load (seed, step) from an int64 tensor: two key words and the counter's step, uint32."""
    seed = tl.load(key_ptr).to(tl.uint64, bitcast=True)
    step = tl.load(key_ptr + 1).to(tl.uint32)
    return (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32), step


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Apply the ten rounds of Philox4x32 to uint32 counters; the 64-bit product is one IMAD.WIDE.

    Source: Salmon et al. 2011, section 4.3.
    """
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def to_unit(word):
    """Turn a word into (word >> 9 + 1/2) / 2**23, a float32 strictly inside (0, 1), exactly."""
    # With the exponent of 1 the 23 bits are a number in [1, 2); the difference is exact
    return ((word >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375


@triton.jit
def _radius(u, APPROX: tl.constexpr):
    """Return sqrt(-2 ln u)."""
    if APPROX:
        v = 1.0 - u  # exact
        log2 = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1
        )
        # -2 ln(1 - v) = 2 v + v^2 + ...; at the seam the bound of lg2 is worth 2.6e-6 of the radius
        square = tl.where(v < 0.001953125, (v + 2.0) * v, log2 * -1.3862943611198906)
        return tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=f,f", [square], dtype=tl.float32, is_pure=True, pack=1
        )
    # u = (1 + f) 2^e with 1 + f in [sqrt(1/2), sqrt(2)); polynomial of Cephes logf
    raw = u.to(tl.int32, bitcast=True)
    e = (raw - 0x3F3504F3) >> 23
    f = (raw - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(f, p, 1.1676998740e-1)
    p = tl.fma(f, p, -1.2420140846e-1)
    p = tl.fma(f, p, 1.4249322787e-1)
    p = tl.fma(f, p, -1.6668057665e-1)
    p = tl.fma(f, p, 2.0000714765e-1)
    p = tl.fma(f, p, -2.4999993993e-1)
    p = tl.fma(f, p, 3.3333331174e-1)
    f2 = f * f
    log1p = tl.fma(f * f2, p, f2 * -0.5) + f
    log = tl.fma(e.to(tl.float32), 0.6931471805599453, log1p)
    return tl.sqrt(log * -2.0)


@triton.jit
def _cos_sin(u, APPROX: tl.constexpr):
    """Return cos(2 pi u) and sin(2 pi u)."""
    if APPROX:
        # The bound is best on [-pi, pi]: cos(2 pi u) = -cos(pi - 2 pi u), and sine has no sign
        angle = (0.5 - u) * _TWO_PI
        c = tl.inline_asm_elementwise(
            "{ .reg .f32 c; cos.approx.ftz.f32 c, $1; neg.f32 $0, c; }",
            "=f,f",
            [angle],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
        s = tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1
        )
        return c, s
    # Nearest quarter of the circle; the rest, in [-1/8, 1/8] turns, is exact
    q = tl.fma(u, 4.0, 0.5).to(tl.int32)
    x = tl.fma(q.to(tl.float32), -0.25, u) * _TWO_PI
    x2 = x * x
    s = tl.fma(x2, -1.9515295891e-4, 8.3321608736e-3)
    s = tl.fma(x2, s, -1.6666654611e-1)
    s = tl.fma(x * x2, s, x)
    c = tl.fma(x2, 2.443315711809948e-5, -1.388731625493765e-3)
    c = tl.fma(x2, c, 4.166664568298827e-2)
    c = tl.fma(x2 * x2, c, tl.fma(x2, -0.5, 1.0))
    odd = (q & 1) != 0
    cos = tl.where(odd, s, c)
    sin = tl.where(odd, c, s)
    cos = tl.where(((q + 1) & 2) != 0, -cos, cos)
    sin = tl.where((q & 2) != 0, -sin, sin)
    return cos, sin


@triton.jit
def _pair(first, second, APPROX: tl.constexpr):
    """Turn two words into two normal numbers, by Box and Muller."""
    r = _radius(to_unit(first), APPROX)
    c, s = _cos_sin(to_unit(second), APPROX)
    return r * c, r * s


@triton.jit
def _four(counter, sample, stream, step, k0, k1, APPROX: tl.constexpr):
    """Return the four normal numbers of each counter."""
    zero = counter * 0
    w0, w1, w2, w3 = philox(counter, zero + sample, zero + stream, zero + step, k0, k1)
    n0, n1 = _pair(w0, w1, APPROX)
    n2, n3 = _pair(w2, w3, APPROX)
    return n0, n1, n2, n3


@triton.jit
def normal_block(
    start,
    sample,
    stream: tl.constexpr,
    step,
    k0,
    k1,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    APPROX: tl.constexpr,
):
    """Return the normal numbers of elements start .. start + BLOCK - 1 of a sample, float32.

    Args:
        start: first element (int32), a multiple of LANES unless LANES is 1.
        sample: global sample id, uint32.
        stream: what the numbers are for.
        step: training step, uint32.
        k0: low word of the seed.
        k1: high word of the seed.
        BLOCK: number of elements.
        LANES: elements that a thread makes from whole counters: 8 or 4; 1 makes each element from
            a counter of its own and keeps one of its four numbers, for starts that are not aligned.
        APPROX: see the module.
    """
    if LANES == 1:
        index = start + tl.arange(0, BLOCK)
        zero = (index * 0).to(tl.uint32)
        counter = (index >> 2).to(tl.uint32)
        w0, w1, w2, w3 = philox(counter, zero + sample, zero + stream, zero + step, k0, k1)
        upper = (index & 2) != 0
        c, s = _pair(tl.where(upper, w2, w0), tl.where(upper, w3, w1), APPROX)
        return tl.where((index & 1) != 0, s, c)
    if LANES == 4:
        counter = ((start >> 2) + tl.arange(0, BLOCK // 4)).to(tl.uint32)
        n0, n1, n2, n3 = _four(counter, sample, stream, step, k0, k1, APPROX)
        return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BLOCK,))
    even = ((start >> 2) + 2 * tl.arange(0, BLOCK // 8)).to(tl.uint32)
    n0, n1, n2, n3 = _four(even, sample, stream, step, k0, k1, APPROX)
    n4, n5, n6, n7 = _four(even + 1, sample, stream, step, k0, k1, APPROX)
    # The last join is the lowest bit of an element's place among its eight
    lower = tl.join(tl.join(n0, n4), tl.join(n2, n6))
    upper = tl.join(tl.join(n1, n5), tl.join(n3, n7))
    return tl.reshape(tl.join(lower, upper), (BLOCK,))


@triton.jit
def normal_number(sample, stream: tl.constexpr, step, k0, k1, APPROX: tl.constexpr):
    """Return the first normal number of a sample."""
    zero = sample * 0
    w0, w1, _, _ = philox(zero, sample, zero + stream, step, k0, k1)
    n0, _ = _pair(w0, w1, APPROX)
    return n0


@triton.jit
def uniform_number(sample, stream: tl.constexpr, step, k0, k1):
    """Return the first uniform number of a sample."""
    zero = sample * 0
    w0, _, _, _ = philox(zero, sample, zero + stream, step, k0, k1)
    return to_unit(w0)
