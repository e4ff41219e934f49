"""Time grids against the systems that have them: diffusers' own code, and ComfyUI's and
k-diffusion's formulas, written down here again in float64.

Of those two: k_diffusion/sampling.py of k-diffusion 0.1.1, comfy/samplers.py and
comfy_extras/nodes_align_your_steps.py of ComfyUI. Their lists end in a 0, which here is no level
but the last step's end.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers import AysSchedules
from scipy.stats import beta

import ardiff
from ardiff.tables.diffusers_schedules import DiscretePath, beta_schedule
from ardiff.tables.grids import ALIGNED, GRIDS, OPEN, SPACINGS, dynamic_shift, spaced
from ardiff.tables.paths import PATHS, get_path, time_grid

CLOSE = {"rtol": 1e-6, "atol": 0}
STABLE = DiscretePath(np.cumprod(1 - beta_schedule("scaled_linear", 1000, 0.00085, 0.012)))
RATIOS = STABLE.ratio(np.arange(1000.0))
COUNTS = [2, 7, 10, 25]


def euler(**options):
    """diffusers' scheduler, and the path through its own float32 schedule."""
    stock = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options
    )
    return stock, DiscretePath(stock.alphas_cumprod.double().numpy())


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("kind", ["karras", "exponential"])
def test_euler_discrete_of_diffusers(kind, n):
    stock, path = euler(**{f"use_{kind}_sigmas": True})
    stock.set_timesteps(n)
    found = path.ratio(time_grid(path, n, kind))
    np.testing.assert_allclose(found, stock.sigmas.numpy()[:-1], **CLOSE)


@pytest.mark.parametrize("n", COUNTS)
def test_euler_discrete_of_diffusers_with_beta_sigmas(n):
    """Which are even in sigma: what `beta` is on edm, from the schedule's last to its first."""
    stock, path = euler(use_beta_sigmas=True)
    stock.set_timesteps(n)
    ends = {"ratio_max": path.ratio_max, "ratio_min": path.ratio_min}
    found = time_grid("edm", n, "beta", **ends)
    np.testing.assert_allclose(found, stock.sigmas.numpy()[:-1], **CLOSE)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_timestep_spacings_of_diffusers(spacing, n):
    """linspace is `uniform`; trailing, where T / n is whole, is `simple`."""
    stock, path = euler(timestep_spacing=spacing)
    stock.set_timesteps(n)
    kind = {"linspace": "uniform", "trailing": "simple"}[spacing]
    if spacing == "linspace" or 1000 % n == 0:
        found = time_grid(path, n, kind)
        np.testing.assert_allclose(found, stock.timesteps.numpy(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler_of_diffusers(shift, n):
    """Its levels from sigma_max to sigma_min are `uniform`, shifted (twice, as it shifts its range
    too); those that pipelines pass, 1 - i / n, are `sgm-uniform`."""
    stock = FlowMatchEulerDiscreteScheduler(shift=shift)
    low = stock.sigma_min
    stock.set_timesteps(n)
    ends = {"ratio_max": math.inf, "ratio_min": low / (1 - low)}
    found = time_grid("flow", n, "uniform", shift=shift, **ends)
    np.testing.assert_allclose(found, stock.sigmas.numpy()[:-1], **CLOSE)
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n).tolist())
    found = time_grid("flow", n, "sgm-uniform", shift=shift, ratio_max=math.inf)
    np.testing.assert_allclose(found, stock.sigmas.numpy()[:-1], **CLOSE)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_spaced_is_what_flow_match_euler_makes_of_its_times(kind):
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0, **{f"use_{kind}_sigmas": True})
    stock.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10).tolist())
    found = spaced(kind, 10, 1.0, 3 * 0.1 / (1 + 2 * 0.1))
    np.testing.assert_allclose(found, stock.sigmas.numpy()[:-1], **CLOSE)
    if kind == "beta":  # so the grid is that, with the same ends
        grid = time_grid(
            "flow", 10, kind, ratio_max=math.inf, ratio_min=found[-1] / (1 - found[-1])
        )
        np.testing.assert_allclose(grid, found, rtol=1e-12)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9000])
def test_dynamic_shift_of_diffusers(tokens, kind):
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    stock.set_timesteps(sigmas=np.linspace(1.0, 0.125, 8).tolist(), mu=calculate_shift(tokens))
    shift = dynamic_shift(tokens, kind=kind)
    found = time_grid("flow", 8, "sgm-uniform", ratio_max=math.inf, shift=shift)
    np.testing.assert_allclose(found, stock.sigmas.numpy()[:-1], **CLOSE)


@pytest.mark.parametrize("n", COUNTS)
def test_k_diffusion(n):
    """get_sigmas_karras, get_sigmas_exponential and get_sigmas_polyexponential."""
    low, high = 0.03, 14.6
    for kind, rho in (("karras", 5.0), ("exponential", 1.0), ("polyexponential", 1.7)):
        ramp = np.array([1 - i / (n - 1) for i in range(n)])
        if kind == "karras":
            expected = [
                (low ** (1 / rho) + u * (high ** (1 / rho) - low ** (1 / rho))) ** rho for u in ramp
            ]
        else:
            expected = [low * (high / low) ** (u**rho) for u in ramp]
        found = time_grid("edm", n, kind, ratio_max=high, ratio_min=low, rho=rho)
        np.testing.assert_allclose(found, expected, **CLOSE)
    plain = time_grid("edm", n, "polyexponential")
    np.testing.assert_allclose(plain, time_grid("edm", n, "log-snr"), rtol=1e-12)
    np.testing.assert_array_equal(
        time_grid("edm", n, "karras"), time_grid("edm", n, "karras", rho=7.0)
    )


@pytest.mark.parametrize("n", COUNTS)
def test_comfyui_on_a_discrete_schedule(n):
    """Its simple, normal, sgm_uniform, beta and kl_optimal: timesteps, and their sigmas."""
    last = len(RATIOS) - 1
    simple = [last - int(i * len(RATIOS) / n) for i in range(n)]
    np.testing.assert_array_equal(time_grid(STABLE, n, "simple"), simple)
    normal = [last * (1 - i / (n - 1)) for i in range(n)]
    np.testing.assert_allclose(time_grid(STABLE, n, "uniform"), normal, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        time_grid(STABLE, n, "sgm-uniform"), [last * (1 - i / n) for i in range(n)], **CLOSE
    )
    quantiles = np.rint(beta.ppf(1 - np.arange(n) / n, 0.6, 0.6) * last)
    np.testing.assert_array_equal(np.rint(time_grid(STABLE, n + 1, "beta")[:-1]), quantiles)
    ends = math.atan(RATIOS[-1]), math.atan(RATIOS[0])
    kl = [math.tan(ends[0] + i / (n - 1) * (ends[1] - ends[0])) for i in range(n)]
    np.testing.assert_allclose(STABLE.ratio(time_grid(STABLE, n, "kl-optimal")), kl, **CLOSE)


def linear_quadratic(steps, threshold=0.025):
    """The coefficients of the parabola as Mochi's code has them."""
    if steps == 1:
        return [1.0]
    half = steps // 2
    rest, excess = steps - half, half - threshold * steps
    second = excess / (half * rest**2)
    first = threshold / half - 2 * excess / rest**2
    bend = [second * i * i + first * i + second * half**2 for i in range(half, steps)]
    return [1 - x for x in [i * threshold / half for i in range(half)] + bend]


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("n", [1, *COUNTS])
def test_comfyui_on_flow(n, shift):
    """Its linear_quadratic, and simple on 1000 shifted times."""
    found = time_grid("flow", n, "linear-quadratic", ratio_max=math.inf)
    np.testing.assert_allclose(found, linear_quadratic(n), **CLOSE)
    times = [(i + 1) / 1000 for i in range(1000)]
    times = [shift * t / (1 + (shift - 1) * t) for t in times]
    simple = [times[-(1 + int(i * 1000 / n))] for i in range(n)]
    np.testing.assert_allclose(time_grid("flow", n, "simple", shift=shift), simple, **CLOSE)


@pytest.mark.parametrize("kind", ALIGNED)
def test_align_your_steps(kind):
    """The lists that diffusers has, of timesteps or sigmas, and ComfyUI's log-linear between them,
    which begins with the first of eleven numbers and leaves the last out."""
    ten = time_grid("edm", 10, kind)
    if kind == "ays-svd":
        np.testing.assert_allclose(ten, AysSchedules["StableDiffusionVideoSigmas"][:10], **CLOSE)
    else:
        name = {"ays-sd15": "StableDiffusionTimesteps", "ays-sdxl": "StableDiffusionXLTimesteps"}
        timesteps = AysSchedules[name[kind]]
        np.testing.assert_allclose(ten, STABLE.ratio(timesteps), **CLOSE)
        np.testing.assert_allclose(time_grid(STABLE, 10, kind), timesteps, **CLOSE)
    twenty = time_grid("edm", 20, kind)
    np.testing.assert_allclose(twenty[::2], ten, **CLOSE)
    ends = np.append(ten[1:], 0.002 if kind == "ays-svd" else RATIOS[0])
    np.testing.assert_allclose(twenty[1::2], np.sqrt(ten * ends), **CLOSE)
    assert time_grid("edm", 1, kind) == pytest.approx(ALIGNED[kind][:1])


def test_beta_quantiles_of_scipy():
    q = np.linspace(0, 1, 501)
    quantile = 1 - spaced("beta", 501, 1.0, 0.0)
    np.testing.assert_allclose(quantile, beta.ppf(q, 0.6, 0.6), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", GRIDS)
def test_every_grid_on_every_path(kind, path):
    """Falls within the path, from the noisy end asked for; and solvers take it."""
    where = get_path(path)
    if kind == "simple" and where.training_levels() is None:
        with pytest.raises(ValueError, match="simple time grid takes every T/n-th"):
            time_grid(path, 6, kind)
        return
    levels = time_grid(path, 6, kind)
    assert levels.shape == (6,) and levels.dtype == np.float64 and np.all(np.diff(levels) < 0)
    if kind in SPACINGS:
        assert where.ratio(levels[0]) == pytest.approx(min(40.0, where.ratio_max), rel=1e-12)
        last = where.ratio(levels[-1])
        expected = max(0.002, where.ratio_min)
        assert (last > 1.01 * expected) if kind in OPEN else last == pytest.approx(expected)
    table = ardiff.solver("ddim", path=path, prediction="flow", steps=6, grid=kind)
    np.testing.assert_array_equal(table.level, levels)


def test_the_options_of_a_solver_move_its_levels():
    make = {"path": "flow", "prediction": "flow", "steps": 5}
    table = ardiff.solver("dpmpp-2m", grid="polyexponential", rho=2.0, shift=1.5, **make)
    expected = time_grid("flow", 5, "polyexponential", rho=2.0, shift=1.5)
    np.testing.assert_array_equal(table.level, expected)
    ratio = get_path("flow").ratio
    straight = time_grid("flow", 5, "polyexponential", rho=2.0)
    np.testing.assert_allclose(ratio(expected), 1.5 * ratio(straight), rtol=1e-12)


def of(kind="karras", n=4, path="flow", **options):
    return lambda: time_grid(path, n, kind, **options)


ERRORS = {
    "a name": (of("ays"), "unknown time grid 'ays'; known grids: log-snr, uniform, karras, exp"),
    "no levels": (of(n=0), "a time grid needs one level or more, got n = 0"),
    "a rho": (of(rho=0.0), "rho must be positive and finite, got 0"),
    "a shift": (of(shift=-1.0), "shift must be positive and finite, got -1"),
    "a NaN shift": (of(shift=math.nan), "shift must be positive and finite, got nan"),
    "a shift past the path": (
        of("uniform", path="vp-linear", ratio_max=math.inf, shift=2.0),
        "shift=2 takes sigma / alpha to",
    ),
    "ends": (of(ratio_max=1.0, ratio_min=2.0), "needs 0 < ratio_min < ratio_max"),
    "a clean end of 0": (of(ratio_min=0.0), "needs 0 < ratio_min < ratio_max"),
    "no noisy end": (of("kl-optimal", ratio_max=math.inf), "a kl-optimal time grid needs a finite"),
    "more levels than timesteps": (of("simple", n=1001), "1001 levels on path flow has some twice"),
    "a list past the path": (of("ays-svd", n=40, path=STABLE), "40 levels on path discrete has"),
    "a spacing": (lambda: spaced("simple", 4, 1.0, 0.1), "unknown spacing 'simple'; known: log"),
    "a spacing's ends": (lambda: spaced("karras", 4, 1.0, 0.0), "karras needs 0 < low < high"),
    "no tokens": (lambda: dynamic_shift(0), "needs tokens of 1 or more"),
    "a kind of shift": (lambda: dynamic_shift(9, kind="x"), "unknown kind 'x'; known: exponential"),
    "a negative mu": (lambda: dynamic_shift(9, base_shift=-1.0, kind="linear"), "must be positive"),
    "a shift of given levels": (
        lambda: ardiff.solver(
            "ddim", path="flow", prediction="flow", steps=2, grid=[0.9, 0.5], shift=2.0
        ),
        "shift moves the levels of a named grid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_expected(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError) as refusal:
        call()
    assert message in str(refusal.value)
