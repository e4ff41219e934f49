"""The RTK schedulers: the chains of `ardiff.loop.run`, and the law of the data under an exact
score.

The law is judged by Kolmogorov's distance of N = 2^14 independent elements to the exact marginal.
By Massart's inequality its false-alarm rate for exact draws is at most 2 exp(-2 N D^2) < 1e-6 at
D = 0.0211. The chains' own bias at their number of calls is less than half of that, and seeds are
fixed. The control gives the model evenly falling levels in place of the stages', and is rejected.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import ndtr

import ardiff
from ardiff.integrations.diffusers import RTKMALAScheduler, RTKULDScheduler
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.tables.diffusers_schedules import DiscretePath
from ardiff.tables.paths import output_from_data

BOTH = pytest.mark.parametrize("kind", [RTKULDScheduler, RTKMALAScheduler])
WEIGHTS, MEANS, WIDTHS = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.3, 0.2])
SHAPE = (2**10, 4, 2, 2)
KOLMOGOROV = 0.0211
CALLS = 181


def denoise(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The exact data prediction of independent mixtures of two Gaussians."""
    x = x.double()[..., None]
    weight, mean, var = (torch.tensor(v) for v in (WEIGHTS, MEANS, WIDTHS**2))
    spread = alpha**2 * var + sigma**2
    logits = weight.log() - 0.5 * spread.log() - (x - alpha * mean) ** 2 / (2 * spread)
    each = mean + alpha * var / spread * (x - alpha * mean)
    return (logits.softmax(-1) * each).sum(-1)


def output(scheduler, x: torch.Tensor, t: float) -> torch.Tensor:
    prediction = scheduler.config.prediction_type
    if prediction == "flow_prediction":
        prediction, sigma = "flow", float(t) / 1000
        alpha = 1 - sigma
    else:
        bar = float(scheduler.alphas_cumprod[int(t)])
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
    x0 = denoise(x, alpha, sigma)
    return output_from_data(prediction, alpha, sigma, x.double(), x0).float()


def draw(scheduler, calls: int, even: bool = False) -> np.ndarray:
    """Elements of the samples of a pipeline's loop; `even` is the control."""
    scheduler.set_timesteps(calls)
    generator = torch.Generator().manual_seed(20)
    x = torch.randn(SHAPE, generator=generator)
    levels = torch.linspace(scheduler.timesteps[0], scheduler.timesteps[-1], calls)
    for t, level in zip(scheduler.timesteps, levels if even else scheduler.timesteps, strict=True):
        out = output(scheduler, x, level)
        x = scheduler.step(out, t, x, generator=generator).prev_sample
    return x.double().numpy().ravel()


def distance(samples: np.ndarray) -> float:
    """Kolmogorov's distance to the data."""
    ordered = np.sort(samples)
    exact = sum(w * ndtr((ordered - m) / s) for w, m, s in zip(WEIGHTS, MEANS, WIDTHS, strict=True))
    n = len(ordered)
    above, below = np.arange(1, n + 1) / n - exact, exact - np.arange(n) / n
    return float(max(above.max(), below.max()))


@BOTH
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow_prediction"])
def test_law(kind, prediction):
    assert distance(draw(kind(prediction_type=prediction), CALLS)) < KOLMOGOROV


@BOTH
def test_law_control(kind):
    assert distance(draw(kind(), CALLS, even=True)) > 5 * KOLMOGOROV


@BOTH
def test_law_from_within_a_stage(kind, monkeypatch):
    """A run that joins a stage, from data noised to its level, keeps their second moment.

    After 28 inner steps in a stage from timestep 550 to 500. Control: with the anchor left at the
    sample the stage is too narrow.
    """

    def moment() -> float:
        """Second moment over the exact one; its standard error is below 0.012."""
        scheduler = kind(inner=30, tau=0.1)
        scheduler.set_timesteps(timesteps=[550, 500, 450])
        samples = torch.Generator().manual_seed(4)
        normal = torch.randn(SHAPE, generator=samples, dtype=torch.float64)
        choice = (torch.rand(SHAPE, generator=samples) >= WEIGHTS[0]).long()
        data = torch.tensor(MEANS)[choice] + torch.tensor(WIDTHS)[choice] * normal
        noise = torch.randn(SHAPE, generator=samples)
        x = scheduler.add_noise(data.float(), noise, scheduler.timesteps[3:4])
        scheduler.set_begin_index(3)
        for t in scheduler.timesteps[3:31]:
            assert int(t) == 500
            x = scheduler.step(output(scheduler, x, t), t, x, generator=samples).prev_sample
        if kind is RTKMALAScheduler:
            x = scheduler._run.state.origin["x"]  # what step returns within a stage is a proposal
        bar = float(scheduler.alphas_cumprod[500])
        exact = bar * float(WEIGHTS @ (MEANS**2 + WIDTHS**2)) + 1 - bar
        return float(x.double().square().mean()) / exact

    assert abs(moment() - 1) < 0.06
    join = kind._join
    monkeypatch.setattr(kind, "_join", lambda self, z, spread, *rest: join(self, z, 0.0, *rest))
    assert moment() < 0.88


@BOTH
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_is_the_chain_of_ardiff(kind, prediction):
    """The bits of `ardiff.loop.run` on the same levels, key and streams."""
    scheduler = kind(prediction_type=prediction, inner=3)
    scheduler.seed = 11
    scheduler.set_timesteps(17)
    levels = sorted(set(scheduler.timesteps.tolist()), reverse=True)
    name = "rtk-uld" if kind is RTKULDScheduler else "rtk-mala"
    path = DiscretePath(scheduler.alphas_cumprod.numpy())
    table = ardiff.solver(name, path=path, prediction=prediction, steps=17, grid=levels, inner=3)
    key, stream = make_key(11, "cpu"), make_stream([4, 0, 9], 3, 0, "cpu")
    x = initial_state(table, key, stream, 24)
    model = lambda x, level, condition=None: output(scheduler, x, float(level[0]))  # noqa: E731
    expected = run(table, model, x, key=key, stream=stream).view(3, 4, 2, 3)
    scheduler.sample_ids, x = [4, 0, 9], x.view(3, 4, 2, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(output(scheduler, x, t), t, x).prev_sample
    assert torch.equal(x, expected)


@BOTH
def test_calls(kind):
    """A level is named once for each call at it: start, inner steps, start of the next stage."""
    scheduler = kind(timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [999] + [666] * 3 + [333] * 3 + [0] * 3
    scheduler.set_timesteps(12)  # more inner steps, rather than fewer calls
    assert scheduler.timesteps.tolist() == [999] + [666] * 4 + [333] * 4 + [0] * 3
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
    scheduler.set_timesteps(timesteps=[800, 300])
    assert scheduler.timesteps.tolist() == [800, 300, 300, 300]
    with pytest.raises(ValueError, match="the first timestep is called once, got 2 times 800"):
        scheduler.set_timesteps(timesteps=[800, 800, 300])
    with pytest.raises(ValueError, match="descending order"):
        scheduler.set_timesteps(timesteps=[300, 800])


@BOTH
def test_state_is_float32_whatever_the_dtype(kind):
    """float16 samples: small Langevin moves are not lost in rounding between the steps."""
    scheduler = kind(inner=8)
    found = {}
    for dtype in (torch.float32, torch.float16):
        scheduler.seed = 3
        scheduler.set_timesteps(28)
        x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        for t in scheduler.timesteps:
            # the model itself in float32, so that only the state's rounding is seen
            out = output(scheduler, x.float(), t)
            x = scheduler.step(out, t, x).prev_sample
            assert x.dtype == dtype
        found[dtype] = scheduler._z.double()
    assert (found[torch.float16] - found[torch.float32]).abs().median() < 2e-3


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_models_and_callers_may_write_their_tensors(kind, dtype):
    """A model that answers in one buffer, and a caller that reuses its sample."""

    def end(shared: bool) -> torch.Tensor:
        scheduler, buffer = kind(inner=3, tau=2.0), torch.empty(8, 4, 2, 2, dtype=dtype)
        scheduler.seed = 3
        scheduler.set_timesteps(17)
        x = torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        for t in scheduler.timesteps:
            out = output(scheduler, x, t).to(dtype)
            old = x
            x = scheduler.step(buffer.copy_(out) if shared else out, t, x).prev_sample
            if shared:
                old.fill_(math.nan)
        if kind is RTKMALAScheduler:
            assert 0 < scheduler.acceptance < 1
        return x

    assert torch.equal(end(True), end(False))


@BOTH
def test_an_edit_in_place_counts_in_half_precision(kind):
    """A callback that writes the sample, as in float32; under inference_mode a new tensor does."""

    def end(edit, inference: bool = False) -> torch.Tensor:
        scheduler = kind()
        scheduler.seed = 3
        scheduler.set_timesteps(10)
        x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).half()
        with torch.inference_mode(inference):
            for i, t in enumerate(scheduler.timesteps):
                x = scheduler.step(output(scheduler, x.float(), t).half(), t, x).prev_sample
                x = edit(x) if i == 4 else x
        return x

    written, replaced = end(lambda x: x.mul_(0.5)), end(lambda x: x * 0.5)
    assert torch.equal(written, replaced)
    assert torch.equal(end(lambda x: x * 0.5, inference=True), replaced)
    assert not torch.equal(end(lambda x: x), replaced)


def test_acceptance():
    scheduler = RTKMALAScheduler()
    assert scheduler.acceptance is None
    draw(scheduler, 31)
    assert 0.5 < scheduler.acceptance < 1
    bold = RTKMALAScheduler(tau=20.0)
    draw(bold, 31)
    assert bold.acceptance < 0.5 * scheduler.acceptance


@BOTH
def test_clip_bounds_the_last_prediction_alone(kind):
    scheduler = kind(clip_sample=True, clip_sample_range=0.5)
    assert np.abs(draw(scheduler, 31)).max() == 0.5


@BOTH
def test_log_snr_spacing(kind):
    """Even in log(sigma / alpha) where timesteps are dense enough, and never twice the same."""
    scheduler = kind(inner=1)
    scheduler.set_timesteps(17)
    bars = scheduler.alphas_cumprod[sorted(set(scheduler.timesteps.tolist()))].double()
    gaps = (0.5 * ((1 - bars) / bars).log()).diff()
    assert len(gaps) == 8 and gaps.max() / gaps.min() < 1.6
    for steps in (401, 1999):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps.unique()) == (steps + 1) // 2
    with pytest.raises(ValueError, match="1001 stages need as many training timesteps"):
        scheduler.set_timesteps(2001)


def gaussian_run(scheduler, shape):
    """A run on the exact model of N(0, 1/4); its acceptance."""
    scheduler.seed = 0
    scheduler.set_timesteps(61)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        bar = float(scheduler.alphas_cumprod[int(t)])
        out = (1 - bar) ** 0.5 * x / (0.25 * bar + 1 - bar)
        x = scheduler.step(out, t, x).prev_sample
    return scheduler.acceptance


@pytest.mark.parametrize(("rows", "size"), [(4, 8), (4, 32), (2, 64)])
def test_latents_of_real_sizes_are_accepted(rows, size):
    """The first step says how many elements a sample has. Expected .7 to .76 of 80 decisions or
    more: the standard deviation is .05 at most and the bounds lie beyond 4.9 of it, 1e-6. The step
    of few elements is rejected and says so."""
    scheduler, shape = RTKMALAScheduler(), (rows, 4, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ardiff.AcceptanceWarning)
        assert 0.45 < gaussian_run(scheduler, shape) <= 1
    tau = 0.4 * (40 / (4 * size * size)) ** 0.5
    assert gaussian_run(RTKMALAScheduler(tau=tau), shape) == scheduler.acceptance
    with pytest.warns(ardiff.AcceptanceWarning, match="tau is too large") as found:
        assert gaussian_run(RTKMALAScheduler(tau=0.4), shape) < 0.2
    assert len(found) == 1


def test_another_size_has_another_step():
    """One scheduler on images of several sizes; a run that begins within the schedule too."""
    scheduler, shapes = RTKMALAScheduler(), [(2, 4, 4, 4), (2, 4, 16, 16), (2, 4, 4, 4)]
    rates = [gaussian_run(scheduler, shape) for shape in shapes]
    assert rates[0] == rates[2] == gaussian_run(RTKMALAScheduler(), shapes[0])
    assert rates[1] == gaussian_run(RTKMALAScheduler(), shapes[1])
    assert RTKMALAScheduler.from_config(scheduler.config).config.tau is None
