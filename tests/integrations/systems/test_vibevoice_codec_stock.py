"""Where the towers of VibeVoice's codec keep the stock forward, and what changes they follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ardiff.integrations.systems.swaps import Choices
from ardiff.integrations.systems.vibevoice.swap import swap_codec
from tests.integrations._support.codec_towers import (
    KINDS,
    chunks,
    codec,
    error,
    result,
    stream,
    tower_of,
    twin,
)

SAME = 1e-5  # of float32


def _block(tower):
    return tower.conv_layers[1].stage[0]


CHANGES = {
    "written": lambda t: _block(t).ffn.linear2.weight.mul_(-1),
    "replaced": lambda t: setattr(
        _block(t).ffn, "linear1", nn.Linear(*reversed(_block(t).ffn.linear1.weight.shape))
    ),
    "data-replaced": lambda t: setattr(
        _block(t).norm.weight, "data", _block(t).norm.weight.data * -1
    ),
    "scale": lambda t: _block(t).gamma.mul_(-1),
    "kernel": lambda t: _block(t).mixer.conv.weight.mul_(-1),
    "stem": lambda t: t.stem.conv.conv.weight.mul_(-1),
    "head-bias": lambda t: t.head.conv.bias.add_(1),
    "block": lambda t: setattr(t.conv_layers[1], "stage", nn.ModuleList([_block(twin(t))])),
    "through .data": lambda t: _block(t).ffn.linear1.weight.data.mul_(-1),
    "stride": lambda t: next(next(t.conv_layers[2].children()).children()).weight.mul_(-1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_parameters_are_followed(kind, change):
    model = codec()
    tower = tower_of(model, kind)
    swap_codec(model, Choices())
    inputs = chunks(tower)
    before, _ = stream(tower, inputs)
    with torch.no_grad():
        CHANGES[change](tower)
        tower.requires_grad_(False)
    expected, _ = stream(twin(tower), inputs)
    if change != "block":
        assert error(before, expected) > 1e-3
    found, _ = stream(tower, inputs)
    assert error(found, expected) < SAME
    with torch.no_grad():  # the block that is in the tower now
        _block(tower).ffn_gamma.mul_(-1)
    again, _ = stream(twin(tower), inputs)
    assert error(expected, again) > 1e-3
    assert error(stream(tower, inputs)[0], again) < SAME


def _call(tower, x, **options):
    return result(tower(x, **({"use_cache": True} | options)))


def _in_training(tower, x):
    tower.train()
    return _call(tower, x)


def _with_gradients(tower, x):
    tower.requires_grad_(True)
    return _call(tower, x)


def _under_autocast(tower, x):
    with torch.autocast("cpu", torch.bfloat16):
        return _call(tower, x)


def _hooked_later(tower, x):
    seen = []
    handle = _block(tower).ffn.linear1.register_forward_hook(lambda *args: seen.append(args))
    found = _call(tower, x)
    assert seen
    handle.remove()
    return found


def _patched_later(tower, x):
    linear = _block(tower).ffn.linear1
    linear.forward = lambda h: -nn.Linear.forward(linear, h)
    found = _call(tower, x)
    del linear.forward
    return found


def _quantised_later(tower, x):
    class Int8Linear(nn.Linear):
        def forward(self, h):
            return -super().forward(h)

    old = _block(tower).ffn.linear1
    _block(tower).ffn.linear1 = Int8Linear(old.in_features, old.out_features)
    _block(tower).ffn.linear1.load_state_dict(old.state_dict())
    tower.requires_grad_(False)
    return _call(tower, x)


CALLS = {
    "no-cache": lambda t, x: _call(t, x, use_cache=False),
    "training": _in_training,
    "gradients": _with_gradients,
    "autocast": _under_autocast,
    "hooked": _hooked_later,
    "patched": _patched_later,
    "quantised": _quantised_later,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_calls_give_the_stock_bits(kind, call):
    model = codec()
    tower = tower_of(model, kind)
    plain = twin(tower)
    swap_codec(model, Choices())
    (x,) = chunks(tower, tokens=[2])
    assert not torch.equal(_call(tower, x), _call(plain, x))
    expected, found = CALLS[call](plain, x), CALLS[call](tower, x)
    assert torch.equal(found, expected) and found.requires_grad == expected.requires_grad


@pytest.mark.parametrize("tokens", [17, 40])
def test_many_tokens_give_the_stock_bits(tokens):
    for kind in KINDS:
        model = codec()
        tower = tower_of(model, kind)
        plain = twin(tower)
        swap_codec(model, Choices())
        inputs = chunks(tower, tokens=[tokens])
        assert torch.equal(stream(tower, inputs)[0][0], stream(plain, inputs)[0][0])


def test_steps_that_are_no_whole_tokens_give_the_stock_bits():
    model = codec()
    tower = tower_of(model, "encoder")
    plain = twin(tower)
    swap_codec(model, Choices())
    (x,) = chunks(tower, tokens=[2])
    inputs = [x[:, :, :160]]
    assert torch.equal(stream(tower, inputs)[0][0], stream(plain, inputs)[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_another_stream_is_refused_as_stock_refuses_it(kind):
    model = codec()
    tower = tower_of(model, kind)
    swap_codec(model, Choices())
    (x,), (pair,) = chunks(tower, 1, [1]), chunks(tower, 2, [1])
    cache = tower(x, use_cache=True).padding_cache
    held = {key: layer.cache.clone() for key, layer in cache.layers.items()}
    with pytest.raises(RuntimeError, match="in dimension 2|broadcast shape"):
        tower(pair, padding_cache=cache, use_cache=True)
    assert all(torch.equal(held[key], layer.cache) for key, layer in cache.layers.items())


def test_hooks_on_a_tower_run_and_it_stays_replaced():
    model = codec()
    tower = tower_of(model, "decoder")
    swap_codec(model, Choices())
    (x,) = chunks(tower, tokens=[1])
    expected, seen = _call(tower, x), []
    tower.register_forward_hook(lambda module, args, output: seen.append(output.audio))
    found = _call(tower, x)
    assert torch.equal(found, expected) and torch.equal(seen[0], expected)


def _quantise(tower):
    class Int8Linear(nn.Linear):
        pass

    _block(tower).ffn.linear1.__class__ = Int8Linear


def _float16(tower):
    tower.half()


REASONS = {
    "hook": (
        lambda t: _block(t).ffn.register_forward_hook(lambda *args: None),
        "has hooks or a replaced forward, which would not be called",
    ),
    "forward": (
        lambda t: setattr(_block(t).norm, "forward", lambda x: x),
        "conv_layers.1.stage.0.norm has hooks or a replaced forward",
    ),
    "own-forward": (lambda t: setattr(t, "forward", lambda x: x), "was replaced by something else"),
    "compiled": (
        lambda t: setattr(t.stem, "conv", torch.compile(t.stem.conv)),
        "a OptimizedModule stands where a layer of the codec is expected",
    ),
    "compiled-linear": (
        lambda t: setattr(_block(t).ffn, "linear1", torch.compile(_block(t).ffn.linear1)),
        "conv_layers.1.stage.0.ffn.linear1 is compiled",
    ),
    "compiled-itself": (lambda t: t.compile(), "is compiled"),
    "quantised": (_quantise, "a Int8Linear stands where a torch.nn.Linear is expected"),
    "float16": (_float16, "weights are float16, expected float32 or bfloat16"),
    "mixed": (
        lambda t: t.head.bfloat16(),
        "weights are bfloat16 on cpu and float32 on cpu, expected all of float32",
    ),
    "offloaded": (lambda t: t.head.to("meta"), "float32 on meta"),
    "other-layer": (
        lambda t: setattr(t.stem.stage, "0", nn.Identity()),
        "a Identity stands where a layer of the codec is expected",
    ),
    "other-convolution": (
        lambda t: setattr(t.head.conv, "dilation", (2,)),
        "a convolution of another kind than the codec's",
    ),
    "no-bias": (lambda t: setattr(t.head.conv, "bias", None), "without bias"),
}


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_left_with_the_reason(kind, name):
    change, reason = REASONS[name]
    model = codec()
    tower = tower_of(model, kind)
    change(tower)
    before = dict(vars(tower))
    swaps = {swap.modules[0]: swap for swap in swap_codec(model, Choices())}
    assert reason in swaps[tower].reason and not swaps[tower].after
    assert vars(tower) == before
    (other,) = (swap for module, swap in swaps.items() if module is not tower)
    assert not other.reason


def test_a_tower_of_another_class_is_left():
    model = codec()
    model.model.audio_tower.decoder = nn.Identity()
    left, _ = swap_codec(model, Choices())
    assert "a Identity stands where a VibeVoiceAcousticTokenizerDecoderModel" in left.reason
