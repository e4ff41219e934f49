"""Both towers of VibeVoice's codec replaced in streaming use: the same numbers and caches."""

from __future__ import annotations

import pytest
import torch

from ardiff.integrations.systems.swaps import Choices
from ardiff.integrations.systems.vibevoice.swap import swap_codec
from tests.integrations._support.codec_towers import (
    KINDS,
    chunks,
    codec,
    error,
    stream,
    tower_of,
    twin,
)
from tests.integrations._support.tiny_transformers import speak, vibevoice, worst

SAME = 1e-5  # of float32


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls that the stock forward of a tower gets."""

    def count(tower):
        calls = []
        forward = type(tower).forward

        def counting(self, *args, **kwargs):
            if self is tower:
                calls.append(args)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(type(tower), "forward", counting)
        return calls

    return count


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_the_same_numbers_and_caches(kind, batch, counted):
    model = codec()
    tower = tower_of(model, kind)
    inputs, other = chunks(tower, batch), twin(tower)
    expected, states = stream(other, inputs)
    swap_codec(model, Choices())
    calls = counted(tower)
    found, kept = stream(tower, inputs)
    assert not calls
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert error(found, expected) < SAME
    assert list(kept) == list(states)
    for key, state in states.items():
        assert kept[key].shape == state.shape and kept[key].is_contiguous()
        assert error([kept[key]], [state]) < SAME, key


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_errs_as_stock_does(kind):
    model = codec(torch.bfloat16)
    tower = tower_of(model, kind)
    exact, plain = twin(tower, torch.float64), twin(tower)
    inputs = chunks(tower, 2, (1, 5, 2, 1, 5, 5))
    expected, _ = stream(exact, [x.double() for x in inputs])
    stock_error = error(stream(plain, inputs)[0], expected)
    swap_codec(model, Choices())
    found, _ = stream(tower, inputs)
    assert {t.dtype for t in found} == {torch.bfloat16}
    assert 1e-4 < error(found, expected) <= 1.1 * stock_error


@pytest.mark.parametrize(
    ("weights", "least", "most"), [("int8", 3e-3, 3e-2), ("bfloat16", 1e-3, 1e-2)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_weights_err_by_their_rounding(kind, weights, least, most):
    model = codec()
    tower = tower_of(model, kind)
    inputs = chunks(tower, tokens=(1, 1, 2))
    expected, _ = stream(twin(tower), inputs)
    swap_codec(model, Choices(weights=weights))
    found, _ = stream(tower, inputs)
    assert {t.dtype for t in found} == {torch.float32}
    assert least < error(found, expected) < most


@pytest.mark.parametrize("kind", KINDS)
def test_stock_and_ours_continue_the_streams_of_each_other(kind):
    model = codec()
    tower = tower_of(model, kind)
    plain = twin(tower)
    inputs = chunks(tower, 2)
    expected, _ = stream(plain, inputs)
    swap_codec(model, Choices())
    for order in ([plain, tower, plain, tower], [tower, plain, tower, plain]):
        assert error(stream(order, inputs)[0], expected) < SAME
    others, _ = stream(plain, inputs[1:])
    assert error(others, expected[1:]) > 1e-2  # the stream before a chunk matters


def test_restore_gives_the_stock_bits():
    model = codec()
    towers = [tower_of(model, kind) for kind in KINDS]
    before = [set(vars(tower)) for tower in towers]
    names = [list(tower.state_dict()) for tower in towers]
    expected = [stream(tower, chunks(tower))[0] for tower in towers]
    swaps = swap_codec(model, Choices())
    assert [list(tower.state_dict()) for tower in towers] == names
    found = [stream(tower, chunks(tower))[0] for tower in towers]
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(found, expected, strict=True))
    for swap in swaps:
        swap.restore()
    assert [set(vars(tower)) for tower in towers] == before
    for tower, results in zip(towers, expected, strict=True):
        assert all(map(torch.equal, stream(tower, chunks(tower))[0], results))


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_a_sample_depend_on_no_other_sample(kind):
    model = codec()
    tower = tower_of(model, kind)
    swap_codec(model, Choices(batch_invariant=True))
    inputs = chunks(tower, 3)
    together, _ = stream(tower, inputs)
    for i in range(3):
        alone, _ = stream(tower, [x[i : i + 1] for x in inputs])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


def test_what_a_swap_tells():
    model = codec(torch.bfloat16)
    decoder, encoder = swaps = swap_codec(model, Choices())
    assert [swap.part for swap in swaps] == ["codec", "codec"] and not decoder.reason
    assert decoder.modules == [tower_of(model, "decoder")]
    assert encoder.modules == [tower_of(model, "encoder")]
    assert decoder.before == (
        "acoustic decoder: 2 CausalConv1d, 6 ConvNext1dLayer, 3 CausalConvTranspose1d"
    )
    assert encoder.before == "semantic encoder: 5 CausalConv1d, 6 ConvNext1dLayer"
    assert "packed_linear, bfloat16 weights" in encoder.after
    halved = swap_codec(codec(torch.bfloat16), Choices(weights="int8"))
    assert 0.4 < halved[0].memory_bytes / decoder.memory_bytes < 0.9


def test_generate_gives_the_same_latents_and_audio():
    model = vibevoice()
    prompts, frames = [[5, 6, 7, 8, 2], [9, 10, 2]], [5, 3]
    latents, audio = speak(model, prompts, frames)
    swaps = swap_codec(model, Choices())
    assert not any(swap.reason for swap in swaps)
    found, spoken = speak(model, prompts, frames)
    assert worst(found, latents) < 1e-4
    assert worst(spoken, audio) < 1e-4 * max(float(a.abs().max()) for a in audio)
