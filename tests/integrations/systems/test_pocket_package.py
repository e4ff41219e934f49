"""Parts of a TTSModel of the package pocket-tts, replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ardiff
from ardiff.integrations.systems.pocket_package.swap import swap_parts
from ardiff.integrations.systems.swaps import PARTS, Choices
from tests._support import pocket_package as package

KINDS = {
    "lsd": {},
    "drifting": {"flow": "drifting"},
    "pointwise": {"flow": "pointwise"},
    "shared key heads": {"num_heads": 4, "num_kv_heads": 2, "attn_dim": 128},
    "dilated codec": {"residual_layers": 2},
}


@pytest.fixture
def make(tmp_path):
    return lambda steps=1, **options: package.build(package.config(tmp_path, **options), steps)


def swap(model, *parts, **choices):
    return swap_parts(model, Choices(frozenset(parts or PARTS), **choices))


def undo(swaps):
    for each in reversed(swaps):
        each.restore()


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_utterance_is_the_stock_one(make, kind):
    model = make(**KINDS[kind])
    state = package.voice(model)
    expected = package.speak(model, state)
    swaps = swap(model)
    assert [s.part for s in swaps] == ["head", "linears", "attention", "codec", "codec"]
    assert all(s.after and not s.reason for s in swaps)
    found = package.speak(model, state)
    assert found.shape == (96 * package.FRAMES,)
    assert 0 < relative(found, expected) < 1e-5
    again = package.voice(model)
    for name, held in state.items():
        assert relative(again[name]["cache"], held["cache"]) < 1e-5
    undo(swaps)
    assert torch.equal(package.speak(model, state), expected)
    replaced = [m for m in model.modules() if "forward" in vars(m)]
    assert not replaced


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone(make, part):
    model = make()
    state = package.voice(model)
    expected = package.speak(model, state)
    swaps = swap(model, part)
    assert {s.part for s in swaps} == {part}
    assert 0 < relative(package.speak(model, state), expected) < 1e-5


def test_ardiff_accelerate_knows_the_package(make):
    model = make()
    state = package.voice(model)
    expected = package.speak(model, state)
    report = ardiff.accelerate(model)
    assert report.replaced == ["attention", "codec", "head", "linears"]
    assert report.memory_bytes > 0
    assert 0 < relative(package.speak(model, state), expected) < 1e-5
    ardiff.restore(model)
    assert torch.equal(package.speak(model, state), expected)


def test_several_steps_of_the_flow(make):
    model = make(steps=3)
    state = package.voice(model)
    expected = package.speak(model, state)
    swap(model, "head")
    assert 0 < relative(package.speak(model, state), expected) < 1e-5


def test_a_state_goes_from_stock_to_ours_and_back(make):
    model = make()
    start = package.voice(model)
    whole, _ = package.latents(model, start, 1)
    whole, expected, state, latent = [whole], [], start, None
    torch.manual_seed(5)
    for turn in range(4):
        more, state = package.latents(model, state, 2, seed=turn, first=latent)
        expected.append(more)
        latent = more[-1][None]
    found, state, latent = [], start, None
    for turn in range(4):
        swaps = swap(model) if turn % 2 else []
        more, state = package.latents(model, state, 2, seed=turn, first=latent)
        found.append(more)
        latent = more[-1][None]
        undo(swaps)
    assert torch.equal(found[0], expected[0])
    assert 0 < relative(torch.cat(found), torch.cat(expected)) < 1e-5


def test_a_codec_state_goes_from_stock_to_ours_and_back(make):
    model = make(residual_layers=2)
    chunks = torch.randn(1, 12, 8).split([1, 1, 5, 1, 4], 1)
    stock, mixed = package.Decoder(model), package.Decoder(model)
    expected = torch.cat([stock(chunk) for chunk in chunks], -1)
    found = []
    for i, chunk in enumerate(chunks):  # 5 frames are 80 queries
        swaps = swap(model, "codec") if i % 2 == 0 else []
        found.append(mixed(chunk))
        undo(swaps)
    assert 0 < relative(torch.cat(found, -1), expected) < 1e-5
    for name, held in stock.state.items():
        for key, value in held.items():
            value, other = (t.nan_to_num().float() for t in (value, mixed.state[name][key]))
            assert float((other - value).norm()) <= 1e-5 * float(value.norm()), name


def test_batches_of_the_codec_and_the_backbone(make):
    model = make()
    latents, expected = torch.randn(2, 3, 8), package.Decoder(model, 2)
    expected = expected(latents)
    x = torch.randn(2, 3, 64)
    state = package.init_states(model.flow_lm, batch_size=2, sequence_length=9)
    with torch.no_grad():
        hidden = model.flow_lm.transformer(x, copy.deepcopy(state))
        swap(model)
        assert 0 < relative(package.Decoder(model, 2)(latents), expected) < 1e-5
        assert 0 < relative(model.flow_lm.transformer(x, copy.deepcopy(state)), hidden) < 1e-5


def test_padded_rows_run_the_stock_layers(make):
    model = make()
    state = package.init_states(model.flow_lm, batch_size=2, sequence_length=9)
    for held in state.values():
        held["pad"][1] = 2
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        expected = model.flow_lm.transformer(x, copy.deepcopy(state))
        swap(model)
        assert torch.equal(model.flow_lm.transformer(x, copy.deepcopy(state)), expected)


def test_a_full_cache_is_an_error(make):
    model = make()
    state = package.voice(model)
    swap(model)
    with pytest.raises(RuntimeError, match="room for 7 positions, and 8 are needed"):
        with torch.no_grad():
            model.flow_lm.transformer(torch.randn(1, 1, 64), state)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights(make, weights):
    model = make()
    state = package.voice(model)
    expected, _ = package.latents(model, state, 4)
    audio = package.Decoder(model)(expected.transpose(0, 1))
    swaps = swap(model, weights=weights)
    full = sum(s.memory_bytes for s in swaps)
    found, _ = package.latents(model, state, 4)
    # bfloat16 keeps 8 bits and int8 rows 7 of their largest: 0.4 % and more through four frames.
    assert 1e-4 < relative(found, expected) < 0.05
    assert 1e-4 < relative(package.Decoder(model)(expected.transpose(0, 1)), audio) < 0.05
    undo(swaps)
    assert full < sum(s.memory_bytes for s in swap(model))


@pytest.mark.parametrize("way", ["in place", "data", "replaced"])
def test_parameters_are_followed(make, way):
    model = make()
    state = package.voice(model)
    swap(model)
    package.speak(model, state)
    changed = [
        (model.flow_lm.flow_net.res_blocks[0].mlp[0], "weight"),
        (model.flow_lm.transformer.layers[0].linear1, "weight"),
        (model.mimi.decoder_transformer.transformer.layers[1].layer_scale_1, "scale"),
        (model.mimi.decoder.model[0].conv, "weight"),
        (model.mimi.decoder.model[2].convtr, "bias"),
        (model.mimi.upsample.convtr.convtr, "weight"),
    ]
    for module, name in changed:
        before = package.speak(model, state)
        own = getattr(module, name)
        with torch.no_grad():
            if way == "in place":
                own.mul_(1.5)
            elif way == "data" and name != "scale":
                own.data.mul_(1.5)
            else:
                setattr(module, name, nn.Parameter(own * 1.5))
        found = package.speak(model, state)
        plain = copy.deepcopy(model)
        for each in plain.modules():
            vars(each).pop("forward", None)
        assert relative(found, before) > 1e-4, module
        assert relative(found, package.speak(plain, state)) < 1e-5, module


def test_a_layer_put_in_later_is_heard(make):
    model = make()
    state = package.voice(model)
    swap(model)

    def doubled(own):
        """Of a subclass whose results are twice those of its base."""
        kind = type(own)
        other = copy.deepcopy(own)
        forward = {"forward": lambda self, x: 2 * kind.forward(self, x)}
        other.__class__ = type("Lora", (kind,), forward)
        return other

    for parent, name in (
        (model.flow_lm.transformer.layers[1], "linear2"),
        (model.flow_lm.flow_net, "input_proj"),
        (model.mimi.decoder.model[0], "conv"),
    ):
        setattr(parent, name, doubled(getattr(parent, name)))
        plain = copy.deepcopy(model)
        for each in plain.modules():
            vars(each).pop("forward", None)
        assert relative(package.speak(model, state), package.speak(plain, state)) < 1e-5


def test_a_convolution_put_in_later_is_followed(make):
    model = make()
    chunk = torch.randn(1, 2, 8)
    swap(model, "codec")
    before = package.Decoder(model)(chunk)
    new = copy.deepcopy(model.mimi.decoder.model[0].conv)
    new.weight.mul_(1.5)
    model.mimi.decoder.model[0].conv = new
    found = package.Decoder(model)(chunk)
    del model.mimi.decoder.forward
    assert relative(found, before) > 1e-3
    assert 0 < relative(found, package.Decoder(model)(chunk)) < 1e-5


def test_later_hooks_are_called(make):
    model = make()
    state = package.voice(model)
    swap(model)
    called = []
    for path in (
        "flow_lm.transformer.layers.0.linear1", "flow_lm.flow_net.cond_embed",
        "mimi.decoder.model.0", "mimi.decoder_transformer.transformer.layers.0",
    ):  # fmt: skip
        module = model.get_submodule(path)
        module.register_forward_hook(lambda m, args, out: called.append(m))
        package.speak(model, state)
        assert called.pop() is module
        called.clear()
        module._forward_hooks.clear()


def reasons(model):
    return {(s.part, s.reason) for s in swap(model) if s.reason}


def test_a_quantised_model_is_left_with_the_reason(make):
    from pocket_tts.quantization import RECOMMENDED_CONFIG, _apply_torch_ao

    model = make()
    _apply_torch_ao(model.flow_lm, RECOMMENDED_CONFIG)
    state = package.voice(model)
    expected = package.speak(model, state)
    found = reasons(model)
    assert {part for part, _ in found} == {"linears", "attention"}
    assert all("Linear stands where a torch.nn.Linear is expected" in why for _, why in found)
    assert relative(package.speak(model, state), expected) < 1e-5


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("flow_lm.flow_net.res_blocks.0", "head"),
        ("flow_lm.transformer.layers.0.norm1", "linears"),
        ("mimi.decoder_transformer.transformer.layers.1", "codec"),
        ("mimi.decoder.model.2", "codec"),
        ("mimi.upsample.convtr", "codec"),
    ],
)
@pytest.mark.parametrize("how", ["hook", "forward", "compiled"])
def test_what_listens_is_left_with_the_reason(make, path, part, how):
    model = make()
    module = model.get_submodule(path)
    if how == "hook":
        module.register_forward_hook(lambda *args: None)
    elif how == "forward":
        module.forward = type(module).forward.__get__(module)
    else:
        owner = model.get_submodule(path.rpartition(".")[0])
        owner.compile(backend="eager")
    found = [s for s in swap(model) if s.reason]
    assert part in {s.part for s in found}
    word = "compiled" if how == "compiled" else "hooks or a replaced forward"
    assert all(word in s.reason for s in found)
    assert all("forward" not in vars(m) for s in found for m in s.modules)


def test_other_models_are_left_with_the_reason(make):
    found = dict(reasons(make(flow="flow_matching")))
    assert "a head of 1 time is not known" in found["head"]
    assert "heads have 16 channels" in dict(reasons(make(num_heads=4)))["linears"]
    model = make()
    model.double()
    assert {part for part, _ in reasons(model)} == set(PARTS)
    model = make()
    model.mimi.decoder.model[0].pad_mode = "replicate"
    assert "another padding" in dict(reasons(model))["codec"]
    with pytest.raises(
        TypeError, match="expected a TTSModel of the package pocket-tts, got Linear"
    ):
        swap_parts(nn.Linear(1, 1), Choices())


def test_gradients_go_through_the_stock_layers(make):
    model = make()
    swap(model)
    state = package.init_states(model.flow_lm, batch_size=1, sequence_length=9)
    x = torch.randn(1, 2, 64)
    model.flow_lm.transformer.requires_grad_(True)(x, state).sum().backward()
    assert model.flow_lm.transformer.layers[0].linear1.weight.grad.abs().sum() > 0
    c, noise = torch.randn(1, 64), torch.randn(1, 8, requires_grad=True)
    times = torch.zeros(1, 1), torch.ones(1, 1)
    model.flow_lm.flow_net(c, *times, noise).sum().backward()
    assert noise.grad.abs().sum() > 0
