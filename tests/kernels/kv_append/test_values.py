"""`kv_append` on every implementation: what is written, where, and that nothing else is."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.kv_append.reference import LARGEST
from ardiff_kernels.testing import bits, same_bits
from tests.kernels.kv_append.calls import APPEND_SMALL, APPENDS, append_call, check_append
from tests.kernels.kv_attention.calls import BF16, F8, F32, I8, INTERPRETED

OPS = torch.ops.ardiff


@pytest.fixture
def serving(implementation):
    """The implementation, where it has the op."""
    name, _, variant = implementation.partition("-")
    if reason := backends.unusable("kv_append", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


def skip_large(serving, name) -> None:
    if serving in INTERPRETED and name not in APPEND_SMALL:
        pytest.skip("too many programs for the interpreter")


@pytest.mark.parametrize("name", APPENDS)
def test_tokens_are_written_in_their_places(serving, name):
    skip_large(serving, name)
    args, options = append_call(**APPENDS[name])
    check_append(args, options, OPS.kv_append(*args, **options))


@pytest.mark.parametrize("name", ["place", "neighbour", "value", "position"])
def test_a_wrong_result_would_be_noticed(name):
    """Negative control of `check_append`."""
    args, options = append_call([3, 0], T=2, rotary=64)
    results = OPS.kv_append(*args, **options)
    check_append(args, options, results)
    if name == "place":
        results = [t.roll(1, 2) for t in results[:2]] + list(results[2:])
    elif name == "neighbour":
        results[1][3, 1, 2, 5] = 0.0
    elif name == "value":
        results[1][0, 0, 3, 0] += 1e-3
    else:
        options["position"] = args[4][:, None] + torch.arange(2).int() + 1
        options["cos"], options["sin"] = options["cos"].repeat(2, 1), options["sin"].repeat(2, 1)
        results = OPS.kv_append(*args, **options)
    with pytest.raises(AssertionError):
        check_append(args, options, results)


@pytest.mark.parametrize("name", APPENDS)
def test_in_place_twin_gives_the_same_bits(serving, name):
    skip_large(serving, name)
    args, options = append_call(**APPENDS[name])
    results = OPS.kv_append(*args, **options)
    OPS.kv_append_(*args, **options)
    written = [*args[2:4], *(options[f"{n}_scale"] for n in "kv" if f"{n}_scale" in options)]
    for found, expected in zip(written, results, strict=False):
        assert same_bits(found, expected)
    assert all(s.shape == (0,) for s in results[len(written) :])


@pytest.mark.parametrize("name", ["rotary", "int8 bfloat16", "partial rotary pages"])
def test_rows_and_tokens_apart_give_the_same_bits(serving, name):
    skip_large(serving, name)
    args, options = append_call(**APPENDS[name])
    k, v, k_cache, v_cache, length = args
    expected = OPS.kv_append(*args, **options)
    scales = [options[f"{n}_scale"].clone() for n in "kv" if f"{n}_scale" in options]
    caches = [k_cache.clone(), v_cache.clone()]
    for b in reversed(range(len(k))):
        for t in range(k.shape[1]):
            alone = dict(options)
            if "block_table" in options:
                alone["block_table"] = options["block_table"][b : b + 1]
                views, cut = caches, scales
            else:
                views, cut = ([x[b:] for x in group] for group in (caches, scales))
            alone |= dict(zip(("k_scale", "v_scale"), cut, strict=False))
            new = (x[b : b + 1, t : t + 1] for x in (k, v))
            OPS.kv_append_(*new, *views, length[b : b + 1] + t, **alone)
    for found, whole in zip([*caches, *scales], expected, strict=False):
        assert same_bits(found, whole)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_slices_of_a_fused_projection(serving, dtype):
    args, options = append_call([3, 0], T=2, dtype=dtype)
    expected = OPS.kv_append(*args, **options)
    fused = torch.full((2, 2, 8, 64), math.nan, dtype=dtype)
    fused[:, :, 4:6], fused[:, :, 6:] = args[0], args[1]
    found = OPS.kv_append(fused[:, :, 4:6], fused[:, :, 6:], *args[2:], **options)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("cache", [I8, F8])
def test_codes_of_zero_and_of_what_is_not_finite(serving, cache):
    """Zeros: scale 0 and zeros. inf or NaN: scale NaN and zeros. The largest: the largest code."""
    args, options = append_call([0], T=4, heads=1, cache=cache)
    v = args[1]
    v[0, 0], v[0, 1, 0, 5], v[0, 2, 0, 6] = 0.0, math.inf, math.nan
    v[0, 3] = torch.linspace(-2.5, 1.0, 64)
    _, codes, _, scale = OPS.kv_append(*args, **options)
    assert scale[0, 0, 0] == 0 and scale[0, 0, 1:3].isnan().all()
    found = bits(codes)[0, 0].view(cache).float()
    assert (found[:3] == 0).all()
    assert found[3, 0] == -LARGEST[cache]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("cache", [I8, F8])
def test_what_is_not_finite_has_the_same_codes_everywhere(serving, cache, dtype):
    """Bits of the definition: positive zeros where there is no scale, signed ones elsewhere."""
    args, options = append_call([0, 0], T=4, heads=1, D=32, cache=cache, dtype=dtype)
    special = [math.nan, math.inf, -math.inf, -0.0, 1e38, -1e-30]
    for x in args[:2]:
        for t, value in enumerate(special):
            x[t // 4, t % 4, 0, ::3] = value
        x[1, 2, 0] = torch.tensor([-0.0, 0.0]).repeat(16)
        x[1, 3, 0] = -1e-40  # a subnormal, which a scale cannot divide
    found = OPS.kv_append(*args, **options)
    expected = backends.reference_function("kv_append")(*args, **options)
    for a, b in zip(found, expected, strict=True):
        assert same_bits(a.nan_to_num(-1.0) if a.dtype == F32 else a,
                         b.nan_to_num(-1.0) if b.dtype == F32 else b)  # fmt: skip
    codes, scales = bits(found[1])[:, 0, :4], found[3][:, 0, :4]
    assert (codes[0, :3] == 0).all() and scales[0, :3].isnan().all()
    assert (codes[1, 2] == 0).all() and scales[1, 2] == 0
    assert scales[0, 3] > 0
    if cache == F8:
        assert (codes[0, 3, ::3] == -128).all()  # -0 beside numbers keeps its sign


@pytest.mark.parametrize("cache", [F32, BF16, I8, F8])
def test_bits_of_the_codes_are_those_of_pytorch(serving, cache):
    """Without norm and rotation the reference's codes come from PyTorch's own conversions."""
    args, options = append_call([0], T=20, heads=2, D=256, cache=cache, seed=5)
    args[0][0, 3] *= 1e-3
    args[0][0, 4, :, :128] *= 1e-4  # float8 subnormals
    reference = backends.reference_function("kv_append")
    for a, b in zip(OPS.kv_append(*args, **options), reference(*args, **options), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("name", ["rotary and norm", "int8 pages"])
def test_opcheck(serving, name):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    args, options = append_call(**APPENDS[name])
    for t in (*args[2:4], *(options.get(f"{n}_scale", args[2]) for n in "kv")):
        t.zero_()  # NaN would never be equal
    torch.library.opcheck(OPS.kv_append.default, tuple(args), options)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.kv_append_.default, tuple(args), options, test_utils=tests)
