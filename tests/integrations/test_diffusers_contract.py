"""The contract that diffusers' pipelines rely on, for each of the schedulers.

Written from the interface and from what diffusers' own common scheduler tests ask of a scheduler.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pickle
import sys
import tempfile

import diffusers
import numpy as np
import pytest
import torch

from ardiff.integrations import diffusers as ours
from tests.integrations._support.diffusers_cases import SHAPE, STEPPED, loop, model, start

GENERATOR = torch.Generator()
SDE = {"algorithm_type": "sde-dpmsolver++"}


def make(kind, steps: int | None = 10, **config):
    scheduler = kind(**config)
    if steps:
        scheduler.set_timesteps(steps)
    return scheduler


def noisy(kind) -> dict:
    """Options with which it draws noise."""
    return SDE if kind is ours.FusedDPMSolverMultistepScheduler else {}


def run(scheduler, steps: int = 10, seed: int = 0) -> torch.Tensor:
    x, _ = start(1)
    scheduler.set_timesteps(steps)
    return loop(scheduler, x, generator=torch.Generator().manual_seed(seed))


every = pytest.mark.parametrize("kind", STEPPED, ids=lambda kind: kind.__name__)


@every
def test_is_a_scheduler(kind):
    scheduler = make(kind, None)
    assert isinstance(scheduler, diffusers.SchedulerMixin)
    assert isinstance(scheduler, diffusers.ConfigMixin)
    assert scheduler.order == 1 and kind.config_name == "scheduler_config.json"
    step = list(inspect.signature(kind.step).parameters)
    assert step[:5] == ["self", "model_output", "timestep", "sample", "generator"]
    assert "return_dict" in step and "sample_ids" in step
    given = inspect.signature(kind.set_timesteps).parameters
    assert {"num_inference_steps", "device", "timesteps"} <= given.keys()


@every
def test_attributes_before_set_timesteps(kind):
    scheduler = make(kind, None)
    assert scheduler.num_inference_steps is None
    assert scheduler.step_index is None and scheduler.begin_index is None
    assert len(scheduler) == 1000 == len(scheduler.timesteps)
    assert scheduler.init_noise_sigma == 1.0 and len(scheduler.betas) == 1000
    assert scheduler.sample_ids is None and scheduler.seed is None
    x = torch.randn(SHAPE)
    assert scheduler.scale_model_input(x, 3) is x


@every
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_set_timesteps(kind, steps):
    scheduler = make(kind, steps)
    assert scheduler.num_inference_steps == steps == len(scheduler.timesteps)
    falling = scheduler.timesteps.diff()
    assert (falling <= 0).all() and scheduler.timesteps[0] < 1000
    x, _ = start(1)
    assert loop(scheduler, x).isfinite().all()
    assert scheduler.step_index == steps


@every
def test_custom_timesteps(kind):
    scheduler = make(kind, None)
    scheduler.set_timesteps(timesteps=[900, 500, 20])
    assert sorted(set(scheduler.timesteps.tolist()), reverse=True) == [900, 500, 20]
    again = make(kind, None)
    again.set_timesteps(timesteps=scheduler.timesteps.tolist())
    assert torch.equal(again.timesteps, scheduler.timesteps)
    x, _ = start(1)
    assert loop(scheduler, x).isfinite().all()
    with pytest.raises(ValueError):
        scheduler.set_timesteps(10, timesteps=[900, 500, 20])
    with pytest.raises(ValueError):
        scheduler.set_timesteps()


@every
def test_step_output(kind):
    x, _ = start(1)
    named, plain = make(kind), make(kind)
    for t in named.timesteps:
        out = model(x, t)
        found = named.step(out, t, x, generator=torch.Generator().manual_seed(1))
        # another tensor of the same value, and the generator a list of one
        values = plain.step(
            out, t.clone(), x, generator=[torch.Generator().manual_seed(1)], return_dict=False
        )
        assert isinstance(values, tuple) and len(values) == len(found.to_tuple())
        for one, other in zip(values, found.to_tuple(), strict=True):
            assert torch.equal(one, other) and one.shape == x.shape and one.dtype == x.dtype
        built = type(found)(*found.to_tuple())  # the output object is diffusers' own
        assert list(found.items())[0][0] == "prev_sample" == list(built.items())[0][0]
        assert list(found) == list(built) and vars(found).keys() == vars(built).keys()
        assert found["prev_sample"] is found.prev_sample is found[0]
        before, x = x, found.prev_sample
        assert before is not x


@every
def test_save_and_load(kind):
    options = {"num_train_timesteps": 500, "beta_schedule": "scaled_linear"}
    scheduler = make(kind, None, **options)
    with tempfile.TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        saved = json.loads(open(f"{folder}/scheduler_config.json").read())
        loaded = kind.from_pretrained(folder)
        changed = kind.from_pretrained(folder, num_train_timesteps=200)
    assert saved["_class_name"] == kind.__name__
    expected = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    assert {k: v for k, v in loaded.config.items() if k in expected} == expected
    assert len(changed) == 200
    assert torch.equal(run(loaded), run(scheduler))


@every
def test_compatibles(kind):
    """From each compatible class and back, as pipelines exchange schedulers; diffusers' too."""
    scheduler = make(kind, None)
    names = {c.__name__ for c in scheduler.compatibles}
    assert {k.__name__ for k in STEPPED} <= names and "EulerDiscreteScheduler" in names
    for other in scheduler.compatibles:
        there = other.from_config(scheduler.config)
        back = kind.from_config(there.config)
        shared = {k: v for k, v in back.config.items() if k in scheduler.config}
        assert shared == dict(scheduler.config)
        new = set(back.config) - set(scheduler.config)
        assert not new & inspect.signature(kind.__init__).parameters.keys()


@every
def test_from_a_pipelines_config(kind):
    """What a published pipeline has: a DDPM or DDIM configuration."""
    for theirs in (diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.PNDMScheduler):
        scheduler = kind.from_config(theirs(beta_schedule="scaled_linear").config)
        assert scheduler.config.beta_schedule == "scaled_linear"
        assert run(scheduler).isfinite().all()


@every
def test_trained_betas(kind):
    scheduler = make(kind, None, trained_betas=np.linspace(1e-3, 0.1, 50), num_train_timesteps=50)
    assert torch.allclose(scheduler.betas, torch.linspace(1e-3, 0.1, 50))
    assert run(scheduler).isfinite().all()


@every
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_prediction_types(kind, prediction):
    if prediction == "flow_prediction" and kind is ours.FusedDDPMScheduler:
        return  # DDPMScheduler has no such prediction
    for beta_schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for spacing in ("linspace", "leading", "trailing"):
            for zero in (False, True):
                scheduler = make(
                    kind, None, prediction_type=prediction, beta_schedule=beta_schedule,
                    timestep_spacing=spacing, rescale_betas_zero_snr=zero,
                )  # fmt: skip
                assert run(scheduler, 7).isfinite().all()


@every
def test_add_noise(kind):
    """alpha x0 + sigma n at given timesteps, in the samples' dtype."""
    scheduler = make(kind)
    x, noises = start(1)
    t = scheduler.timesteps[[0, 4, 9]]
    bars = scheduler.alphas_cumprod[t.long()][:, None, None, None]
    expected = bars.sqrt() * x + (1 - bars).sqrt() * noises[0]
    assert torch.allclose(scheduler.add_noise(x, noises[0], t), expected, atol=1e-6)
    assert scheduler.add_noise(x.half(), noises[0].half(), t).dtype == torch.float16
    if hasattr(scheduler, "get_velocity"):
        expected = bars.sqrt() * noises[0] - (1 - bars).sqrt() * x
        assert torch.allclose(scheduler.get_velocity(x, noises[0], t), expected, atol=1e-6)


@every
def test_begin_index_and_places(kind):
    scheduler, (x, _) = make(kind), start(1)
    assert scheduler.index_for_timestep(scheduler.timesteps[4]) in (3, 4)
    scheduler.set_begin_index(4)
    assert scheduler.begin_index == 4
    for t in scheduler.timesteps[4:]:
        x = scheduler.step(model(x, t), t, x).prev_sample
    assert scheduler.step_index == 10 and x.isfinite().all()


@every
def test_any_call_within_the_schedule(kind):
    """Two neighbouring calls with no run before them, by element and by number."""
    x, _ = start(1)
    for first in range(9):
        for read in (lambda t: t, int):
            scheduler = make(kind)
            for t in scheduler.timesteps[first : first + 2]:
                assert scheduler.step(model(x, t), read(t), x).prev_sample.isfinite().all()


def test_ddpm_before_set_timesteps():
    """As DDPMScheduler: every training timestep, in any order."""
    scheduler, theirs = ours.FusedDDPMScheduler(), diffusers.DDPMScheduler()
    x, noises = start(1)
    for t in (0, 999, 1, 500):
        found = scheduler.step(0.3 * x, t, x, variance_noise=0 * noises[0])
        plain = theirs.step(0.3 * x, t, x).pred_original_sample
        assert torch.allclose(found.pred_original_sample, plain, atol=1e-6)
    with pytest.raises(ValueError, match="timestep 1000 is not in the schedule"):
        scheduler.step(x, 1000, x)


@pytest.mark.parametrize("kind", STEPPED[1:], ids=lambda kind: kind.__name__)
def test_runs_begin_and_end(kind):
    scheduler, (x, _) = make(kind, None), start(1)
    with pytest.raises(ValueError, match="call set_timesteps first"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    loop(scheduler, x)
    with pytest.raises(ValueError, match="all 2 steps are done: call set_timesteps first"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_refused_at_construction():
    for algorithm in ("dpmsolver", "sde-dpmsolver"):
        with pytest.raises(ValueError, match=f"got '{algorithm}'"):
            ours.FusedDPMSolverMultistepScheduler(
                algorithm_type=algorithm, final_sigmas_type="sigma_min"
            )
    with pytest.raises(ValueError, match="solver_order 1 and 2"):
        ours.FusedDPMSolverMultistepScheduler(solver_order=3, **SDE)
    for kind in (ours.RTKULDScheduler, ours.RTKMALAScheduler):
        with pytest.raises(ValueError, match="has no thresholding"):
            kind(thresholding=True)
        with pytest.raises(ValueError, match="unknown prediction_type 'score'"):
            kind(prediction_type="score")
        with pytest.raises(ValueError, match="tau must be positive"):
            kind(tau=-1.0)


@every
def test_copies(kind):
    """Pipelines are copied and pickled with their schedulers, in the middle of a run too."""
    scheduler, (x, _) = make(kind, **noisy(kind)), start(1)
    scheduler.seed = 3
    for t in scheduler.timesteps[:4]:
        x = scheduler.step(model(x, t), t, x).prev_sample
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    ends = []
    for each in (scheduler, *copies):
        # an element is known by its place in the scheduler's own timesteps
        assert each._view_index(each.timesteps[4]) == 4
        assert each is scheduler or each._view_index(scheduler.timesteps[4]) is None
        y = x
        for t in each.timesteps[4:]:
            y = each.step(model(y, t), t, y).prev_sample
        ends.append(y)
        assert each.step_index == 10
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    for each in copies:
        each.seed = None
        assert torch.equal(run(each), run(make(kind, **noisy(kind))))


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "ardiff.integrations.diffusers")
    with pytest.raises(ImportError, match=r"pip install 'diffusers>=0\.36'"):
        importlib.import_module("ardiff.integrations.diffusers")
