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
import warnings

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
    assert torch.equal(scheduler.scale_noise(x, t, noises[0]), scheduler.add_noise(x, noises[0], t))
    if hasattr(scheduler, "get_velocity"):
        expected = bars.sqrt() * noises[0] - (1 - bars).sqrt() * x
        assert torch.allclose(scheduler.get_velocity(x, noises[0], t), expected, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_add_noise_in_half_precision(kind, dtype):
    """The float32 result, rounded; at the least noisy timesteps alpha^2 would round to 1."""
    scheduler, (x, noises) = kind(), start(1)
    x, noise = (0 * x).to(dtype), noises[0].to(dtype)
    for t in (0, 1, 2, 5, 50):
        where = torch.tensor([t] * len(x))
        sigma = (1 - scheduler.alphas_cumprod[t]) ** 0.5
        found = scheduler.add_noise(x, noise, where)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), sigma * noise.float(), rtol=1e-2, atol=1e-6)
        if hasattr(scheduler, "get_velocity"):
            velocity = scheduler.get_velocity(noise, x, where).float()
            torch.testing.assert_close(velocity, -sigma * noise.float(), rtol=1e-2, atol=1e-6)


@every
def test_begin_index_and_places(kind):
    scheduler, (x, _) = make(kind), start(1)
    assert scheduler.index_for_timestep(scheduler.timesteps[4]) in (3, 4)
    scheduler.set_begin_index(4)
    assert scheduler.begin_index == 4
    for t in scheduler.timesteps[4:]:
        x = scheduler.step(model(x, t), t, x).prev_sample
    assert scheduler.step_index == 10 and x.isfinite().all()


def spaced(spacing: str, count: int, multistep: bool) -> np.ndarray:
    """diffusers' timesteps: of DPM-Solver's `count` + 1 without the last, whose step it is."""
    points = count + multistep
    if spacing == "linspace":
        steps = np.linspace(0, 999, points).round()[::-1]
    elif spacing == "leading":
        steps = np.arange(points)[::-1] * (1000 // points)
    else:
        steps = np.round(np.arange(1000, 0, -1000 / count)) - 1
    return steps[:count]


@pytest.fixture
def one_thread():
    """Small ops wait for a second thread where other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", STEPPED[:2], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_every_number_of_steps(kind, spacing, monkeypatch, one_thread):
    """As many timesteps as asked, where diffusers makes one more at -1 for 62 `trailing` numbers.

    Refused: steps of no length. Of 1000 steps over 999 intervals one has none, which leaves the
    sample as it is.
    """
    monkeypatch.setattr(kind, "_rows_on", lambda self, device: None)
    scheduler, multistep, refused = kind(timestep_spacing=spacing), kind is STEPPED[1], []
    for count in range(1, 1001):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' are many, and pytest keeps each
            try:
                scheduler.set_timesteps(count)
            except ValueError as error:
                assert "leaves steps of length 0" in str(error)
                refused.append(count)
                continue
        steps = scheduler.timesteps.numpy()
        assert np.array_equal(steps, spaced(spacing, count, multistep))
        assert len(steps) == count == scheduler.num_inference_steps
        assert 0 <= steps[-1] and steps[0] < 1000
        equal = multistep and spacing == "linspace" and count == 1000
        assert np.count_nonzero(np.diff(steps) >= 0) == equal
        if multistep:
            assert len(scheduler.sigmas) == count + 1 and scheduler.sigmas[-1] == 0
            assert (scheduler.sigmas.diff() < 0).sum() == count - equal
    assert refused == ([1000] if multistep and spacing == "leading" else [])


def test_diffusers_trailing_steps():
    """What is left out: the control of the test above."""
    more = []
    for count in range(1, 1001):
        steps = np.round(np.arange(1000, 0, -1000 / count)) - 1
        if len(steps) > count:
            more.append(count)
            assert steps[-1] == -1
    assert len(more) == 62 and more[:2] == [61, 103]
    theirs = diffusers.DDPMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(61)
    assert len(theirs.timesteps) == 62 and theirs.timesteps[-1] == -1


@pytest.mark.parametrize("spacing", ["log_snr", "linspace", "leading", "trailing"])
def test_every_number_of_stages(spacing):
    for scheduler in (
        ours.RTKULDScheduler(timestep_spacing=spacing),
        ours.TableScheduler(timestep_spacing=spacing),
    ):
        for count in range(1, 1001):
            levels = scheduler._grid(count)
            assert len(levels) == len(set(levels)) == count
            assert levels == sorted(levels, reverse=True) and 0 <= levels[-1] <= levels[0] <= 999
        for calls in (61, 121, 181, 362):
            scheduler.set_timesteps(calls)
            assert len(scheduler.timesteps) == calls
        with pytest.raises(ValueError, match="1001 stages need as many training timesteps"):
            scheduler._grid(1001)


def test_timesteps_beyond_the_training_are_refused():
    for kind, count in zip(STEPPED[:2], (1000, 999), strict=True):
        scheduler = kind(timestep_spacing="leading", steps_offset=1)
        scheduler.set_timesteps(count - 1)
        with pytest.raises(ValueError, match="begins at timestep 1000, the training timesteps are"):
            scheduler.set_timesteps(count)
    table = ours.TableScheduler(timestep_spacing="leading", steps_offset=1, solver="ddim")
    table.set_timesteps(999)
    with pytest.raises(ValueError, match="begins at timestep 1000"):
        table.set_timesteps(1000)


def test_equal_timesteps_by_value():
    """Karras sigmas of a cosine schedule round to equal timesteps: a run begins at the first."""
    config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    ends = []
    for read in (lambda t: t, int, torch.clone):
        scheduler, (x, _) = make(ours.FusedDPMSolverMultistepScheduler, 20, **config), start(1)
        assert scheduler.timesteps[:4].tolist() == [998] * 4
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), read(t), x).prev_sample
        ends.append(x)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


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


def test_refused_at_construction_of_ddpm():
    with pytest.raises(ValueError, match="unknown variance_type 'fixed_tiny'; known: fixed_small"):
        ours.FusedDDPMScheduler(variance_type="fixed_tiny")
    with pytest.raises(ValueError, match="has prediction_type epsilon, sample, v_prediction, got"):
        ours.FusedDDPMScheduler(prediction_type="score")
    assert ours.FusedDDPMScheduler(variance_type=None).config.variance_type is None


FUSED, DPM, ULD, MALA = STEPPED
TABLE = ours.TableScheduler
CHANGES = [
    (FUSED, {"variance_type": "fixed_large"}),
    (FUSED, {"prediction_type": "sample"}),
    (FUSED, {"clip_sample": False}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    (DPM, {"solver_order": 1}),
    (DPM, {"solver_order": 3}),
    (DPM, {"solver_type": "heun"}),
    (DPM, {"prediction_type": "v_prediction"}),
    (DPM, {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    (ULD, {"tau": 0.1}),
    (ULD, {"gamma": 4.0}),
    (ULD, {"inner": 4}),
    (ULD, {"prediction_type": "v_prediction"}),
    (ULD, {"prediction_type": "flow_prediction", "flow_shift": 2.0}),
    (ULD, {"beta_schedule": "scaled_linear", "beta_end": 0.012}),
    (ULD, {"timestep_spacing": "trailing"}),
    (MALA, {"tau": 0.05}),
    (MALA, {"trained_betas": np.linspace(1e-3, 0.02, 1000)}),
    (TABLE, {"solver": "ddim"}),
    (TABLE, {"solver": "rtk-ula", "solver_options": {"tau": 0.1}}),
]


def named(value) -> str:
    return value.__name__ if isinstance(value, type) else "-".join(value)


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=named)
def test_a_changed_configuration_counts(kind, change):
    """From the next set_timesteps on: the bits of a scheduler made with it."""
    scheduler, fresh = kind(), kind(**change)
    scheduler.seed = fresh.seed = 3
    before = run(scheduler)
    scheduler.register_to_config(**change)
    after = run(scheduler)
    assert torch.equal(after, run(fresh)) and not torch.equal(after, before)
    scheduler.register_to_config(**{name: kind().config[name] for name in change})
    assert torch.equal(run(scheduler), before)


def test_a_configuration_changed_in_place_counts():
    options = {"tau": 0.4}
    scheduler = ours.TableScheduler(solver="rtk-ula", solver_options=options)
    scheduler.seed = 3
    before = run(scheduler)
    scheduler.config.solver_options["tau"] = 0.1
    fresh = ours.TableScheduler(solver="rtk-ula", solver_options={"tau": 0.1})
    fresh.seed = 3
    assert torch.equal(run(scheduler), run(fresh)) and not torch.equal(run(scheduler), before)
    multistep, order_1 = DPM(), DPM(solver_order=1)
    run(multistep)
    multistep.config.solver_order = 1
    assert torch.equal(run(multistep), run(order_1))


def test_a_change_within_a_run():
    """DDPM's steps follow it at once; the others refuse it, and options out of range too."""
    scheduler, (x, noises) = make(FUSED, None), start(1)
    large = make(FUSED, None, variance_type="fixed_large")
    before = scheduler.step(0.3 * x, 500, x, variance_noise=noises[0]).prev_sample
    scheduler.variance_type = "fixed_large"
    found = scheduler.step(0.3 * x, 500, x, variance_noise=noises[0]).prev_sample
    expected = large.step(0.3 * x, 500, x, variance_noise=noises[0]).prev_sample
    assert torch.equal(found, expected) and not torch.equal(found, before)
    for kind in (DPM, ULD, MALA, TABLE):
        scheduler = make(kind)
        scheduler.step(x, scheduler.timesteps[0], x)
        scheduler.register_to_config(prediction_type="v_prediction")
        with pytest.raises(ValueError, match="was changed after set_timesteps: call set_timesteps"):
            scheduler.step(x, scheduler.timesteps[1], x)
        scheduler.set_timesteps(10)
        scheduler.step(x, scheduler.timesteps[0], x)
    for kind, change, message in (
        (FUSED, {"variance_type": "none"}, "unknown variance_type 'none'"),
        (DPM, {"algorithm_type": "dpmsolver"}, "got 'dpmsolver'"),
        (ULD, {"tau": -1.0}, "tau must be positive"),
        (TABLE, {"solver": "plms"}, "unknown solver 'plms'"),
    ):
        scheduler = make(kind)
        scheduler.register_to_config(**change)
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                scheduler.set_timesteps(10)


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
