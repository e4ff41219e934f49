"""Streams of a language model in one pass: VibeVoice generates as it does without."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ardiff
from tests.integrations._support.tiny_transformers import (
    AUDIO,
    END,
    Script,
    cosine,
    speak,
    vibevoice,
    worst,
)  # fmt: skip

PROMPTS = [[5, 6, 7, 2], [9, 2]]
BEGIN = 2  # audio_bos


class Passes:
    """Counts passes over the layers of the language model, and the rows of each."""

    def __init__(self, model) -> None:
        self.rows: list[int] = []
        layer = model.model.language_model.layers[0]
        self.handle = layer.input_layernorm.register_forward_pre_hook(self._stock)
        self.handle.remove()
        own = layer.forward.__self__
        project = own.project

        def count(x):
            self.rows.append(len(x))
            return project(x)

        own.project = count

    def _stock(self, module, args) -> None:
        self.rows.append(args[0].shape[0] * args[0].shape[1])


def both(run):
    """What `run(model)` gives with a stock model and with an accelerated one, and the passes."""
    stock, ours = vibevoice(32), vibevoice(32)
    ardiff.accelerate(ours)
    passes = Passes(ours)
    return run(stock), run(ours), passes.rows


def test_three_streams_are_one_pass():
    """Of each token: what it is conditioned on, what guidance of the latent compares with, and
    what transformers' guidance of the token's logits does."""
    frames = 9
    stock, ours, rows = both(lambda m: speak(m, PROMPTS[:1], [frames], noise_scheduler=cosine()))
    assert worst(ours[0], stock[0]) < 1e-5
    assert worst(ours[1], stock[1]) < 1e-4
    # The prompt; the first token of each other stream, twice; then three rows at a time.
    assert rows[0] == len(PROMPTS[0])
    assert rows.count(3) >= frames - 3
    assert len(rows) < 3 * frames - frames


def test_samples_that_end_at_different_tokens():
    stock, ours, rows = both(lambda m: speak(m, PROMPTS, [5, 8], noise_scheduler=cosine()))
    assert worst(ours[0], stock[0]) < 1e-5
    assert max(rows[1:]) == 6


def test_without_guidance_there_are_two_streams():
    stock, ours, rows = both(
        lambda m: speak(m, PROMPTS[:1], [8], noise_scheduler=cosine(), guidance_scale=1.0)
    )
    assert worst(ours[0], stock[0]) < 1e-5
    assert max(rows[1:]) == 2


class Turns(Script):
    """Speech, a word of text and a new turn of speech: the negative stream begins anew."""

    said = (AUDIO, AUDIO, AUDIO, 7, BEGIN, AUDIO, AUDIO, AUDIO, BEGIN, AUDIO, AUDIO, END)

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, -1e9)
        scores[:, self.said[input_ids.shape[1] - self.prompt]] = 0
        return scores


def test_a_new_turn_begins_the_negative_stream_anew(monkeypatch):
    import tests.integrations._support.tiny_transformers as tiny

    monkeypatch.setattr(tiny, "Script", Turns)
    monkeypatch.setattr(  # the tokens that VibeVoice allows are those of speech alone
        "transformers.models.vibevoice.generation_vibevoice.VibeVoiceTokenConstraintProcessor"
        ".__call__",
        lambda self, ids, scores: scores,
    )
    stock, ours, rows = both(lambda m: speak(m, PROMPTS[:1], [12], noise_scheduler=cosine()))
    assert len(stock[0][0]) == 8
    assert worst(ours[0], stock[0]) < 1e-5
    assert rows.count(3) > 2


def test_caches_are_freed_after_a_generation():
    model = vibevoice(32)
    ardiff.accelerate(model)
    kept = []
    stock = type(model)._step_negative_branch

    def watch(*args, **kwargs):
        found = stock(model, *args, **kwargs)
        kept.append(weakref.ref(found[2]["past_key_values"]))
        return found

    ardiff.restore(model)
    ardiff.accelerate(model, parts=("linears", "attention"))
    model._step_negative_branch = watch
    speak(model, PROMPTS[:1], [6], noise_scheduler=cosine())
    gc.collect()
    assert len(kept) == 6
    assert all(ref() is None for ref in kept)


def test_threads_do_not_mix_their_streams():
    model = vibevoice(32)
    prompts = [[5, 6, 7, 2], [9, 2], [3, 8, 2]]

    def hidden(prompt):
        ids = torch.tensor([prompt])
        out = model.model.language_model(input_ids=ids, use_cache=True)
        found = [out.last_hidden_state[:, -1]]
        for token in range(20):
            for cache in [out.past_key_values]:
                x = torch.tensor([[token % 9 + 2]])
                step = model.model.language_model(input_ids=x, past_key_values=cache)
                found.append(step.last_hidden_state[:, -1])
        return torch.cat(found)

    with torch.no_grad():
        expected = [hidden(p) for p in prompts]
    ardiff.accelerate(model)

    def run(prompt):
        with torch.no_grad():
            return hidden(prompt)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, prompts * 4))
    for own, wanted in zip(found, expected * 4, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_latents_are_as_near_to_float64_as_the_model(dtype):
    """On the same noise, of a run of 6 tokens."""
    exact = speak(vibevoice(32).double(), PROMPTS[:1], [6], noise_scheduler=cosine())[0][0]
    stock = vibevoice(32).to(dtype)
    found = [speak(stock, PROMPTS[:1], [6], noise_scheduler=cosine())[0][0]]
    ardiff.accelerate(stock)
    found.append(speak(stock, PROMPTS[:1], [6], noise_scheduler=cosine())[0][0])
    errors = [float((f.double() - exact).square().mean().sqrt()) for f in found]
    assert errors[1] < 1.2 * errors[0]
