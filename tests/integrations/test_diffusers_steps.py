"""Noise, ops and tensors of the schedulers' steps: seeds, ids, counts, dtypes and layouts."""

from __future__ import annotations

import pytest
import torch

from ardiff.integrations import diffusers as ours
from tests.integrations._support.diffusers_cases import SHAPE, STEPPED, Ops, loop, model, start

GENERATOR = torch.Generator()
SDE = {"algorithm_type": "sde-dpmsolver++"}


def make(kind, steps: int | None = 10, **config):
    scheduler = kind(**config)
    if steps:
        scheduler.set_timesteps(steps)
    return scheduler


def run(scheduler, steps: int = 10, seed: int = 0) -> torch.Tensor:
    x, _ = start(1)
    scheduler.set_timesteps(steps)
    return loop(scheduler, x, generator=torch.Generator().manual_seed(seed))


every = pytest.mark.parametrize("kind", STEPPED, ids=lambda kind: kind.__name__)


@every
def test_step_leaves_its_arguments(kind):
    scheduler, (x, _) = make(kind), start(1)
    for t in scheduler.timesteps:
        out = model(x, t)
        kept = x.clone(), out.clone()
        new = scheduler.step(out, t, x).prev_sample
        assert torch.equal(x, kept[0]) and torch.equal(out, kept[1])
        x = new


@every
def test_generators(kind):
    """Seeds are obeyed; a run draws anew from a generator that goes on."""
    config = SDE if "DPM" in kind.__name__ and "Multistep" in kind.__name__ else {}
    scheduler = make(kind, **config)
    assert torch.equal(run(scheduler, seed=1), run(scheduler, seed=1))
    assert not torch.equal(run(scheduler, seed=1), run(scheduler, seed=2))
    torch.manual_seed(5)
    x, _ = start(1)
    scheduler.set_timesteps(10)
    one = loop(scheduler, x)
    torch.manual_seed(5)
    scheduler.set_timesteps(10)
    assert torch.equal(loop(scheduler, x), one)
    scheduler.set_timesteps(10)
    assert not torch.equal(loop(scheduler, x), one)


DRAWN = [
    (ours.FusedDDPMScheduler, {}, True),
    (ours.FusedDDPMScheduler, {"variance_type": "learned"}, True),
    (ours.FusedDPMSolverMultistepScheduler, SDE, True),
    (ours.FusedDPMSolverMultistepScheduler, {}, False),
    *((ours.TableScheduler, {"solver": name}, False) for name in ("dpmpp-2m", "heun", "ddim")),
]


@pytest.mark.parametrize(("kind", "config", "given"), DRAWN)
def test_nothing_is_drawn_that_is_not_used(kind, config, given):
    """With variance_noise, and by deterministic solvers, torch's generators stay as they are.

    Control: a step that draws moves them.
    """
    scheduler, (x, noises) = make(kind, 9, **config), start(9)
    own = torch.Generator().manual_seed(1)
    states = torch.get_rng_state(), own.get_state()
    width = 1 + (config.get("variance_type") == "learned")
    options = {"noises": noises} if given else {}
    for generator in (None, own):
        scheduler.set_timesteps(9)
        loop(scheduler, x, width=width, generator=generator, **options)
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(own.get_state(), states[1])
    if given:
        scheduler.set_timesteps(9)
        loop(scheduler, x, width=width)
        assert not torch.equal(torch.get_rng_state(), states[0])


@every
def test_a_row_does_not_depend_on_its_batch(kind):
    """With a generator per row, with ids and a generator, and with ids and a seed."""
    config = SDE if kind is ours.FusedDPMSolverMultistepScheduler else {}
    scheduler, (x, _) = make(kind, **config), start(1)
    generators = [torch.Generator().manual_seed(s) for s in (3, 1, 4)]
    scheduler.set_timesteps(10)
    batch = loop(scheduler, x, generator=generators)
    for seed, row, alone in zip((3, 1, 4), batch, x.split(1), strict=True):
        for wrap in (list, lambda pair: pair[0]):
            scheduler.set_timesteps(10)
            generator = wrap([torch.Generator().manual_seed(seed)])
            assert torch.equal(loop(scheduler, alone, generator=generator)[0], row)
    for seed in (None, 7):
        scheduler.seed = seed
        for ids, rows in (([5, 9, 2], x), ([9], x[1:2]), ([2, 5], x[[2, 0]])):
            scheduler.sample_ids = ids
            scheduler.set_timesteps(10)
            found = loop(scheduler, rows, generator=torch.Generator().manual_seed(0))
            if len(ids) == 3:
                batch = dict(zip(ids, found, strict=True))
            for i, row in zip(ids, found, strict=True):
                assert torch.equal(row, batch[i])
    scheduler.sample_ids = None
    scheduler.set_timesteps(10)
    steps = iter(scheduler.timesteps)
    t = next(steps)
    a = scheduler.step(model(x, t), t, x, sample_ids=[5, 9, 2]).prev_sample
    scheduler.set_timesteps(10)
    b = scheduler.step(model(x[:1], t), t, x[:1], sample_ids=[5]).prev_sample
    assert torch.equal(a[:1], b)


@every
def test_noise_arguments_refused(kind):
    config = SDE if kind is ours.FusedDPMSolverMultistepScheduler else {}
    scheduler, (x, _) = make(kind, **config), start(1)
    t = scheduler.timesteps[0]
    with pytest.raises(
        ValueError, match=r"sample_ids must be integers in \[0, 2\^43\), got \[-1\]"
    ):
        scheduler.sample_ids = [-1]
    with pytest.raises(ValueError, match="sample_ids must be 3 integers, got 2"):
        scheduler.step(x, t, x, sample_ids=[1, 2])
    with pytest.raises(ValueError, match="one for each of 3 samples, got 2"):
        scheduler.step(x, t, x, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match=r"model_output must have the shape \[3, 2, 2, 3\]"):
        scheduler.step(x[:, :1], t, x)


@pytest.fixture
def told(monkeypatch):
    """Takes the place of what a run of RTKMALAScheduler does once, at its end: it reads the
    decisions for the warning of its acceptance, which is no part of a step. Counts such runs."""
    runs = []
    monkeypatch.setattr(ours.RTKMALAScheduler, "_warn_of_acceptance", lambda self: runs.append(1))
    return runs


@every
def test_at_most_three_ops_a_step(kind, told):
    """Counted in every step; the first also draws the noise's address."""
    dpm = kind is ours.FusedDPMSolverMultistepScheduler
    for config in ({}, SDE) if dpm else ({}, {"clip_sample": True}):
        scheduler, (x, _) = make(kind, **config), start(1)
        for t in scheduler.timesteps:
            out = model(x, t)
            with Ops() as ops:
                x = scheduler.step(out, t, x).prev_sample
            assert len(ops.names) <= 3 and any("ardiff" in name for name in ops.names), ops.names
        assert len(told) == (kind is ours.RTKMALAScheduler)
        told.clear()


@pytest.mark.parametrize("kind,most", [(STEPPED[2], 9), (STEPPED[3], 11)])
def test_ops_of_a_run_from_within_a_stage(kind, most, told):
    """Its first step draws the stage's origin too; the page says how many ops that is."""
    for first in range(1, 10):
        scheduler, (x, _) = make(kind), start(1)
        scheduler.set_begin_index(first)
        for i, t in enumerate(scheduler.timesteps[first:]):
            out = model(x, t)
            with Ops() as ops:
                x = scheduler.step(out, t, x).prev_sample
            assert len(ops.names) <= (3 if i else most), ops.names


@every
def test_no_value_is_read_in_a_step(kind):
    """`.item()` of a device tensor waits for the device; on the meta device it would raise."""
    scheduler = make(kind, None)
    scheduler.set_timesteps(10, device="meta")
    x = torch.empty(SHAPE, device="meta")
    for t in scheduler.timesteps:
        assert t.is_meta
        x = scheduler.step(torch.empty_like(x), t, x).prev_sample
    assert x.is_meta and x.shape == SHAPE and scheduler.step_index == 10


@every
def test_unusual_tensors(kind):
    """A channels-last output, and gradients through a step."""
    scheduler, (x, _) = make(kind), start(1)
    t = scheduler.timesteps[0]
    out = model(x, t)
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    expected = scheduler.step(out, t, x, generator=seeded()).prev_sample
    scheduler.set_timesteps(10)
    last = out.to(memory_format=torch.channels_last)
    assert torch.equal(scheduler.step(last, t, x, generator=seeded()).prev_sample, expected)
    scheduler.set_timesteps(10)
    leaf = x.clone().requires_grad_()
    scheduler.step(model(leaf, t), t, leaf).prev_sample.sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.abs().max() > 0


def test_half_precision_ops(told):
    """float16 is computed in float32: the casts are ops too."""
    for kind, most in zip(STEPPED, (4, 3, 3, 3), strict=True):
        scheduler, x = make(kind), start(1)[0].half()
        for t in scheduler.timesteps:
            out = model(x, t)
            with Ops() as ops:
                x = scheduler.step(out, t, x, generator=GENERATOR).prev_sample
            assert x.dtype == torch.float16 and x.isfinite().all()
            assert len(ops.names) <= most + 2 * (t == scheduler.timesteps[0]), ops.names


def test_ddpm_past_the_end():
    """Device tensors of unknown origin follow each other, up to the last step."""
    scheduler, x = make(ours.FusedDDPMScheduler, None), torch.empty(SHAPE, device="meta")
    scheduler.set_timesteps(2, device="meta")
    for t in scheduler.timesteps:
        scheduler.step(x, t.clone(), x)
    with pytest.raises(ValueError, match="all 2 steps are done: call set_timesteps first"):
        scheduler.step(x, scheduler.timesteps[0].clone(), x)
