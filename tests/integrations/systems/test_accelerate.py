"""`ardiff.accelerate` and `ardiff.restore` on whole models of every system."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ardiff
from ardiff.integrations import vibevoice
from benchmarks import systems_mar, systems_nextstep
from tests.integrations._support import tiny_transformers as tiny
from tests.integrations.systems.test_decoder_layers import language_model, say, worst


def _vibevoice():
    model = tiny.vibevoice(32)
    frames = [5, 7]

    def run():
        latents, audio = tiny.speak(
            model, [[5, 6, 7, 2], [9, 2]], frames, noise_scheduler=tiny.cosine()
        )
        return torch.cat([t.flatten() for t in (*latents, *audio)])

    return model, run


def _pocket_tts():
    model = tiny.pocket_tts()
    return model, lambda: torch.cat(tiny.say(model, [[5, 6, 7], [9]], 6))


def _mar():
    model = systems_mar.build("tiny", "float32", 0)
    return model, lambda: systems_mar.generate(model, "tiny", 0)["latents"]


def _nextstep():
    model = systems_nextstep.build("tiny", "float32", 0)
    return model, lambda: systems_nextstep.generate(model, "tiny", 0)["tokens"]


def _language_model():
    model = language_model()
    return model, lambda: say(model)[1]


SYSTEMS = {
    "VibeVoice": (_vibevoice, ["attention", "codec", "head", "linears"]),
    "Pocket-TTS": (_pocket_tts, ["head", "linears"]),  # heads of 8 channels
    "MAR": (_mar, ["attention", "head"]),
    "NextStep": (_nextstep, ["attention", "head", "linears"]),
    "Qwen2ForCausalLM": (_language_model, ["attention", "linears"]),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_outputs_are_the_models_and_restore_gives_its_bits(name):
    make, parts = SYSTEMS[name]
    model, run = make()
    before = {key: dict(vars(module)) for key, module in model.named_modules()}
    expected = run()
    report = ardiff.accelerate(model)
    assert report.system == name
    assert set(parts) <= set(report.replaced)
    found = run()
    assert worst(found, expected) < 1e-4
    assert not torch.equal(found, expected)  # another way was taken
    ardiff.restore(model)
    assert torch.equal(run(), expected)
    after = {key: dict(vars(module)) for key, module in model.named_modules()}
    assert {k: set(v) for k, v in after.items()} == {k: set(v) for k, v in before.items()}
    ardiff.restore(model)  # again, which does nothing


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_part_alone(name):
    make, parts = SYSTEMS[name]
    model, run = make()
    expected = run()
    for part in parts:
        report = ardiff.accelerate(model, parts=[part])
        assert report.replaced == [part]
        assert worst(run(), expected) < 1e-4
        ardiff.restore(model)
    assert torch.equal(run(), expected)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_profile_shows_the_share_of_each_part(name):
    make, parts = SYSTEMS[name]
    model, run = make()
    report = ardiff.accelerate(model)
    assert "not measured" in str(report)
    expected = run()
    ran = []
    report.profile(lambda: ran.append(run()))
    assert torch.equal(ran[0], expected)  # what is timed is what runs
    assert set(parts) <= set(report.seconds) and all(s > 0 for s in report.seconds.values())
    text = str(report)
    assert "not measured" not in text and "%" in text and "rest" in text
    first, second = text.splitlines()[0], text.splitlines()[1]
    assert type(model).__name__ in first and "MiB" in first
    assert second.split("  ")[0] == "part"


def test_options_of_the_head_are_reached_by_one_argument():
    model, run = _vibevoice()
    report = ardiff.accelerate(model, solver="dpmpp-2m", seed=3, sample_ids=[4, 9])
    assert report.head.sample_ids == (4, 9)
    one = run()
    torch.manual_seed(99)
    assert torch.equal(run(), one)  # noise has addresses
    ardiff.restore(model)
    picard = {"lookahead": 4, "mode": "picard", "tolerance": 0.05}
    ardiff.accelerate(model, **picard)
    ahead = run()
    ardiff.restore(model)
    ardiff.accelerate(model)
    assert 0 < worst(ahead, run()) < 0.2


def test_the_same_again_is_the_same_and_another_is_refused():
    model, _ = _vibevoice()
    report = ardiff.accelerate(model, weights="int8")
    assert ardiff.accelerate(model, weights="int8") is report
    with pytest.raises(RuntimeError, match=r"accelerated already.*ardiff.restore"):
        ardiff.accelerate(model)
    ardiff.restore(model)
    assert ardiff.accelerate(model) is not report


def test_a_head_that_was_accelerated_alone_is_left():
    model, run = _vibevoice()
    handle = vibevoice.accelerate(model, seed=5)
    report = ardiff.accelerate(model)
    left = next(swap for swap in report.swaps if swap.part == "head")
    assert "accelerated already" in left.reason and report.head is None
    run()
    ardiff.restore(model)
    assert vars(model)["_ardiff_accelerator"] is handle


def _untouched(model) -> bool:
    own = [name for m in model.modules() for name in vars(m) if name in ("forward", "sample")]
    return not own and not any(name.startswith("_ardiff") for name in vars(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parts": ["head", "lungs"]}, ValueError, "parts must be of head, linears"),
        ({"weights": "int4"}, ValueError, "weights must be None or one of float32"),
        ({"solver": "rtk-nothing"}, ValueError, "rtk-nothing"),
        ({"solver": "dpmpp-2m", "stages": 3}, ValueError, "stages"),
        ({"parts": ["linears"], "seed": 3}, ValueError, "needs the part head"),
        ({"sample_ids": [1]}, ValueError, "sample_ids"),
        ({"lookahead": 0}, ValueError, "lookahead"),
    ],
)
def test_bad_options_are_refused_before_anything_is_replaced(options, error, message):
    model, _ = _vibevoice()
    with pytest.raises(error, match=message):
        ardiff.accelerate(model, **options)
    assert _untouched(model)


def test_an_option_that_the_systems_head_does_not_take():
    model, _ = _pocket_tts()
    with pytest.raises(TypeError, match=r"Pocket-TTS takes no 'solver'; it takes: .*seed"):
        ardiff.accelerate(model, solver="ddim")
    assert _untouched(model)


def test_models_of_which_nothing_is_known():
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Conv1d(1, 1, 1)), object.__new__(nn.Module)):
        if not hasattr(model, "_modules"):
            nn.Module.__init__(model)
        with pytest.raises(TypeError, match=r"nothing of \w+ is known; expected VibeVoice"):
            ardiff.accelerate(model)
        assert _untouched(model)
    with pytest.raises(TypeError, match="no head that is known"):
        ardiff.accelerate(language_model(), seed=3)


def test_a_head_with_hooks_is_left_and_the_rest_replaced():
    model, run = _vibevoice()
    expected, seen = run(), []
    model.model.diffusion_head.layers[0].register_forward_hook(lambda *a: seen.append(1))
    report = ardiff.accelerate(model)
    left = next(swap for swap in report.swaps if swap.part == "head")
    assert "hooks" in left.reason and not left.after
    assert "hooks" in str(report)
    assert worst(run(), expected) < 1e-4 and seen
