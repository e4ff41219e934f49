"""Device functions that the Triton step kernels share: addressed normals, guidance, table terms.

Layout. A program owns a tile of `BR` samples by `BD` elements and a lane owns four neighbouring
elements. With one normal per element that is one Philox quad per lane; with two (`uld_step`) it is
two quads, joined so that no value changes lanes: one quad per lane there would cost a trip through
shared memory. When `BR` is 1 everything that belongs to the sample is a scalar, else it is
`[BR, 1]`.

Pointers that may be None are specialised away at compile time.
"""

import triton
import triton.language as tl

from .names import PURPOSE_SHIFT, ROW_WIDTH

# The interpreter truncates where a GPU rounds to bfloat16, and loses subnormals.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tile(B, d, nd, BR: tl.constexpr, BD: tl.constexpr, ALIGN: tl.constexpr):
    """This program's samples (int64), first column (int64), lanes (int32) and element mask.

    Rows past B repeat the last sample, so that its parameters can be read without a mask; the
    element mask excludes them. ALIGN divides d.
    """
    pid = tl.program_id(0)
    # Offsets pass 2^31 elements, so 64 bits before any product with a stride.
    col = (pid % nd).to(tl.int64) * BD
    lane = tl.arange(0, BD)
    inside = lane < tl.multiple_of(d - col, ALIGN)
    first = (pid // nd).to(tl.int64) * BR
    if BR == 1:
        return first, col, lane, inside
    else:
        sample = first + tl.arange(0, BR)
        mask = inside[None, :] & (sample < B)[:, None]
        return tl.minimum(sample, B - 1)[:, None], col, lane[None, :], mask


@triton.jit
def offset(sample, stride, col, ALIGN: tl.constexpr):
    """Offset of column `col` of the samples' rows; ALIGN divides it."""
    start = sample * stride + col
    if start.shape == ():
        return tl.multiple_of(start, ALIGN)
    else:
        return tl.multiple_of(start, [ALIGN, ALIGN])


@triton.jit
def at_sample(ptr, sample, SHARED: tl.constexpr):
    """A per-sample argument: `[1]` tensors (SHARED) are one scalar for every sample."""
    if SHARED:
        return tl.load(ptr)
    else:
        return tl.load(ptr + sample)


@triton.jit
def widen(x):
    """Values as float32, whatever their type."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """float32 values rounded to nearest even of a type."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def load_tile(ptr, sample, stride, col, lane, mask, ALIGN: tl.constexpr):
    """A tile as float32, whatever the tensor's dtype."""
    x = tl.load(ptr + offset(sample, stride, col, ALIGN) + lane, mask=mask, other=0.0)
    if INTERPRETED:
        return widen(x)
    else:
        return x.to(tl.float32)  # through `widen`, diffusion_step takes 8 registers more


@triton.jit
def store_tile(ptr, value, sample, stride, col, lane, mask, ALIGN: tl.constexpr):
    """Store a float32 tile, rounded to nearest even where the tensor is narrower."""
    value = narrow(value, ptr.dtype.element_ty)
    tl.store(ptr + offset(sample, stride, col, ALIGN) + lane, value, mask=mask)


@triton.jit
def low_high(x):
    """The low and high 32-bit words of an int64."""
    return (x & 0xFFFFFFFF).to(tl.uint32), ((x >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox4(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., 2011): uint32 counter and key tensors to four word tensors."""
    m0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    m1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    zero = tl.zeros(c0.shape, tl.uint32)
    c1 = zero + c1
    c2 = zero + c2
    c3 = zero + c3
    k0 = zero + k0
    k1 = zero + k1
    for _ in tl.static_range(10):
        h0 = tl.umulhi(c0, m0)
        h1 = tl.umulhi(c2, m1)
        c1, c3, c0, c2 = c2 * m1, c0 * m0, h1 ^ c1 ^ k0, h0 ^ c3 ^ k1
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def neg2log(w):
    """-2 ln((w + 1/2) 2^-32) of uint32 words (polynomial of Cephes logf)."""
    # g = min(u, 1 - u): in a plain float32 u, 1 - u loses its digits near u = 1.
    signed = w.to(tl.int32, bitcast=True)
    folded = (signed ^ (signed >> 31)).to(tl.float32)
    g = tl.fma(folded, 2.3283064365386963e-10, 1.1641532182693481e-10)
    bits = tl.where(signed < 0, 1.0 - g, g).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    # A zero exponent means u >= sqrt(1/2), where ln u = ln(1 - g).
    f = tl.where(exponent == 0, -g, mantissa - 1.0)
    e = exponent.to(tl.float32)
    z = f * f
    p = tl.fma(f, -2.0 * 7.0376836292e-2, 2.0 * 1.1514610310e-1)
    p = tl.fma(p, f, -2.0 * 1.1676998740e-1)
    p = tl.fma(p, f, 2.0 * 1.2420140846e-1)
    p = tl.fma(p, f, -2.0 * 1.4249322787e-1)
    p = tl.fma(p, f, 2.0 * 1.6668057665e-1)
    p = tl.fma(p, f, -2.0 * 2.0000714765e-1)
    p = tl.fma(p, f, 2.0 * 2.4999993993e-1)
    p = tl.fma(p, f, -2.0 * 3.3333331174e-1)
    y = tl.fma(f * z, p, z)
    y = tl.fma(e, 2.0 * 2.12194440e-4, y)
    y = tl.fma(f, -2.0, y)
    return tl.fma(e, -2.0 * 0.693359375, y)


@triton.jit
def sincos2pi(w):
    """sin and cos of 2 pi int32(w) 2^-32 (polynomials of Cephes sinf and cosf).

    The quadrant is taken on the integer: the library's functions carry a large-argument path
    through local memory.
    """
    quadrant = (w + 0x20000000) >> 30
    # 2 pi 2^-34 times the low 30 bits, signed: in [-pi/4, pi/4).
    x = (w << 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.6572951981679149e-10
    z = x * x
    s = tl.fma(z, -1.9515295891e-4, 8.3321608736e-3)
    s = tl.fma(s, z, -1.6666654611e-1)
    s = tl.fma(s, z * x, x)
    c = tl.fma(z, 2.443315711809948e-5, -1.388731625493765e-3)
    c = tl.fma(c, z, 4.166664568298827e-2)
    c = tl.fma(c, z, -0.5)
    c = tl.fma(c, z, 1.0)
    odd = (quadrant & 1) != 0
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    return sine, tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)


@triton.jit
def box_muller(w0, w1):
    """Two normals (r cos, r sin) from two words."""
    r = tl.sqrt(neg2log(w0))
    s, c = sincos2pi(w1)
    return r * c, r * s


@triton.jit
def interleave4(a, b, c, d, BR: tl.constexpr, BD: tl.constexpr):
    """Tile whose lane j holds a[j], b[j], c[j], d[j] side by side."""
    t = tl.join(tl.join(a, c), tl.join(b, d))
    if BR == 1:
        return tl.reshape(t, [BD])
    else:
        return tl.reshape(t, [BR, BD])


@triton.jit
def quads(col, QUADS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """Index within the sample of each lane's first quad; QUADS quads serve its four elements."""
    q = (col // 4).to(tl.uint32) + tl.arange(0, BD // 4).to(tl.uint32)
    if BR == 1:
        return q * QUADS
    else:
        return tl.broadcast_to((q * QUADS)[None, :], [BR, BD // 4])


@triton.jit
def quad_normals(col, c1, key_ptr, stream, BR: tl.constexpr, BD: tl.constexpr):
    """The four addressed normals of each lane's quad, in the order (cos, sin, cos, sin)."""
    k0, k1 = low_high(tl.load(key_ptr))
    s0, s1 = low_high(stream)
    w0, w1, w2, w3 = philox4(quads(col, 1, BR, BD), c1, s0, s1, k0, k1)
    a, b = box_muller(w0, w1)
    c, d = box_muller(w2, w3)
    return a, b, c, d


@triton.jit
def one_normal(col, c1, key_ptr, stream, BR: tl.constexpr, BD: tl.constexpr):
    """Addressed normals, one per element: quad i // 4."""
    a, b, c, d = quad_normals(col, c1, key_ptr, stream, BR, BD)
    return interleave4(a, b, c, d, BR, BD)


@triton.jit
def two_normals(col, c1, key_ptr, stream, BR: tl.constexpr, BD: tl.constexpr):
    """Addressed normals, two per element: quad i // 2 serves elements 2q and 2q + 1."""
    k0, k1 = low_high(tl.load(key_ptr))
    s0, s1 = low_high(stream)
    q = quads(col, 2, BR, BD)
    w0, w1, w2, w3 = philox4(q, c1, s0, s1, k0, k1)
    w4, w5, w6, w7 = philox4(q + 1, c1, s0, s1, k0, k1)
    a1, a2 = box_muller(w0, w1)
    b1, b2 = box_muller(w2, w3)
    c1_, c2_ = box_muller(w4, w5)
    d1, d2 = box_muller(w6, w7)
    return interleave4(a1, b1, c1_, d1, BR, BD), interleave4(a2, b2, c2_, d2, BR, BD)


@triton.jit
def counter_word(draw, purpose: tl.constexpr):
    """Counter word c1 of a draw (uint32): 4 draw + purpose, a part of PURPOSE."""
    return (draw.to(tl.uint32) << PURPOSE_SHIFT) + purpose


@triton.jit
def table_row(coef_ptr, row, T):
    """Where the row of each sample begins, and whether there is one (else it is row 0)."""
    live = (row >= 0) & (row < T)
    return coef_ptr + tl.where(live, row, 0).to(tl.int64) * ROW_WIDTH, live


@triton.jit
def term(c, t, acc):
    """acc + c t; a zero coefficient drops the term whatever t holds, NaN included."""
    return tl.fma(tl.where(c != 0.0, t, 0.0), c, acc)


@triton.jit
def guided_output(
    out_ptr, uncond_ptr, uncond2_ptr, guidance_ptr, guidance2_ptr,
    out_stride, uncond_stride, uncond2_stride,
    sample, col, lane, mask, ALIGN: tl.constexpr,
    GUIDANCE_SHARED: tl.constexpr, GUIDANCE2_SHARED: tl.constexpr,
):  # fmt: skip
    """The model output used: c, u + w (c - u), or u2 + w2 (u1 - u2) + w (c - u1)."""
    out = load_tile(out_ptr, sample, out_stride, col, lane, mask, ALIGN)
    if uncond_ptr is not None:
        w = at_sample(guidance_ptr, sample, GUIDANCE_SHARED)
        u = load_tile(uncond_ptr, sample, uncond_stride, col, lane, mask, ALIGN)
        base = u
        if uncond2_ptr is not None:
            w2 = at_sample(guidance2_ptr, sample, GUIDANCE2_SHARED)
            u2 = load_tile(uncond2_ptr, sample, uncond2_stride, col, lane, mask, ALIGN)
            base = tl.fma(u - u2, w2, u2)
        out = tl.fma(out - u, w, base)
    return out


@triton.jit
def gradient_tile(ptr, like, sample, stride, col, lane, mask, ALIGN: tl.constexpr):
    """A tile of a gradient as float32, zeros in the shape of `like` where it is absent."""
    if ptr is not None:
        return load_tile(ptr, sample, stride, col, lane, mask, ALIGN)
    else:
        return tl.zeros(like.shape, tl.float32)


@triton.jit
def store_wanted(ptr, value, sample, stride, col, lane, mask, ALIGN: tl.constexpr):
    """Store a result where it is wanted."""
    if ptr is not None:
        store_tile(ptr, value, sample, stride, col, lane, mask, ALIGN)


@triton.jit
def store_output_gradients(
    out, uncond, out_ptr, uncond_ptr, uncond2_ptr, guidance_ptr, guidance2_ptr,
    out_stride, uncond_stride, uncond2_stride,
    sample, col, lane, mask, ALIGN: tl.constexpr,
    GUIDANCE_SHARED: tl.constexpr, GUIDANCE2_SHARED: tl.constexpr,
):  # fmt: skip
    """Spread the gradient of the guided output over the model outputs by its weights, and add
    `uncond` (if it is not None) to that of the first unconditional one."""
    if guidance_ptr is not None:
        w = at_sample(guidance_ptr, sample, GUIDANCE_SHARED)
        store_wanted(out_ptr, w * out, sample, out_stride, col, lane, mask, ALIGN)
        base = 1.0
        if guidance2_ptr is not None:
            w2 = at_sample(guidance2_ptr, sample, GUIDANCE2_SHARED)
            rest = (1.0 - w2) * out
            store_wanted(uncond2_ptr, rest, sample, uncond2_stride, col, lane, mask, ALIGN)
            base = w2
        first = (base - w) * out
        if uncond is not None:
            first += uncond
        store_wanted(uncond_ptr, first, sample, uncond_stride, col, lane, mask, ALIGN)
    else:
        store_wanted(out_ptr, out, sample, out_stride, col, lane, mask, ALIGN)
