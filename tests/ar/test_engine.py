"""AREngine: one call of everything a step, streams, blocks, orders, callbacks, errors."""
# ruff: noqa: E501  (a case a line)

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch

import ardiff
from ardiff.ar.engine import AREngine
from ardiff.heads.fused import FusedHead
from ardiff.models.image_model import ARModel, ModelConfig
from ardiff.models.patchify import unpatchify
from ardiff.tables.table import StepTable
from tests._support.engine_oracle import (
    PLACES,
    SOLVER,
    WIDTH,
    D,
    draw_alone,
    prompt_of,
    tiny_model,
)
from tests._support.small_models import small_model

TOLERANCE = 1e-3  # see test_engine_events.py


def drain(engine: AREngine) -> dict:
    while engine.step():
        pass
    return {found.request: found for found in engine.collect()}


def check(found, expected, bits: bool) -> None:
    assert found.places == expected.places and found.stopped == expected.stopped
    error = (found.patches - expected.patches).abs().max()
    assert error == 0 if bits else error <= TOLERANCE


@pytest.mark.parametrize("bits", [True, False], ids=["batch-invariant", "rounding"])
@pytest.mark.parametrize(
    "options",
    [
        {"block": 3},
        {"block": 4, "kv_heads": 1, "heads": 2, "window": 6},
        {
            "block": 2,
            "places": 0,
            "position": "learned",
            "norm": "layer",
            "mlp": "gelu",
            "head_dim": 32,
        },
        {"position": "none", "qk_norm": True},
    ],
    ids=["block-3", "block-4-window", "block-2-learned", "no-position"],
)
def test_blocks_and_features(options, bits):
    """Several patches per step, with a last block that is not full; orders; streams with guidance.

    The oracle without a cache encodes each prefix anew under a block-causal mask.
    """
    options = {"width": WIDTH, "head_dim": 32, **options}
    model = tiny_model(**options)
    engine = AREngine(model, SOLVER, 3, rows=5, capacity=24, block_size=4, batch_invariant=bits)
    orders = [None, None] if model.place is None else [[4, 1, 7, 0, 2], [6, 5, 4, 3, 2, 1, 0]]
    cases = [
        {"prompt": prompt_of(3), "patches": 7},
        {"prompt": None, "patches": 5, "order": orders[0], "guidance": 2.0, "uncond": prompt_of(2)},
        {"prompt": prompt_of(4), "patches": 7, "order": orders[1], "seed": 5, "steps": 5},
        {"prompt": prompt_of(1), "patches": 1, "guidance": 1.5, "temperature": 0.5},
    ]
    ids = [
        engine.submit(
            c["prompt"],
            c["patches"],
            sample_id=9,
            **{"seed": 0} | {k: v for k, v in c.items() if k not in ("prompt", "patches")},
        )
        for c in cases
    ]
    found = drain(engine)
    for i, case in zip(ids, cases, strict=True):
        check(found[i], draw_alone(model, cached=bits, sample_id=9, **case), bits)


@pytest.mark.parametrize("solver", ["rtk-uld", "rtk-mala", "dpmpp-2m-sde"])
def test_seeds_steps_and_temperatures_of_each_request(solver):
    """Any mix in one run, to the bit what each draws in an engine of its own."""
    model = tiny_model()
    cases = [
        {"seed": s, "steps": n, "temperature": t}
        for s, n, t in ((1, 9, 1.0), (2, 13, 0.5), (1, 13, 1.0), (-3, 9, 0.0))
    ]
    together = AREngine(model, solver, 9, rows=4, capacity=8, batch_invariant=True)
    ids = [together.submit(None, 2, sample_id=4, **case) for case in cases]
    found = drain(together)
    assert len({tuple(found[i].patches.flatten().tolist()) for i in ids}) == 4
    for i, case in zip(ids, cases, strict=True):
        alone = AREngine(model, solver, 9, rows=1, capacity=8, batch_invariant=True)
        alone.submit(None, 2, sample_id=4, **case)
        assert torch.equal(drain(alone)[0].patches, found[i].patches)


def test_a_shipped_model_draws_the_images_of_the_sampler():
    model = ardiff.load("sun-shadow")
    expected = ardiff.ARSampler(model, steps=24).sample(5, seed=3).images
    engine = AREngine(model, steps=24, rows=3, capacity=4)
    ids = [engine.submit(None, 4, seed=3, sample_id=i) for i in range(5)]
    found = drain(engine)
    patches = torch.stack([found[i].patches for i in ids])
    assert (unpatchify(patches, 16, 3) - expected).abs().max() <= 1e-4


def test_guidance_by_a_null_context_needs_no_second_stream():
    config = ModelConfig(
        8, 4, context_width=64, context_heads=2, head_width=20, head_depth=2, null_context=True
    )
    model = small_model(config)
    options = {"guidance": 2.0, "guidance_schedule": "linear"}
    expected = ardiff.ARSampler(model, "ddpm", 9, **options).sample(2, seed=1).images
    engine = AREngine(model, "ddpm", 9, rows=3, capacity=4)
    ids = [engine.submit(None, 4, seed=1, sample_id=i, **options) for i in range(2)]
    plain = engine.submit(None, 4, seed=1, sample_id=0)
    assert engine.step() == 3 and engine.free_rows == 0
    found = drain(engine)
    images = unpatchify(torch.stack([found[i].patches for i in ids]), 4, 3)
    assert (images - expected).abs().max() <= 1e-4
    unguided = ardiff.ARSampler(model, "ddpm", 9).sample(1, seed=1).images
    assert (unpatchify(found[plain].patches[None], 4, 3) - unguided).abs().max() <= 1e-4


def test_a_step_is_one_call_of_encoder_and_head(monkeypatch):
    """Six requests, seven streams, three seeds: one append, and the conditions are hoisted at once."""
    model, calls = tiny_model(), []
    append, hoist = model.encoder.append, FusedHead.hoist_guided
    monkeypatch.setattr(
        model.encoder,
        "append",
        lambda x, *a, **k: calls.append(("append", len(x))) or append(x, *a, **k),
    )
    monkeypatch.setattr(
        FusedHead,
        "hoist_guided",
        lambda self, levels, cs: calls.append(("hoist", *map(len, cs))) or hoist(self, levels, cs),
    )
    engine = AREngine(model, SOLVER, 3, rows=7, capacity=8)
    for i in range(6):
        engine.submit(
            prompt_of(i), 2, seed=i % 3, steps=3 + i % 2, guidance=2.0 if i == 2 else None
        )
    assert engine.step() == 6
    assert calls == [("append", 7), ("hoist", 6, 6)]


def test_patches_stream_and_requests_join_and_leave():
    model, seen = tiny_model(), []
    engine = AREngine(model, SOLVER, 3, rows=2, capacity=16)
    order = [5, 0, 3]
    first = engine.submit(prompt_of(2), 3, order=order, on_patch=seen.append, seed=0)
    second = engine.submit(None, 5, seed=0)
    third = engine.submit(None, 1, seed=0)
    assert [engine.step() for _ in range(3)] == [2, 2, 2]
    assert (engine.running, engine.waiting) == (1, 1)
    (done,) = engine.collect()
    assert done.request == first and [p.place for p in seen] == order == done.places
    assert [p.index for p in seen] == [0, 1, 2] and {p.request for p in seen} == {first}
    assert torch.equal(torch.stack([p.values for p in seen]), done.patches)
    assert engine.step() == 2 and [f.request for f in engine.collect()] == [third]
    assert engine.cancel(second) and not engine.cancel(second) and not engine.cancel(first)
    assert engine.step() == 0 and engine.collect() == [] and engine.free_rows == 2


def test_stop_within_a_block():
    engine = AREngine(tiny_model(block=3), SOLVER, 3, rows=1, capacity=16)
    engine.submit(None, 7, stop=lambda patch: patch.index == 4, seed=0)
    engine.submit(None, 3, stop=lambda patch: patch.index == 2, seed=0)
    found = drain(engine)
    assert (
        found[0].places == [0, 1, 2, 3, 4] and found[0].patches.shape == (5, D) and found[0].stopped
    )
    assert not found[1].stopped


def test_a_callback_may_cancel_its_own_request_or_another():
    engine = AREngine(tiny_model(), SOLVER, 3, rows=3, capacity=16)
    ids = [
        engine.submit(None, 3, on_patch=lambda patch: engine.cancel(patch.request), seed=0),
        engine.submit(None, 3, on_patch=lambda patch: engine.cancel(ids[2]), seed=0),
        engine.submit(None, 3, seed=0),
    ]
    assert list(drain(engine)) == [ids[1]] and engine.free_rows == 3


def test_a_callback_that_raises_ends_its_own_request_alone():
    engine = AREngine(tiny_model(), SOLVER, 3, rows=3, capacity=16)

    def fail(patch):
        raise ZeroDivisionError(f"at {patch.index}")

    engine.submit(None, 2, seed=0)
    engine.submit(None, 2, on_patch=fail, seed=0)
    engine.submit(None, 2, seed=0)
    with pytest.raises(ZeroDivisionError, match="at 0"):
        engine.step()
    assert engine.free_rows == 1 and list(drain(engine)) == [0, 2] and engine.free_rows == 3


@pytest.mark.parametrize("where", ["denoiser", "append", "prefill"])
def test_a_model_that_raises_leaves_the_requests_where_they_were(where, monkeypatch):
    model = tiny_model()
    engine = AREngine(model, SOLVER, 3, rows=3, capacity=16, batch_invariant=True)

    def submit(to):
        return [to.submit(prompt_of(n), 3, sample_id=n, seed=0, guidance=2.0) for n in (2, 3)]

    submit(engine)
    if where != "prefill":
        engine.step()
    owner, name = (FusedHead, "hoist_guided") if where == "denoiser" else (model.encoder, where)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(owner, name, lambda *a, **k: 1 / 0)
        engine.step()
    other = AREngine(model, SOLVER, 3, rows=3, capacity=16, batch_invariant=True)
    submit(other)
    found, expected = drain(engine), drain(other)
    assert all(torch.equal(found[i].patches, expected[i].patches) for i in (0, 1))
    assert engine.free_rows == 3


def test_memory_is_planned_and_reported_before_it_is_taken(caplog):
    model = tiny_model(head_dim=32)
    with caplog.at_level(logging.INFO, "ardiff.ar.engine"):
        engine = AREngine(
            model, SOLVER, 3, rows=3, capacity=20, block_size=8, cache_dtype=torch.int8
        )
    assert engine.plan.memory_bytes == 2 * 9 * 8 * (32 + 4)
    assert (
        f"takes {engine.plan.memory_bytes} bytes" in caplog.text and "9 blocks of 8" in caplog.text
    )
    engine.submit(prompt_of(3), 2, seed=0)
    assert drain(engine)[0].patches.isfinite().all()
    caplog.clear()
    with (
        caplog.at_level(logging.INFO, "ardiff.ar.engine"),
        pytest.raises(MemoryError, match="allowed by limit"),
    ):
        AREngine(model, SOLVER, 3, rows=3, capacity=20, limit=100)
    assert "takes 15360 bytes" in caplog.text


@pytest.mark.parametrize("options", [{}, {"block": 3, "window": 4}], ids=["one", "block-3-window"])
@pytest.mark.parametrize("prompt", [None, prompt_of(4)], ids=["no-prompt", "prompt"])
def test_contexts_for_training_are_those_of_sampling(options, prompt, monkeypatch):
    model, seen = tiny_model(**options), []
    hoist = FusedHead.hoist_guided
    monkeypatch.setattr(
        FusedHead,
        "hoist_guided",
        lambda self, levels, cs: seen.extend(cs) or hoist(self, levels, cs),
    )
    engine, order = AREngine(model, SOLVER, 3, rows=1, capacity=16), [3, 0, 5, 1, 7, 2, 4]
    engine.submit(prompt, 7, order=order, seed=0)
    (found,) = drain(engine).values()
    given = None if prompt is None else prompt[None]
    contexts = model.contexts(found.patches[None], torch.tensor([order]), given)[0]
    assert (contexts - torch.cat(seen)).abs().max() <= 1e-5
    raster = model.contexts(found.patches[None], None, given)[0]
    assert (contexts - raster).abs().max() > 1e-2


def test_orders_matter_and_places_address_the_noise():
    """The control of the tests with orders: another order gives other patches."""
    engine = AREngine(tiny_model(), SOLVER, 3, rows=3, capacity=16)
    for order in (None, [1, 0, 2], list(range(PLACES))[:3]):
        engine.submit(None, 3, sample_id=1, order=order, seed=0)
    found = drain(engine)
    assert torch.allclose(found[0].patches, found[2].patches, atol=1e-5)
    assert (found[0].patches[0] - found[1].patches[1]).abs().max() > 1e-2


def test_the_callers_model_is_left_as_it_was():
    """An engine samples from a copy: training goes on with the original."""
    model = ARModel(
        ModelConfig(image_size=8, patch_size=4, context_width=64, context_heads=2)
    ).train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    engine = AREngine(model, "ddpm", 5, rows=1, capacity=4)
    engine.submit(None, 1, seed=0)
    engine.step()
    assert all(p.requires_grad for p in model.parameters()) and model.head.training
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_a_hook_added_between_steps_is_called():
    model, calls = tiny_model(), []
    engine = AREngine(model, SOLVER, 3, rows=1, capacity=8)
    engine.submit(None, 3, seed=0)
    engine.step()
    hook = model.denoiser.input_proj.register_forward_hook(lambda *_: calls.append(1))
    engine.step()
    assert len(calls) == 3
    hook.remove()
    engine.step()
    assert len(calls) == 3
    (found,) = engine.collect()
    check(found, draw_alone(model, None, 3, cached=False), bits=False)


def test_a_callback_must_not_step_and_may_change_its_values():
    engine = AREngine(tiny_model(), SOLVER, 3, rows=1, capacity=12)
    engine.submit(None, 2, on_patch=lambda patch: patch.values.zero_(), seed=0)
    while engine.step():
        pass
    (changed,) = engine.collect()
    engine.submit(None, 2, sample_id=0, seed=0)
    while engine.step():
        pass
    assert torch.equal(engine.collect()[0].patches, changed.patches)
    engine.submit(None, 1, on_patch=lambda patch: engine.step(), seed=0)
    with pytest.raises(RuntimeError, match="may submit, fork and cancel, but not step"):
        engine.step()


def tables() -> int:
    gc.collect()
    return sum(type(each) is StepTable for each in gc.get_objects())


def test_tables_of_many_steps_are_not_kept_for_good():
    """Those of cancelled and of finished requests, of which 64 may stay; a refused one has none."""
    engine, before = AREngine(tiny_model(), "ddim", 4, rows=1, capacity=12), tables()
    for steps in range(5, 85):
        engine.cancel(engine.submit(None, 2, steps=steps))
    assert tables() <= before + 64
    for steps in range(1, 68):
        engine.submit(None, 1, steps=steps)
    done = drain(engine)
    assert len(done) == 67 and tables() <= before + 2 * 64
    del engine
    assert tables() <= before + 64
    engine, before = AREngine(tiny_model(), "ddim", 4, rows=1, capacity=12), tables()
    with pytest.raises(ValueError, match="needs 40 tokens"):
        engine.submit(prompt_of(32), 8, steps=999)
    assert tables() == before


def test_models_are_freed_with_their_samplers():
    """Without guidance and with it, float32 and packed anew; an `AREngine` has a copy."""
    gone = []
    for weights in ("float32", "int8"):
        model = small_model()
        sampler = ardiff.ARSampler(model, "ddim", 3, weights=weights)
        sampler.sample(2, seed=0)
        engine = AREngine(model, "ddim", 3, rows=1, capacity=4, weights=weights)
        engine.submit(None, 2, seed=0)
        drain(engine)
        gone += [weakref.ref(each) for each in (model, model.head, engine.model.head)]
        del model, sampler, engine
    gc.collect()
    assert [ref() for ref in gone] == [None] * 6
