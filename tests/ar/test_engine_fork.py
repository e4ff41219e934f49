"""AREngine: continuations share what they have in common, and draw what they would draw alone."""

# ruff: noqa: E501  (a case a line)
from __future__ import annotations

import gc

import pytest
import torch

from ardiff.ar.block_pool import BlockPool
from ardiff.ar.engine import AREngine
from tests._support.engine_oracle import SOLVER, D, draw_alone, prompt_of, tiny_model
from tests.ar.test_engine import check, drain

SIZE = 4
GUIDANCE = {
    "alone": {},
    "two": {"guidance": 2.0, "uncond": prompt_of(5)},
    "three": {"guidance": 2.5, "uncond": prompt_of(3), "guidance2": 1.5, "uncond2": prompt_of(9)},
}


def engine_of(model, **options) -> AREngine:
    options = {"rows": 24, "capacity": 24, "block_size": SIZE, "batch_invariant": True, **options}
    return AREngine(model, SOLVER, 3, **options)


def used(engine: AREngine) -> int:
    return engine.plan.blocks - engine.free_blocks


def prompts_of(prompt: int, guidance: dict) -> list[int]:
    """Tokens of the prompts of all streams."""
    others = [guidance.get("uncond"), guidance.get("uncond2")]
    return [prompt, *(len(other) for other in others if other is not None)]


@pytest.mark.parametrize("copies", [True, False], ids=["copy-on-write", "control"])
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("prompt", [6, 8], ids=["inside-a-block", "whole-blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_continuations_of_one_prompt(dtype, prompt, guidance, copies, monkeypatch):
    """The bits of separate requests and the memory of one prompt and N tails, while the first one
    is cancelled and another stops. Without copies before writes the bits are others."""
    n, patches, options = 6, 6, GUIDANCE[guidance]
    if not copies:
        monkeypatch.setattr(BlockPool, "shared", lambda self, written: [])
    model, ends = tiny_model(), lambda patch: patch.request == 3 and patch.index == 2
    both = [engine_of(model, cache_dtype=dtype, share_prompts=s) for s in (True, False)]
    together, separate = both
    first = together.submit(prompt_of(prompt), patches, seed=5, stop=ends, **options)
    assert together.fork(first, n - 1) == list(range(1, n))
    for _ in range(n):
        separate.submit(prompt_of(prompt), patches, seed=5, stop=ends, **options)
    lengths = prompts_of(prompt, options)
    for engine in both:
        assert engine.step() == n
    if copies:
        tails = n * sum(-(-(m + patches) // SIZE) - m // SIZE for m in lengths)
        assert used(together) == sum(m // SIZE for m in lengths) + tails
        assert used(separate) == n * sum(-(-(m + patches) // SIZE) for m in lengths)
    for engine in both:
        engine.step()
        assert engine.cancel(first)
    found, expected = (drain(engine) for engine in both)
    assert list(found) == list(expected) == [3, 1, 2, 4, 5] and found[3].stopped
    same = [torch.equal(found[i].patches, expected[i].patches) for i in found]
    # Prompts of whole blocks share no block that is written.
    assert all(same) == (copies or all(m % SIZE == 0 for m in lengths))
    assert not used(together) and not any(together._cache._pool.holders)


@pytest.mark.parametrize("null", [False, True], ids=["", "null"])
@pytest.mark.parametrize("block", [1, 3])
def test_forks_of_a_running_request_go_on_from_its_patches(block, null):
    """Of a fork too, with a seed and ids of their own; each as a loop with these for each patch."""
    model = tiny_model(block)
    if null:
        model.null = torch.nn.Parameter(torch.ones(model.encoder.config.width), False)
    case = {"prompt": prompt_of(5), "patches": 7, "guidance": 2.0, "order": [5, 2, 7, 1, 0, 3, 6]}
    engine = engine_of(model)
    prompt, patches = case["prompt"], case["patches"]
    first = engine.submit(seed=3, sample_id=40, **case)
    engine.step()
    second, third = engine.fork(first, 2)
    engine.step()
    (fourth,) = engine.fork(second, seed=8, sample_ids=[40])
    found = drain(engine)
    at = [block, 2 * block]
    noise = {
        first: [(3, 40)] * 7,
        second: [(3, 40)] * at[0] + [(3, second)] * 7,
        third: [(3, 40)] * at[0] + [(3, third)] * 7,
        fourth: [(3, 40)] * at[0] + [(3, second)] * (at[1] - at[0]) + [(8, 40)] * 7,
    }
    assert {tuple(f.patches.shape) for f in found.values()} == {(patches, D)}
    for i, addresses in noise.items():
        case = {**case, "prompt": prompt, "noise": addresses[:patches]}
        check(found[i], draw_alone(model, cached=True, **case), bits=True)
        wrong = draw_alone(model, cached=True, **{**case, "noise": [(3, 41)] * patches})
        assert not torch.equal(found[i].patches[-1], wrong.patches[-1])


def test_a_fork_counts_what_it_shares():
    """5 tokens of prompt and 6 of steps are 2 full blocks and a part; 20 in all are 5 blocks."""
    model = tiny_model(places=0)
    engine = engine_of(model, rows=4, blocks=13)
    first = engine.submit(prompt_of(5), 15, seed=0)
    for _ in range(6):
        engine.step()
    assert used(engine) == 5
    engine.fork(first, 3)
    # Two forks of 3 blocks fit beside it; the last waits although a row is free.
    assert engine.step() == 3 and used(engine) == 11
    assert (engine.waiting, engine.free_rows) == (1, 1)
    engine.cancel(first)
    assert used(engine) == 8  # the two shared blocks have other holders
    assert engine.step() == 3 and used(engine) == 11
    found = drain(engine)
    for i in (1, 2, 3):
        case = {"prompt": prompt_of(5), "patches": 15, "noise": [(0, 0)] * 6 + [(0, i)] * 9}
        check(found[i], draw_alone(model, cached=True, **case), bits=True)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("block", [1, 2])
def test_what_no_one_holds_any_more_is_taken_in_again(block, guidance):
    """The request is cancelled before its forks have rows; these share what the first takes in."""
    model = tiny_model(block)
    engine = engine_of(model)
    case = {"prompt": prompt_of(5), "patches": 8, **GUIDANCE[guidance]}
    first = engine.submit(seed=1, **case)
    engine.step()
    engine.step()
    forks = engine.fork(first, 2)
    engine.cancel(first)
    assert not used(engine)
    assert engine.step() == 2 * block
    steps, lengths = -(-8 // block), prompts_of(5, GUIDANCE[guidance])
    whole = [-(-(m + steps * block) // SIZE) for m in lengths]
    shared = [(m + 2 * block) // SIZE for m in lengths]
    assert used(engine) == 2 * sum(whole) - sum(shared)
    found = drain(engine)
    for i in forks:
        noise = [(1, first)] * (2 * block) + [(1, i)] * (8 - 2 * block)
        check(found[i], draw_alone(model, cached=True, noise=noise, **case), bits=True)


def test_equal_prompts_are_found_and_taken_in_once(monkeypatch):
    """In a later step, in another stream, from a buffer that is used again; not near ones, and
    not by a prompt that no request has any more."""
    model, calls = tiny_model(), []
    prefill = model.encoder.prefill
    monkeypatch.setattr(
        model.encoder,
        "prefill",
        lambda x, cache, rows, count: calls.append(count) or prefill(x, cache, rows, count),
    )
    engine = engine_of(model)
    buffer = prompt_of(6).clone()
    engine.submit(buffer, 3, seed=0, guidance=2.0, uncond=prompt_of(5))
    engine.submit(buffer, 3, seed=0)
    engine.step()
    engine.submit(prompt_of(5), 3, seed=0, guidance=2.0, uncond=buffer)
    engine.step()
    buffer[5, 0] += 1e-6
    engine.submit(buffer, 3, seed=0)
    engine.submit(buffer.flip(0), 3, seed=0)  # the same numbers in another order
    engine.step()
    assert [sorted(count) for count in calls] == [[5, 6], [6, 6]]
    drain(engine)
    engine.submit(prompt_of(5), 3, seed=0)
    engine.step()
    assert calls[2:] == [[5]]
    drain(engine)
    gc.collect()
    assert not engine._prompts._known
    apart = engine_of(model, share_prompts=False)
    for _ in range(2):
        apart.submit(prompt_of(5), 3, seed=0)
    apart.step()
    assert calls[3:] == [[5, 5]]


def test_a_contiguous_cache_copies_the_row():
    model = tiny_model()
    engine = engine_of(model, block_size=None, rows=3)
    first = engine.submit(prompt_of(5), 4, seed=0)
    engine.step()
    forks = engine.fork(first, 2)
    engine.step()
    assert engine.free_blocks == 0
    found = drain(engine)
    for i in forks:
        noise = [(0, first)] + [(0, i)] * 3
        check(found[i], draw_alone(model, prompt_of(5), 4, cached=True, noise=noise), bits=True)


def test_callbacks_fork_and_are_called_for_the_forks():
    """A request that branches at its second patch; the forks' own patches are reported once."""
    model, seen, forks = tiny_model(), [], []
    engine = engine_of(model)

    def branch(patch) -> None:
        seen.append((patch.request, patch.index))
        if patch.request == 0 and patch.index == 1:
            forks.extend(engine.fork(0, 2))

    engine.submit(prompt_of(2), 3, on_patch=branch, seed=0)
    found = drain(engine)
    assert forks == [1, 2] and seen == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    for i in (1, 2):
        assert torch.equal(found[i].patches[:2], found[0].patches[:2])
        assert not torch.equal(found[i].patches[2], found[0].patches[2])


def test_a_model_that_raises_leaves_the_forks_waiting(monkeypatch):
    model = tiny_model()
    engine = engine_of(model)
    first = engine.submit(prompt_of(5), 3, seed=0)
    engine.step()
    engine.fork(first, 2)
    engine.cancel(first)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(model.encoder, "append", lambda *a, **k: 1 / 0)
        engine.step()
    assert (engine.waiting, engine.running, used(engine)) == (2, 0, 0)
    found = drain(engine)
    for i in (1, 2):
        noise = [(0, 0)] + [(0, i)] * 2
        check(found[i], draw_alone(model, prompt_of(5), 3, cached=True, noise=noise), bits=True)


def test_what_a_fork_refuses():
    engine = engine_of(tiny_model())
    first = engine.submit(prompt_of(2), 2, seed=0, sample_id=2)
    for options, message in (
        ({"n": 0}, f"n must lie in [1, {2**43}), got 0"),
        ({"n": 1.5}, "n must be an integer, got 1.5"),
        ({"seed": 2**63}, f"seed must lie in [{-(2**63)}, {2**63}), got {2**63}"),
        ({"sample_ids": [-1]}, f"sample_ids must lie in [0, {2**43}), got -1"),
        ({"sample_ids": ["a"]}, "sample_ids must be an integer, got 'a'"),
        ({"n": 2, "sample_ids": [7]}, "sample_ids must be 2 different integers, none of them the request's own 2, since equal ones with one seed draw equal patches; got [7]"),
        ({"n": 2, "sample_ids": [7, 7], "seed": 1}, "sample_ids must be 2 different integers, since equal ones with one seed draw equal patches; got [7, 7]"),
        ({"n": 2}, "sample_ids must be 2 different integers, none of them the request's own 2, since equal ones with one seed draw equal patches; got [1, 2]"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)) as error:
            engine.fork(first, **options)
        assert str(error.value) == message
    assert engine.fork(first) == [1] and engine.fork(first, seed=1, sample_ids=[2]) == [2]
    drain(engine)
    with pytest.raises(ValueError, match="request 0 is done or was cancelled: fork one that waits"):
        engine.fork(first)
    with pytest.raises(KeyError, match="no request 3; ids go from 0 to 2"):
        engine.fork(3)
    tried = []
    last = engine.submit(None, 1, seed=0, on_patch=lambda patch: tried.append(engine.fork(last)))
    with pytest.raises(ValueError, match="request 3 is done"):
        engine.step()
    assert not tried and not engine.waiting
