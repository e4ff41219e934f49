"""Samplers of k-diffusion's signature: their formulas, calls, callbacks and noise.

The loops they are compared with are written from the papers in float64, on the same noise; they
were compared with the package k-diffusion 0.1.1.post1 when the samplers were written.
"""

from __future__ import annotations

import inspect
import math
import re

import pytest
import torch
from torch import Tensor

from ardiff.integrations import _sigma_loop, _sigma_plan, kdiffusion
from ardiff.integrations.kdiffusion import (
    SAMPLERS,
    sample_ddim,
    sample_ddpm_fused,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde_fused,
    sample_rtk_mala,
    sample_rtk_uld,
)
from ardiff.loop.run import run
from ardiff.noise import make_stream
from ardiff.solvers import SOLVERS
from ardiff_kernels import host
from tests._support import single_step_loops as loops

SHAPE = (3, 2, 4, 4)


def karras(n: int, low: float = 0.03, high: float = 14.6) -> Tensor:
    """n sigmas of Karras et al. 2022, eq. 5, and 0."""
    ends = high ** (1 / 7), low ** (1 / 7)
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.cat([(ends[0] + u * (ends[1] - ends[0])) ** 7, torch.zeros(1)]).float()


def model(x: Tensor, sigma: Tensor, **extra_args) -> Tensor:
    """A denoiser that is no Gaussian's, elementwise, so that a sample knows only itself."""
    s = sigma.view(-1, 1, 1, 1)
    return x / (1 + s**2) + torch.tanh(x / (1 + s**2).sqrt()) * s / (1 + s**2)


def start(sigmas: Tensor) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(SHAPE) * sigmas[0]


class Noise:
    """Recorded normals, the same at each run, and the intervals that they were asked for."""

    def __init__(self) -> None:
        self.generator, self.asked = torch.Generator().manual_seed(11), []

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        self.asked.append((float(sigma), float(sigma_next)))
        return torch.randn(SHAPE, generator=self.generator)


def ancestral(x, sigmas, eta, s_noise, noise):
    """Song et al. 2021, eq. 12, at alpha = 1; eta = 1 is DDPM's posterior."""
    ones = x.new_ones(len(x))
    for i, (a, b) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x0 = model(x, a * ones)
        fresh = min(eta * b * (1 - b**2 / a**2).sqrt(), b)
        x = x0 + (b**2 - fresh**2).sqrt() * (x - x0) / a
        if b > 0:
            x = x + s_noise * fresh * noise(sigmas[i], sigmas[i + 1])
    return x


def dpmpp_2m_sde(x, sigmas, eta, s_noise, noise, solver_type):
    """Lu et al. 2022, section 5 and Zhao's second-order corrections, lambda = -log sigma."""
    old, old_h, ones = None, None, x.new_ones(len(x))
    for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
        x0 = model(x, a * ones)
        if b == 0:
            return x0
        h = (a / b).log()
        gain = 1 - torch.exp(-(1 + eta) * h)
        new = b / a * torch.exp(-eta * h) * x + gain * x0
        if old is not None:
            c = gain / 2 if solver_type == "midpoint" else 1 - gain / ((1 + eta) * h)
            new = new + c * h / old_h * (x0 - old)
        if eta:
            new = new + s_noise * b * (1 - torch.exp(-2 * eta * h)).sqrt() * noise(a, b)
        x, old, old_h = new, x0, h
    return x


ENDS = [karras(12), karras(30, 0.002, 80.0), karras(7)[:-1], karras(1), karras(2)]


@pytest.mark.parametrize("eta", [1.0, 0.0, 0.6])
@pytest.mark.parametrize("sigmas", ENDS, ids=["12", "30", "ends-above-0", "1", "2"])
def test_one_call_samplers_are_the_papers_loops(sigmas, eta):
    """Within 1e-5 on the same noise; the wrong correction (the control) is not."""
    x, double = start(sigmas), sigmas.double()
    wanted = ancestral(x.double(), double, eta, 0.9, Noise())
    found = sample_ddpm_fused(model, x, sigmas, None, None, True, eta, 0.9, Noise())
    assert (found - wanted).abs().max() < 1e-5
    for solver_type in ("midpoint", "heun"):
        wanted = dpmpp_2m_sde(x.double(), double, eta, 0.9, Noise(), solver_type)
        found = sample_dpmpp_2m_sde_fused(
            model, x, sigmas, None, None, True, eta, 0.9, Noise(), solver_type
        )
        assert (found - wanted).abs().max() < 1e-5
    if len(sigmas) > 5:
        other = dpmpp_2m_sde(x.double(), double, eta, 0.9, Noise(), "midpoint")
        assert (found - other).abs().max() > 1e-4


def test_flow_sigmas_are_those_of_rectified_flow():
    """x = (1 - sigma) x0 + sigma eps from pure noise: DDIM's step on that path."""
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    x = start(sigmas)
    found = sample_ddpm_fused(model, x, sigmas, disable=True, eta=0.0, path="flow")
    wanted = x.double()
    for a, b in zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True):
        x0 = model(wanted, a * torch.ones(3).double())
        wanted = (1 - b) * x0 + b * (wanted - (1 - a) * x0) / a
    assert (found - wanted).abs().max() < 1e-5
    for sample in (sample_rtk_uld, sample_rtk_mala, sample_dpmpp_2m_sde_fused):
        assert sample(model, x, sigmas, disable=True, path="flow", seed=1).isfinite().all()


def test_a_stage_is_an_ancestral_step_and_langevin_steps_on_the_kernel():
    """RTK-ULD from its definition: grad g(z) = -score(z) + (z - x_a) / s^2."""
    sigmas, inner, gamma, tau = karras(6), 2, 2.0, 0.4
    noise, x = Noise(), start(sigmas).double()
    ones = x.new_ones(len(x))
    for a, b in zip(sigmas[:-2].double(), sigmas[1:-1].double(), strict=True):
        s2 = a**2 - b**2
        anchor, width = x, b * s2.sqrt() / a
        x0 = model(x, a * ones)
        v = noise(a, b)
        x = b**2 / a**2 * x + s2 / a**2 * x0 + width * noise(a, b)
        c = host.uld_coefficients(float(gamma / width), float(tau * width))
        for _ in range(inner):
            n1, n2 = noise(a, b), noise(a, b)
            grad = (x - model(x, b * ones)) / b**2 + (x - anchor) / s2
            new = x + c["z_from_v"] * v + c["z_from_grad"] * grad + c["z_1"] * n1 + c["z_2"] * n2
            x, v = new, c["v_from_v"] * v + c["v_from_grad"] * grad + c["v_1"] * n1
    wanted = model(x, sigmas[-2].double() * ones)
    asked = Noise()
    found = sample_rtk_uld(model, start(sigmas), sigmas, disable=True, noise_sampler=asked)
    assert (found - wanted).abs().max() < 1e-5
    # each draw has its own part of the interval: parts of a stage follow each other
    assert len(asked.asked) == 5 * 6
    for stage in range(5):
        parts = asked.asked[6 * stage : 6 * stage + 6]
        ends = [float(sigmas[stage]), *(end for _, end in parts)]
        assert [begin for begin, _ in parts] == ends[:-1] and ends[-1] == float(sigmas[stage + 1])
        assert all(a > b for a, b in zip(ends[:-1], ends[1:], strict=True))


@pytest.mark.parametrize("sampler", ["rtk_uld", "rtk_mala"])
def test_addressed_noise_is_that_of_the_run_loop(sampler):
    """To the bit: the same table, key and streams through ardiff.loop.run."""
    sigmas = karras(8)
    name, x = sampler.replace("_", "-"), start(sigmas)
    found = SAMPLERS[sampler](model, x, sigmas, disable=True, seed=5, sample_ids=[4, 0, 9])
    options = {"inner": 2, "tau": 0.4} | ({"gamma": 2.0} if sampler == "rtk_uld" else {})
    plan = _sigma_plan.stage_plan(name, "edm", tuple(sigmas.double().tolist()), None, **options)
    address = _sigma_loop.Noise(x, None, 5, None, [4, 0, 9], plan)
    assert torch.equal(address.stream % 2**20, address.stream[:1].expand(3) % 2**20)
    wanted = run(
        plan.table,
        lambda x, level, _: model(x.view(SHAPE), level).flatten(1),
        x.flatten(1),
        key=torch.tensor([5]),
        stream=make_stream([4, 0, 9], 3, int(address.stream[0]) % 2**20, "cpu"),
    )
    assert torch.equal(found, wanted.view(SHAPE))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_callback_an_interval_with_the_models_answer_there(sampler):
    """x at sigma and the answer at x, also where the kernel carries it; nothing is overwritten."""
    sigmas, log, kept = karras(7), [], []

    def seen(info: dict) -> None:
        assert set(info) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        log.append(info)
        kept.append((info["x"].clone(), info["denoised"].clone()))

    x = start(sigmas)
    before = x.clone()
    last = SAMPLERS[sampler](model, x, sigmas, callback=seen, disable=True, seed=1)
    assert torch.equal(x, before) and torch.equal(log[0]["x"], x)
    assert [info["i"] for info in log] == list(range(7))
    for info, sigma, (x_then, denoised_then) in zip(log, sigmas[:-1], kept, strict=True):
        assert info["sigma"] == sigma and info["sigma_hat"] == sigma
        assert torch.equal(info["x"], x_then) and torch.equal(info["denoised"], denoised_then)
        answer = model(info["x"], sigma * torch.ones(3))
        assert (info["denoised"] - answer).abs().max() < 1e-5
    assert torch.equal(log[-1]["denoised"], last)


def test_the_default_step_of_mala_is_that_of_the_size():
    """0.4 up to 40 elements, 0.4 (40 / d)^(1/2) for d."""
    sigmas = karras(8)
    for shape, tau in (((2, 4, 3, 3), 0.4), ((2, 4, 8, 8), 0.4 * (40 / 256) ** 0.5)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * sigmas[0]
        found, same, other = (
            sample_rtk_mala(lambda x, sigma: x / (1 + sigma[0] ** 2), x, sigmas, disable=True,
                            seed=1, **options)
            for options in ({}, {"tau": tau}, {"tau": 0.9 * tau})
        )  # fmt: skip
        assert torch.equal(found, same) and not torch.equal(found, other)


CALLS = [
    ("ddpm_fused", {}, 10), ("dpmpp_2m_sde_fused", {}, 10), ("rtk_uld", {}, 9 * 3 + 1),
    ("rtk_uld", {"inner": 1}, 9 * 2 + 1), ("rtk_uld", {"stages": 3}, 3 * 3 + 1),
    ("rtk_uld", {"stages": 20}, 20 * 3 + 1), ("rtk_mala", {}, 1 + 9 * 3),
    ("rtk_mala", {"accept": "simpson"}, 1 + 9 * 5), ("rtk_mala", {"stages": 4}, 1 + 4 * 3),
]  # fmt: skip


@pytest.mark.parametrize("sampler,options,calls", CALLS)
def test_the_documented_number_of_calls_at_the_sigmas_given(sampler, options, calls):
    sigmas, at, intervals = karras(10), [], []

    def counted(x, sigma, *, flag):
        assert flag == 7 and sigma.shape == (3,) and sigma.dtype == x.dtype and x.shape == SHAPE
        at.append(float(sigma[0]))
        return model(x, sigma)

    x = start(sigmas)
    SAMPLERS[sampler](
        counted, x, sigmas, {"flag": 7}, lambda info: intervals.append(info["i"]), True, **options
    )
    assert len(at) == calls
    assert all(a >= b for a, b in zip(at[:-1], at[1:], strict=True))
    assert (at[0], at[-1]) == (float(sigmas[0]), float(sigmas[-2]))
    if "stages" in options:
        assert len(intervals) == options["stages"] + 1 and intervals == sorted(intervals)
        assert (intervals[0], intervals[-1]) == (0, 9)
    else:
        assert set(at) <= set(sigmas.tolist())


def test_a_noise_sampler_is_asked_once_an_interval_but_for_the_last():
    sigmas = karras(5)
    for sample in (sample_ddpm_fused, sample_dpmpp_2m_sde_fused):
        noise = Noise()
        sample(model, start(sigmas), sigmas, disable=True, noise_sampler=noise)
        levels = sigmas.tolist()
        assert noise.asked == list(zip(levels[:-2], levels[1:-1], strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_and_ids_address_the_noise(sampler):
    """ComfyUI's way (in extra_args, uint64, seen by the model), ours, and torch's generator."""
    sample, sigmas = SAMPLERS[sampler], karras(5)
    x, seeds = start(sigmas), []

    def drawn(rows=slice(None), **options):
        return sample(model, x[rows], sigmas, disable=True, **options)

    def watched(x, sigma, seed=None):
        seeds.append(seed)
        return model(x, sigma)

    first = drawn(seed=9)
    assert torch.equal(first, drawn(seed=9)) and not torch.equal(first, drawn(seed=10))
    assert torch.equal(first, sample(watched, x, sigmas, {"seed": 9}, disable=True))
    assert set(seeds) == {9}
    assert torch.equal(drawn(seed=-1), drawn(seed=2**64 - 1))
    assert torch.equal(first[2:], drawn(slice(2, 3), seed=9, sample_ids=[2]))
    torch.manual_seed(0)
    one = drawn()
    two = drawn()
    torch.manual_seed(0)
    assert torch.equal(one, drawn()) and not torch.equal(one, two)


def test_the_second_half_of_a_split_run_has_noise_of_its_own():
    """With the identity as model the step is x + w n, which gives the normals back."""

    def normals(first: float, last: float) -> Tensor:
        x = torch.zeros(1, 1, 1, 4096)
        ends = torch.tensor([first, last])
        moved = sample_ddpm_fused(lambda x, sigma: x, x, ends, disable=True, seed=2)
        return moved.flatten() / (last * math.sqrt(1 - last**2 / first**2))

    begun, same, halfway = normals(8.0, 4.0), normals(8.0, 2.0), normals(4.0, 2.0)
    assert (begun - same).abs().max() < 1e-5
    # 4,096 products of normals: |correlation| > 0.08 has probability below 1e-6
    assert abs(float((begun * halfway).mean())) < 0.08
    assert abs(float(begun.std()) - 1) < 0.06


@pytest.mark.parametrize(
    "sampler,options",
    [*((name, {}) for name in SAMPLERS), ("rtk_mala", {"accept": "simpson"})],
)
def test_a_model_may_answer_in_the_same_memory_each_time(sampler, options):
    """As CUDA graphs do; MALA compares an answer with that of a later call."""
    sigmas, buffer = karras(6), torch.empty(SHAPE)
    options = {"disable": True, "seed": 4, **options}

    def static(x, sigma):
        return buffer.copy_(model(x, sigma))

    found = SAMPLERS[sampler](static, start(sigmas), sigmas, **options)
    assert torch.equal(found, SAMPLERS[sampler](model, start(sigmas), sigmas, **options))


def test_models_may_use_gradients_and_other_dtypes():
    def guided(x, sigma):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(at.square().sum(), at)
            return model(at, sigma) - 1e-3 * grad  # still part of a graph

    sigmas = karras(4)
    for sample in SAMPLERS.values():
        assert sample(guided, start(sigmas), sigmas, disable=True, seed=0).isfinite().all()
        whole = sample(model, start(sigmas), sigmas, disable=True, seed=0)
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 0.05)):
            found = sample(model, start(sigmas).to(dtype), sigmas, disable=True, seed=0)
            assert found.dtype == dtype
            near = (found - whole).abs() < tolerance
            assert near.flatten(1).all(1).any()  # a rounded answer may turn a decision of MALA


def test_signatures_are_those_of_k_diffusion():
    names = ["model", "x", "sigmas", "extra_args", "callback", "disable", "eta", "s_noise"]
    for sample in SAMPLERS.values():
        parameters = inspect.signature(sample).parameters
        assert list(parameters)[:9] == [*names, "noise_sampler"]
        defaults = [parameters[name].default for name in (*names[3:], "noise_sampler")]
        assert defaults == [None, None, None, 1.0, 1.0, None]


def test_tables_are_made_once():
    sigmas = karras(9, 0.05)
    _sigma_plan.stage_plan.cache_clear()
    for _ in range(3):
        sample_rtk_uld(model, start(sigmas), sigmas, disable=True, seed=0)
    assert _sigma_plan.stage_plan.cache_info().misses == 1


def test_no_interval_is_no_step():
    x = start(karras(2))
    for sample in SAMPLERS.values():
        for sigmas in (torch.tensor([2.0]), torch.tensor([])):
            assert torch.equal(sample(model, x, sigmas, disable=True), x)


def euler(x, sigmas):
    """k-diffusion's `sample_euler` in float64."""
    for a, b in zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True):
        x = x + (x - model(x, a * x.new_ones(len(x)))) / a * (b - a)
    return x


def dpmpp_2m(x, sigmas):
    """k-diffusion's `sample_dpmpp_2m` in float64."""
    old, t = None, -sigmas.double().log()
    for i in range(len(sigmas) - 1):
        h, x0 = t[i + 1] - t[i], model(x, t[i].neg().exp() * x.new_ones(len(x)))
        slope = 0 if old is None else h / (2 * (t[i] - t[i - 1])) * (x0 - old)
        x, old = (-h).exp() * x - torch.expm1(-h) * (x0 + slope), x0
    return x


RISING = {
    "ddim": (sample_ddim, {}, euler), "euler": (kdiffusion.sample_euler, {}, euler),
    "eta 0": (sample_ddpm_fused, {"eta": 0.0}, euler),
    "dpmpp-2m": (sample_dpmpp_2m, {}, dpmpp_2m),
    "sde, eta 0": (sample_dpmpp_2m_sde_fused, {"eta": 0.0}, dpmpp_2m),
}  # fmt: skip


@pytest.mark.parametrize("name", RISING)
def test_an_inversion_is_that_of_k_diffusion(name):
    """Rising sigmas, as ComfyUI's FlipSigmas gives: the ODE towards noise, and back again."""
    sample, options, expected = RISING[name]
    falling, x = karras(40)[:-1], 0.5 * start(torch.ones(1))
    noisy = sample(model, x, falling.flip(0), disable=True, **options)
    assert (noisy - expected(x.double(), falling.flip(0))).abs().max() < 1e-5 * noisy.abs().max()
    back = (sample(model, noisy, falling, disable=True, **options) - x).abs().max()
    assert back < (0.2 if expected is euler else 0.05)  # of order one and two, |x| up to 1
    flipped = torch.cat([torch.tensor([1e-4]), falling.flip(0)])  # 1e-4 for 0, as ComfyUI does
    noisy = sample(model, x, flipped, disable=True, **options)
    assert (noisy - expected(x.double(), flipped)).abs().max() < 1e-3 * noisy.abs().max()


def test_an_inversion_of_a_flow_ends_in_noise():
    sigmas = torch.cat([torch.tensor([1e-3]), torch.linspace(0.1, 1, 10)])
    x = 0.5 * start(torch.ones(1))
    found = sample_ddim(model, x, sigmas, path="flow", disable=True)
    assert (found - euler(x.double(), sigmas)).abs().max() < 5e-5 * found.abs().max()


def test_what_has_no_inversion_refuses_it():
    """By name: a short table of a solver that mixes may draw nothing."""
    for name in SOLVERS:
        if name in ("ddim", "euler", "flow-euler", "heun", "dpmpp-2m"):
            continue
        for sigmas in ([1.0, 2.0, 3.0], karras(30)[:-1].flip(0).tolist()):
            sample = getattr(kdiffusion, "sample_" + name.replace("-", "_"))
            with pytest.raises(ValueError, match=r"sigmas must decrease, but sigmas\[1\] is .*: "):
                sample(model, start(torch.ones(1)), torch.tensor(sigmas), disable=True)
    flow = torch.tensor([0.01, 0.3, 1.0])
    with pytest.raises(ValueError, match="dpmpp-2m has no step to sigma = 1 on path flow"):
        sample_dpmpp_2m(model, start(torch.ones(1)), flow, path="flow", disable=True)
    assert sample_dpmpp_2m(model, start(torch.ones(1)), flow[:2], path="flow").isfinite().all()
    with pytest.raises(ValueError, match="must increase throughout"):
        sample_ddim(model, start(torch.ones(1)), torch.tensor([0.5, 1 - 1e-7, 1]), path="flow")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_repeated_sigma_is_a_step_of_no_length(sampler):
    sigmas, calls = karras(9, 0.05), []
    at = torch.tensor([0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    counted = lambda x, sigma: calls.append(1) or model(x, sigma)  # noqa: E731
    sample = SAMPLERS[sampler]
    expected, plainly = sample(counted, start(sigmas), sigmas, disable=True, seed=0), len(calls)
    seen = []
    found = sample(
        counted, start(sigmas), sigmas[at], disable=True, seed=0,
        callback=lambda info: seen.append((info["i"], float(info["sigma"]))),
    )  # fmt: skip
    assert torch.equal(found, expected) and len(calls) == 2 * plainly
    assert seen == [(i, float(sigmas[at[i]])) for i in (0, *range(3, 11))]
    same = torch.full((4,), 2.0)
    assert torch.equal(sample(counted, start(same), same, disable=True), start(same))


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize(
    "sigmas,message",
    [
        ([0.0, 1.0, 2.0], "must begin above 0"),
        ([3.0, 1.0, 2.0], "sigmas must decrease, but sigmas[2] is 2.0 after 1.0"),
        ([1.0, 3.0, 3.0, 2.0], "must increase throughout, but sigmas[3] is 2.0 after 3.0"),
    ],
)
def test_sigmas_that_go_no_way_are_refused(name, sigmas, message):
    sample = {"ddim": sample_ddim, "dpmpp-2m": sample_dpmpp_2m}[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(model, start(torch.ones(1)), torch.tensor(sigmas), disable=True)


BAD = {
    "sigmas must decrease, but sigmas[1] is 3.0 after 2.0": {"sigmas": torch.tensor([2.0, 3.0])},
    "sigmas[0] is inf": {"sigmas": torch.tensor([math.inf, 3.0])},
    "at most 1 on path flow; sigmas[0] is 2.0": {"path": "flow", "sigmas": torch.tensor([2.0, 1])},
    "unknown path 'vp'; known: edm, flow": {"path": "vp"},
    "s_noise must be finite and at least 0": {"s_noise": -1.0},
    "noise_sampler must return the shape of x": {"noise_sampler": lambda a, b: torch.zeros(2)},
    "the model must return the shape of its input": {"model": lambda x, sigma: x[:1]},
    "sample_ids must be 3 integers": {"sample_ids": [1]},
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_errors_say_what_was_expected(sampler, message):
    given = {"model": model, "x": start(karras(3)), "sigmas": karras(3), **BAD[message]}
    with pytest.raises(ValueError) as raised:
        SAMPLERS[sampler](**given, disable=True)
    assert message in str(raised.value)


OWN = {
    "sample_rtk_uld: eta must be 1": ("rtk_uld", {"eta": 0.5}),
    "sample_rtk_mala: eta must be 1": ("rtk_mala", {"eta": 0.0}),
    "tau must be positive": ("rtk_uld", {"tau": 0.0}),
    "inner must be an integer of 1 or more": ("rtk_uld", {"inner": 0}),
    "stages must be an integer of 1 or more": ("rtk_mala", {"stages": 1.5}),
    "unknown accept 'energy'": ("rtk_mala", {"accept": "energy"}),
    "unknown solver_type 'euler'": ("dpmpp_2m_sde_fused", {"solver_type": "euler"}),
    "eta must be finite and not negative": ("ddpm_fused", {"eta": -1.0}),
}


@pytest.mark.parametrize("message", OWN)
def test_errors_of_one_sampler(message):
    sampler, options = OWN[message]
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler](model, start(karras(3)), karras(3), disable=True, **options)


# solver, options, the loop of ComfyUI's sampler on each path
CFG_PP = {
    "euler_ancestral": ({"eta": 0.8}, {"edm": loops.euler_ancestral_cfg_pp}),
    "dpmpp_2m": ({}, {"edm": loops.dpmpp_2m_cfg_pp}),
    "res_multistep": ({"eta": 0.0}, dict.fromkeys(("edm", "flow"), loops.res_multistep_cfg_pp)),
    "gradient_estimation": (
        {"ge_gamma": 1.5},
        dict.fromkeys(("edm", "flow"), loops.gradient_estimation_cfg_pp),
    ),
    "dpmpp_2s_ancestral": (
        {"eta": 0.8},
        {
            "edm": loops.dpmpp_2s_ancestral_cfg_pp,
            "flow": loops.dpmpp_2s_ancestral_flow_cfg_pp,
        },
    ),
}


class Guided:
    """A model in ComfyUI: guidance with weight 3, told to its post-CFG functions."""

    def __init__(self, buffer: bool = False) -> None:
        self.buffer = torch.empty(SHAPE) if buffer else None

    def predictions(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        free = 0.5 * model(x, sigma) + 0.1 * torch.sin(x / (1 + sigma.view(-1, 1, 1, 1)))
        return free + 3 * (model(x, sigma) - free), free

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict) -> Tensor:
        assert model_options["disable_cfg1_optimization"] and model_options["mine"] == 1
        denoised, free = self.predictions(x, sigma)
        if self.buffer is not None:
            free = self.buffer.copy_(free)
        for function in model_options["sampler_post_cfg_function"]:
            denoised = function({"denoised": denoised, "uncond_denoised": free, "sigma": sigma})
        return denoised


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, (_, by_path) in CFG_PP.items() for path in by_path]
)
def test_cfg_pp_catches_the_prediction_without_the_condition(name, path):
    options, by_path = CFG_PP[name]
    sigmas = karras(8) if path == "edm" else torch.linspace(1, 0, 9)
    x, guided, noise, seen = start(sigmas), Guided(), Noise(), []
    theirs, given = [lambda args: seen.append(1) or args["denoised"]], {"mine": 1}
    extra = {"model_options": given | {"sampler_post_cfg_function": theirs}}

    def drawn(call, **more):
        return getattr(kdiffusion, f"sample_{name}")(
            call, x, sigmas, dict(extra), disable=True, noise_sampler=Noise(), path=path, **options,
            **more,
        )  # fmt: skip

    found = drawn(guided, cfg_pp=True)
    normals = []

    def call(x, sigma):
        normals.append(None)
        return guided.predictions(x, torch.full((3,), sigma, dtype=torch.float64))

    want = by_path[path](
        call, x.double(), sigmas.double().tolist(), lambda: noise(0, 0).double(), **options
    )
    scale = want.abs().max()
    assert (found - want).abs().max() < 1e-5 * scale
    assert len(seen) == len(normals) and len(theirs) == 1  # the functions given run too, and stay
    assert torch.equal(drawn(Guided(buffer=True), cfg_pp=True), found)
    assert (
        drawn(lambda x, sigma, model_options: guided.predictions(x, sigma)[0]) - want
    ).abs().max() > 0.05 * scale


def test_cfg_pp_says_what_it_needs():
    sigmas, sample = karras(4), sample_dpmpp_2m
    with pytest.raises(ValueError, match="extra_args has no model_options: leave cfg_pp out"):
        sample(model, start(sigmas), sigmas, disable=True, cfg_pp=True)
    extra = {"model_options": {}}
    with pytest.raises(ValueError, match="but the model made none"):
        sample(model, start(sigmas), sigmas, extra, disable=True, cfg_pp=True)
    assert extra == {"model_options": {}}
