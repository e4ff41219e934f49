"""CausalEncoder: with a cache as without one, at every position, for every feature."""
# ruff: noqa: E501  (a case a line)

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ardiff.ar.encoder import CausalEncoder, EncoderConfig
from ardiff.batch_invariant import batch_invariant
from tests._support.small_models import randomise

B, T = 3, 21
# Two float32 evaluations of the same sums: hidden states are of order 1 and each of the two layers
# adds a few products of up to 128 terms, 128^0.5 2^-24 each and eight of them.
TOLERANCE = 1e-5
BASE = {"width": 64, "depth": 2, "heads": 2, "ffn": 96, "positions": 64}
FEATURES = {
    "llama": {"kv_heads": 1},
    "qwen2": {"qkv_bias": True, "kv_heads": 2},
    "qwen3": {"heads": 4, "kv_heads": 2, "head_dim": 40, "qk_norm": True},
    "gpt": {
        "norm": "layer",
        "mlp": "gelu",
        "position": "learned",
        "qkv_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
    },
    "window": {"window": 5, "kv_heads": 1},
    "partial-rotary": {"rotary_dims": 8, "rotary_base": 500.0},
    "no-position": {"position": "none"},
    "gqa-3": {"heads": 6, "kv_heads": 2, "head_dim": 32},
    "small-heads": {"heads": 8, "kv_heads": 2, "position": "learned"},
}
LAYOUTS = {"contiguous": {}, "paged": {"block_size": 4}, "tight": {"block_size": 8, "blocks": 9}}


def encoder(**options) -> CausalEncoder:
    return randomise(CausalEncoder(EncoderConfig(**{**BASE, **options})))


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape and not found.isnan().any()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("feature", FEATURES)
def test_incremental_equals_the_full_forward(feature, layout):
    """Prefill, single tokens and several tokens at once; a wrong position or window shows."""
    model, x = encoder(**FEATURES[feature]), tokens(B, T, 64)
    cache = model.new_cache(B, T, **LAYOUTS[layout])
    for part in cache._keys + cache._values:
        part.fill_(float("nan"))
    parts = [model.prefill(x[:, :4], cache), model.append(x[:, 4:5], cache)]
    parts += [model.append(x[:, 5:8], cache), model.prefill(x[:, 8:20], cache)]
    parts.append(model.append(x[:, 20:], cache))
    assert cache.lengths == [T] * B
    close(torch.cat(parts, 1), model(x))


@pytest.mark.parametrize("feature", FEATURES)
def test_ragged_rows_are_each_as_alone(feature):
    """Rows of other lengths, in another order, with counts: each equals its own full forward."""
    model, x = encoder(**FEATURES[feature]), tokens(B, T, 64)
    cache = model.new_cache(B + 2, T, block_size=4)
    first, rows = [7, 0, 3], [4, 1, 2]
    found = [
        [h[:n]] for h, n in zip(model.prefill(x[:, :7], cache, rows, first), first, strict=True)
    ]
    done = list(first)
    for count in ([1, 1, 1], [0, 3, 2], [4, 4, 0], [1, 0, 1]):
        width = max(count)
        new = torch.full((B, width, 64), float("nan"))
        for i, n in enumerate(count):
            new[i, :n] = x[i, done[i] : done[i] + n]
        for i, h in enumerate(model.append(new, cache, rows, count)):
            found[i].append(h[: count[i]])
            done[i] += count[i]
    assert [cache.lengths[row] for row in rows] == done
    for i, parts in enumerate(found):
        close(torch.cat(parts), model(x[i : i + 1, : done[i]])[0])


def test_the_feature_under_test_matters():
    """The control: each option changes the result, so the comparisons above could fail."""
    x = tokens(1, T, 64)
    plain = encoder()(x)
    for options in ({"window": 5}, {"rotary_base": 50.0}, {"rotary_dims": 8}, {"position": "none"}):
        assert (encoder(**options)(x) - plain).abs().max() > 1e-2, options


@pytest.mark.parametrize("feature", ["llama", "gpt", "qwen3"])
def test_given_positions(feature):
    """An arbitrary order: tokens carry their own positions."""
    model, x = encoder(**FEATURES[feature]), tokens(B, T, 64)
    order = torch.stack(
        [torch.randperm(T, generator=torch.Generator().manual_seed(i)) for i in range(B)]
    )
    cache = model.new_cache(B, T)
    parts = [model.prefill(x[:, :5], cache, position=order[:, :5])]
    parts += [
        model.append(x[:, i : i + 2], cache, position=order[:, i : i + 2]) for i in range(5, T, 2)
    ]
    expected = model(x, position=order)
    close(torch.cat(parts, 1), expected)
    assert (expected - model(x)).abs().max() > 1e-2


@pytest.mark.parametrize("feature", ["llama", "window", "gpt"])
def test_block_causal(feature):
    """With causal=False the tokens of one call see each other, and all before them."""
    model, x, size = encoder(**FEATURES[feature]), tokens(B, 20, 64), 5
    cache = model.new_cache(B, 20, block_size=4)
    parts = [model.append(x[:, i : i + size], cache, causal=False) for i in range(0, 20, size)]
    at = torch.arange(20)
    expected = model(x, mask=at // size <= at[:, None] // size)
    close(torch.cat(parts, 1), expected)
    assert (expected - model(x)).abs().max() > 1e-2


def test_a_long_prompt_behind_a_short_one():
    """More than 64 tokens for rows that hold some already."""
    model, x = encoder(positions=256), tokens(2, 150, 64)
    cache = model.new_cache(2, 150, block_size=16)
    parts = [model.append(x[:, :1], cache), model.prefill(x[:, 1:], cache)]
    close(torch.cat(parts, 1), model(x))
    counts = [149, 80]
    cache.reset()
    model.append(x[:, :1], cache)
    found = model.prefill(x[:, 1:], cache, count=counts)
    close(found[1, :80], model(x)[1, 1:81])


def test_a_long_prompt_of_an_encoder_that_answers_in_one_buffer():
    """As a captured CUDA graph does; 130 tokens are three calls."""
    model, x = encoder(positions=256), tokens(1, 132, 64)
    expected, buffer, extend = model(x), torch.empty(1, 64, 64), model.extend

    def captured(x, *arguments):
        out = buffer[:, : x.shape[1]]
        return out.copy_(extend(x, *arguments))

    model.extend = captured
    cache = model.new_cache(1, 132)
    model.prefill(x[:, :2], cache)
    close(model.prefill(x[:, 2:], cache), expected[:, 2:])


def test_a_batch_invariant_prefill_is_to_the_bit_that_of_a_row_alone():
    """Whatever the lengths beside it: PyTorch's attention cuts its work by the longest row."""
    model, x, counts = encoder(positions=512, heads=2), tokens(3, 300, 64), [300, 37, 150]
    cache, alone = model.new_cache(3, 310), model.new_cache(3, 310, block_size=8)
    with batch_invariant():
        found = model.prefill(x, cache, count=counts)
        after = model.append(x[:, :1], cache)
        for row, n in enumerate(counts):
            assert torch.equal(model.prefill(x[row : row + 1, :n], alone, [row])[0], found[row, :n])
            assert torch.equal(model.append(x[row : row + 1, :1], alone, [row])[0], after[row])


# bfloat16 keys round by 2^-9; int8 by max / 254; float8_e4m3 by 2^-4 of each value.
ROUNDED = {torch.bfloat16: 0.02, torch.int8: 0.03, torch.float8_e4m3fn: 0.2}


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_smaller_caches(dtype, layout):
    model, x = encoder(kv_heads=1), tokens(B, T, 64)
    cache = model.new_cache(B, T, dtype=dtype, **LAYOUTS[layout])
    parts = [
        model.prefill(x[:, :4], cache),
        *(model.append(t, cache) for t in x[:, 4:].split(1, 1)),
    ]
    found, expected = torch.cat(parts, 1), model(x)
    error = (found - expected)[:, 4:].norm() / expected[:, 4:].norm()
    assert 1e-4 < error < ROUNDED[dtype]


def test_a_bfloat16_encoder_keeps_its_rotary_tables():
    model, x = encoder(qk_norm=True), tokens(B, T, 64)
    half = encoder(qk_norm=True).bfloat16()
    assert half.cos.dtype == torch.float32 and torch.equal(half.cos, model.cos)
    cache = half.new_cache(B, T, dtype=torch.bfloat16)
    found = torch.cat([half.append(t.bfloat16(), cache) for t in x.split(1, 1)], 1)
    assert found.dtype == torch.bfloat16
    assert (found.float() - model(x)).norm() / model(x).norm() < 0.03


def test_reset_leaks_nothing():
    """A row taken again gives, to the bit, what a fresh cache gives, whatever was there."""
    model, x = encoder(), tokens(B, T, 64)
    cache, fresh = (
        model.new_cache(B, T, block_size=4, blocks=18),
        model.new_cache(B, T, block_size=4),
    )
    model.prefill(tokens(B, T, 64, seed=9) * float("inf"), cache)
    assert cache.free_blocks == 0
    cache.reset([1, 2])
    assert cache.free_blocks == 12 and cache.lengths == [T, 0, 0]
    for rows in ([2, 1], [1, 2]):
        cache.reset(rows)
        fresh.reset()
        kept = fresh.lengths
        assert kept == [0] * B
        for t in x[:2].split(3, 1):
            assert torch.equal(model.append(t, cache, rows), model.append(t, fresh, [0, 1]))


def test_streams_of_guidance_are_rows_of_one_call():
    """With and without a prompt, other lengths: one ragged call equals two calls."""
    model, x = encoder(kv_heads=1), tokens(2, 9, 64)
    cache, alone = model.new_cache(2, 16), model.new_cache(2, 16)
    model.prefill(x[:, :6], cache, count=[6, 1])
    together = model.append(x[:, 6:7], cache)
    for row, n in ((0, 6), (1, 1)):
        model.prefill(x[row : row + 1, :n], alone, [row])
        close(model.append(x[row : row + 1, 6:7], alone, [row]), together[row : row + 1])


@pytest.mark.parametrize(("feature", "backend"), [("qwen3", "inductor"), ("gpt", "aot_eager")])
def test_compiled_append(feature, backend):
    """`extend` compiles whole, for any lengths, without being compiled anew."""
    model, x = encoder(**FEATURES[feature], depth=1), tokens(B, 8, 64)
    plain = [model.new_cache(B, 16, block_size=4) for _ in range(2)]
    expected = torch.cat([model.append(t, plain[0]) for t in x.split(1, 1)], 1)
    torch.compiler.reset()
    compiled = CompileCounterWithBackend(backend)
    model.extend = torch.compile(model.extend, fullgraph=True, backend=compiled)
    found = torch.cat([model.append(t, plain[1]) for t in x.split(1, 1)], 1)
    close(found, expected)
    assert compiled.frame_count == 1
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(whole(x), expected)


ERRORS = [
    ({"norm": "batch"}, "norm must be one of rms, layer, got 'batch'"),
    ({"mlp": "relu"}, "mlp must be one of swiglu, gelu, got 'relu'"),
    ({"position": "alibi"}, "position must be one of rotary, learned, none, got 'alibi'"),
    ({"width": 0}, "width must be positive, got 0"),
    ({"window": -1}, "window must not be negative, got -1"),
    ({"kv_heads": 3, "heads": 4, "head_dim": 32}, "kv_heads must divide heads, got 3 and 4 heads"),
    ({"heads": 4}, "head_dim must be a multiple of 8 from 32 to 256, got 16"),
    ({"width": 528, "position": "none"}, "head_dim must be at most 256, got 264"),
    ({"rotary_dims": 34}, "rotary_dims must be even and at most head_dim 32, got 34"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_config_errors(options, message):
    with pytest.raises(ValueError) as error:
        EncoderConfig(**{**BASE, **options})
    assert str(error.value) == message


CALLS = [
    (
        "rows",
        {"rows": [0, 0, 1]},
        "KVCache: rows must be different integers in [0, 4), got [0, 0, 1]",
    ),
    (
        "range",
        {"rows": [0, 1, 4]},
        "KVCache: rows must be different integers in [0, 4), got [0, 1, 4]",
    ),
    ("few", {"rows": [0, 1]}, "rows must name a row of the cache for each of 3, got 2"),
    ("count", {"count": [1, 5, 0]}, "count must be 3 integers in [0, 4], got [1, 5, 0]"),
]


@pytest.mark.parametrize(("_", "options", "message"), CALLS)
def test_call_errors(_, options, message):
    model = encoder()
    cache = model.new_cache(4, 8)
    for call in (model.append, model.prefill):
        with pytest.raises(ValueError) as error:
            call(tokens(B, 4, 64), cache, **options)
        assert str(error.value) == message
    assert cache.lengths == [0] * 4


def test_past_the_capacity_or_the_positions():
    model = encoder(positions=12)
    cache = model.new_cache(B, 8)
    model.prefill(tokens(B, 7, 64), cache)
    message = (
        "row 1 needs room for 9 tokens, but the cache holds 8 tokens per sequence; make a larger"
    )
    with pytest.raises(ValueError, match=message):
        model.append(tokens(B, 2, 64), cache, count=[1, 2, 1])
    assert cache.lengths == [7] * B
    positions = (
        "the encoder has 12 positions, got a sequence of 13 tokens; set EncoderConfig.positions"
    )
    larger = model.new_cache(B, 16)
    with pytest.raises(ValueError, match=positions):
        model.prefill(tokens(B, 13, 64), larger)
    with pytest.raises(ValueError, match=positions):
        model(tokens(1, 13, 64))
    model.prefill(tokens(B, 12, 64), larger)
    with pytest.raises(ValueError, match=positions):
        model.append(tokens(B, 1, 64), larger)


@pytest.mark.parametrize("feature", ["qwen2", "gpt"])
def test_given_positions_out_of_range(feature):
    """Refused before anything is taken in; those of tokens that are not real do not count."""
    model, x = encoder(**FEATURES[feature]), tokens(2, 3, 64)
    cache = model.new_cache(2, 8)
    for wrong in ([[0, 1, 64], [0, 1, 2]], [[0, 1, 2], [0, -1, 2]]):
        for take in (model.append, model.prefill):
            with pytest.raises(
                ValueError, match=r"position must lie in \[0, 64\), got (64|-1) in r"
            ):
                take(x, cache, position=torch.tensor(wrong))
    with pytest.raises(
        ValueError, match=r"position must be integers of shape \[2, 3\], got \[1, 3"
    ):
        model.append(x, cache, position=torch.tensor([[0, 1, 2]]))
    assert cache.lengths == [0, 0]
    model.append(x, cache, count=[2, 3], position=torch.tensor([[0, 1, 64], [0, 1, 2]]))


def test_a_prefill_takes_in_all_or_nothing():
    model = encoder()
    cache = model.new_cache(2, 50)
    model.prefill(tokens(2, 10, 64), cache)
    for invariant in (False, True):
        with batch_invariant() if invariant else contextlib.nullcontext():
            with pytest.raises(ValueError, match="row 1 needs room for 60 tokens"):
                model.prefill(tokens(2, 50, 64), cache, count=[40, 50])
    assert cache.lengths == [10, 10]
    assert model.prefill(tokens(0, 5, 64), cache, rows=[]).shape == (0, 5, 64)
