"""AREngine: two and three streams of guidance in one call, and models in bfloat16."""

from __future__ import annotations

import pytest
import torch

from ardiff.ar import step as ar_step
from ardiff.ar.engine import AREngine
from ardiff.ar.patch_model import PatchModel
from ardiff.heads.fused import FusedHead
from tests._support.engine_oracle import SOLVER, WIDTH, draw_alone, prompt_of, tiny_model
from tests.ar.test_engine import check, drain

# Of every arity at once, streams of unequal lengths, seeds and schedules of their own.
CASES = [
    {"prompt": prompt_of(3), "patches": 4},
    {"prompt": prompt_of(5), "patches": 4, "guidance": 2.0, "uncond": prompt_of(2)},
    {
        "prompt": prompt_of(4),
        "patches": 5,
        "guidance": 2.5,
        "uncond": prompt_of(2, 1),
        "guidance2": 1.5,
        "uncond2": prompt_of(1, 2),
        "order": [4, 0, 7, 2, 6],
    },
    {
        "prompt": prompt_of(2),
        "patches": 4,
        "guidance": 1.5,
        "uncond": prompt_of(6),
        "guidance2": 0.5,
        "guidance_schedule": "linear",
        "seed": 5,
    },
    {
        "prompt": None,
        "patches": 4,
        "guidance": 3.0,
        "guidance2": -1.0,
        "uncond2": prompt_of(3, 3),
        "temperature": 0.5,
    },
]


def submit_all(engine: AREngine, cases: list[dict]) -> list[int]:
    return [
        engine.submit(
            case["prompt"],
            case["patches"],
            sample_id=9,
            **{"seed": 0} | {k: v for k, v in case.items() if k not in ("prompt", "patches")},
        )
        for case in cases
    ]


def model_of(block: int = 1, null: bool = False) -> PatchModel:
    model = tiny_model(block)
    if null:
        generator = torch.Generator().manual_seed(3)
        model.null = torch.nn.Parameter(torch.randn(WIDTH, generator=generator), False)
    return model


@pytest.mark.parametrize("bits", [True, False], ids=["batch-invariant", "rounding"])
@pytest.mark.parametrize("null", [False, True], ids=["", "null"])
@pytest.mark.parametrize("block", [1, 3])
def test_three_way_guidance_beside_others(block, null, bits):
    """Each as alone: a stream, prompt or weight of another request differs by far more.

    With `null`, contexts without a prompt of their own are the model's null context.
    """
    model = model_of(block, null)
    engine = AREngine(
        model, SOLVER, 3, rows=12, capacity=16, block_size=4, blocks=40, batch_invariant=bits
    )
    ids = submit_all(engine, CASES)
    engine.step()
    assert engine.free_rows == 12 - (1 + 2 + 3 + 3 + 3 - (2 if null else 0))
    found = drain(engine)
    for i, case in zip(ids, CASES, strict=True):
        check(found[i], draw_alone(model, cached=bits, sample_id=9, **case), bits)
    assert engine.free_rows == 12 and engine.free_blocks == 40


def test_the_second_weight_matters():
    """w2 = 1 is two-way guidance, and equal prompts make w2 void; another w2 changes patches."""
    model = model_of()

    def draw(**options) -> torch.Tensor:
        engine = AREngine(model, SOLVER, 3, rows=3, capacity=8)
        engine.submit(prompt_of(2), 2, guidance=2.0, uncond=prompt_of(3), **{"seed": 0, **options})
        return drain(engine)[0].patches

    two = draw()
    assert (draw(guidance2=1.0, uncond2=prompt_of(1)) - two).abs().max() < 1e-4
    assert (draw(guidance2=3.0, uncond2=prompt_of(3)) - two).abs().max() < 1e-4
    assert (draw(guidance2=3.0, uncond2=prompt_of(1)) - two).abs().max() > 1e-2


def test_three_streams_are_one_call_of_encoder_and_head(monkeypatch):
    model, calls = model_of(), []
    append, hoist = model.encoder.append, FusedHead.hoist_guided
    monkeypatch.setattr(
        model.encoder, "append", lambda x, *a, **k: calls.append(len(x)) or append(x, *a, **k)
    )
    monkeypatch.setattr(
        FusedHead,
        "hoist_guided",
        lambda self, levels, cs: calls.append([*map(len, cs)]) or hoist(self, levels, cs),
    )
    engine = AREngine(model, SOLVER, 3, rows=12, capacity=16)
    submit_all(engine, CASES)
    assert engine.step() == 5 and calls == [12, [5, 5, 5]]


# A context passes a handful of roundings of 2^-9 relative; patches of order 1 follow from it
# through affine steps, guidance up to 3 and the patches before: 16 of these roundings.
BFLOAT16 = 2.0**-5


@pytest.mark.parametrize("cache", [None, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("block", [1, 3])
def test_a_bfloat16_model_draws_the_patches_of_the_float32_one(block, cache):
    exact, rounded = model_of(block), model_of(block).bfloat16()
    engine = AREngine(rounded, SOLVER, 3, rows=12, capacity=16, cache_dtype=cache)
    assert engine.plan.dtype == (cache or torch.bfloat16)
    ids = submit_all(engine, CASES)
    found = drain(engine)
    errors, others = [], []
    for i, case in zip(ids, CASES, strict=True):
        assert found[i].patches.dtype == torch.float32
        expected = draw_alone(exact, cached=False, sample_id=9, **case)
        errors.append((found[i].patches - expected.patches).abs().max().item())
        wrong = draw_alone(exact, cached=False, sample_id=9, **case | {"prompt": prompt_of(7, 9)})
        others.append((found[i].patches - wrong.patches).abs().max().item())
    assert max(errors) < BFLOAT16 < min(others)


@pytest.mark.parametrize("block", [1, 3])
def test_a_bfloat16_model_is_batch_invariant(block):
    model = model_of(block, null=True).bfloat16()
    engine = AREngine(model, SOLVER, 3, rows=12, capacity=16, block_size=4, batch_invariant=True)
    ids = submit_all(engine, CASES)
    found = drain(engine)
    for i, case in zip(ids, CASES, strict=True):
        check(found[i], draw_alone(model, cached=True, sample_id=9, **case), bits=True)


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_a_bfloat16_encoder_beside_a_float32_head(plain):
    """A backbone of a checkpoint in bfloat16 with a head that was not rounded; one that runs as a
    plain module sees float32."""
    exact, model = model_of(), model_of()
    head = model.denoiser
    model.bfloat16()
    model.denoiser = head.float()
    head.load_state_dict(exact.denoiser.state_dict())
    if plain:
        head.register_forward_hook(lambda *_: None)
    engine = AREngine(model, SOLVER, 3, rows=12, capacity=16)
    ids = submit_all(engine, CASES)
    found = drain(engine)
    for i, case in zip(ids, CASES, strict=True):
        expected = draw_alone(exact, cached=False, sample_id=9, **case)
        assert (found[i].patches - expected.patches).abs().max() < BFLOAT16


def test_a_prompt_may_change_once_it_is_submitted():
    """The engine has its own copy: a caller may reuse one buffer for all its requests."""
    model, buffers = model_of(), [prompt_of(n, n).clone() for n in (4, 2, 3)]
    expected = draw_alone(
        model, buffers[0].clone(), 3, cached=False, guidance=2.0, uncond=buffers[1].clone(),
        guidance2=1.5, uncond2=buffers[2].clone(),
    )  # fmt: skip
    engine = AREngine(model, SOLVER, 3, rows=3, capacity=8)
    engine.submit(
        buffers[0], 3, sample_id=0, guidance=2.0, uncond=buffers[1], guidance2=1.5,
        uncond2=buffers[2], seed=0,
    )  # fmt: skip
    for buffer in buffers:
        buffer.fill_(7.0)
    check(drain(engine)[0], expected, bits=False)


def test_a_block_counts_the_places_that_are_taken_in():
    """The last block's places become no tokens, whatever the encoder's positions are."""
    model = tiny_model(block=2, positions=5)
    engine = AREngine(model, SOLVER, 3, rows=1, capacity=8)
    case = {"prompt": prompt_of(1), "patches": 4, "order": [1, 0, 7, 2]}
    engine.submit(sample_id=9, **{"seed": 0, **case})
    check(drain(engine)[0], draw_alone(model, cached=False, sample_id=9, **case), bits=False)
    with pytest.raises(ValueError, match="reaches position 5, but the encoder has 5 positions"):
        engine.submit(prompt_of(1), 4, order=[1, 2, 7, 0], seed=0)
    with pytest.raises(ValueError, match="reaches position 10, but"):
        engine.submit(prompt_of(1), 5, order=[1, 0, 2, 7, 3], seed=0)


def test_the_schedules_kept_are_few(monkeypatch):
    """Those of combinations of steps; the one not used for longest goes first."""
    monkeypatch.setattr(ar_step, "_SCHEDULES", 2)
    solver, like = ar_step.PatchSolver(model_of(), SOLVER, {}), torch.zeros(2, 3)

    def schedule(*steps: int):
        found = solver._schedule(list(steps), like)[1]
        assert len(solver._schedules) <= 2
        return found

    first, second = schedule(1, 2), schedule(2, 1)
    assert schedule(1, 2) is first
    schedule(1, 3)
    assert schedule(1, 2) is first and schedule(2, 1) is not second
