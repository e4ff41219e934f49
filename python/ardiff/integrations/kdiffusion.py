"""Samplers with the signature of k-diffusion's, for ComfyUI, WebUIs and k-diffusion itself.

    sample_x(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1., s_noise=1.,
             noise_sampler=None)

with ``model(x, sigma * ones[B], **extra_args)`` returning the denoised x, `sigmas` decreasing, most
often to 0, and x `[B, ...]` of any float dtype; the state is held in float32. The package
k_diffusion is not needed. The model may use gradients (`torch.enable_grad`), and tensors that it or
a callback keeps are never written again.

The callback gets a dict with x, i, sigma, sigma_hat and denoised once for each interval i of
`sigmas`, also where the sampler makes more calls in it: x at sigma and the model's answer there.
With `stages` it is once a stage, and i is the interval in which the stage begins.

Noise: ``noise_sampler(sigma, sigma_next)`` where given. Else it is addressed, by `seed`, or
``extra_args["seed"]`` (ComfyUI passes it there), or a key drawn from torch's own generator: sample
i is then the same in any batch. The first sigma is part of the address, so that the second half of
a run that was split does not repeat the noise of the first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import rtk
from ..run import check_output
from ..sampling import PATCH_BITS, make_key, make_stream, per_sample
from ..schedule import Step, uniform
from ..state import State
from ._sigma_plan import SigmaPlan, one_call_plan, stage_plan

Noise = Callable[[Tensor, Tensor], Tensor]


def sample_ddpm_fused(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: Noise | None = None, *, path: str = "edm",
    seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """DDPM's ancestral step: k-diffusion's `sample_euler_ancestral`, for any eta.

    One model call an interval. eta scales the noise: 0 is the ODE (DDIM, Euler). ComfyUI's sampler
    `ddpm` is the same law at eta = 1.

    Args:
        path: ``edm`` (x = x0 + sigma eps), or ``flow`` (x = (1 - sigma) x0 + sigma eps, as ComfyUI
            has rectified-flow models).
        seed: of the addressed noise, int64 or ComfyUI's uint64; goes before ``extra_args["seed"]``,
            and the model does not see it.
        sample_ids: `B` ids that address the noise, default 0 to B - 1.

    Returns:
        x at the last sigma, like the x given.

    Raises:
        ValueError, TypeError: sigmas that do not decrease, an eta out of range, a model output
            that does not fit x.
    """
    plan = one_call_plan("ddim", path, _host(sigmas), eta=float(eta))
    own = _Noise(x, noise_sampler, seed, extra_args, sample_ids, plan)
    return _run(plan, model, x, sigmas, extra_args, callback, disable, s_noise, own)


def sample_dpmpp_2m_sde_fused(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: Noise | None = None, solver_type: str = "midpoint", *,
    path: str = "edm", seed: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) SDE: k-diffusion's `sample_dpmpp_2m_sde`, one model call an interval.

    `solver_type` is ``midpoint`` or ``heun``. Other arguments, results and errors as
    :func:`sample_ddpm_fused`'s.
    """
    options = {"eta": float(eta), "solver_type": solver_type}
    plan = one_call_plan("dpmpp-2m-sde", path, _host(sigmas), **options)
    own = _Noise(x, noise_sampler, seed, extra_args, sample_ids, plan)
    return _run(plan, model, x, sigmas, extra_args, callback, disable, s_noise, own)


def sample_rtk_uld(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: Noise | None = None, *, inner: int = 2,
    gamma: float = 2.0, tau: float = 0.4, stages: int | None = None, path: str = "edm",
    seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Reverse transition kernels by underdamped Langevin: a stage an interval of positive sigmas.

    A stage is an ancestral step from sigma_i to sigma_(i+1) and `inner` Langevin steps at
    sigma_(i+1): 1 + inner model calls; the interval that ends in 0 is one call. n intervals down to
    0 make (n - 1) (1 + inner) + 1 calls. With `stages` there are that many instead of n - 1, spaced
    over the same positive sigmas (evenly in log sigma within each interval): of 30 intervals,
    stages=10 makes 31 calls at inner=2.

    A stage asks `noise_sampler` for 2 (1 + inner) draws, each over its own part of the interval, so
    that a Brownian tree gives independent ones.

    Args:
        eta: must be 1: the kernel has no deterministic form. `s_noise` is its temperature.
        gamma, tau: friction and step in units of the stage's envelope, see :func:`ardiff.solver`.

    Other arguments, results and errors as :func:`sample_ddpm_fused`'s.
    """
    _check_eta("sample_rtk_uld", eta)
    rtk.check_positive("sample_rtk_uld", gamma=gamma, tau=tau)
    options = {"inner": inner, "gamma": float(gamma), "tau": float(tau)}
    plan = stage_plan("rtk-uld", path, _host(sigmas), stages, **options)
    own = _Noise(x, noise_sampler, seed, extra_args, sample_ids, plan)
    return _run(plan, model, x, sigmas, extra_args, callback, disable, s_noise, own)


def sample_rtk_mala(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: Noise | None = None, *, inner: int = 2,
    tau: float = 0.4, accept: str = "trapezoid", stages: int | None = None, path: str = "edm",
    seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Reverse transition kernels by Metropolis-adjusted Langevin (MALA), the score alone.

    As :func:`sample_rtk_uld`, each of the `inner` steps accepted or rejected, sample by sample, by
    the trapezoidal rule for the log-density along it or, with ``accept="simpson"``, Simpson's at
    one more call. The answer at the accepted state is carried, so n intervals down to 0 make
    1 + (n - 1) (1 + inner) calls, or 1 + (n - 1) (1 + 2 inner) with Simpson's; the last interval
    makes none. A stage asks `noise_sampler` for 1 + inner draws; the uniforms of the decisions are
    always addressed.

    Guided and learned models are no gradients of a density: the decisions are then approximate.
    """
    _check_eta("sample_rtk_mala", eta)
    rtk.check_positive("sample_rtk_mala", tau=tau)
    if accept not in ("trapezoid", "simpson"):
        raise ValueError(f"unknown accept {accept!r}; known: trapezoid, simpson")
    options = {"inner": inner, "tau": float(tau), "accept": accept}
    plan = stage_plan("rtk-mala", path, _host(sigmas), stages, **options)
    own = _Noise(x, noise_sampler, seed, extra_args, sample_ids, plan)
    return _run(plan, model, x, sigmas, extra_args, callback, disable, s_noise, own)


SAMPLERS = {
    "rtk_uld": sample_rtk_uld,
    "rtk_mala": sample_rtk_mala,
    "ddpm_fused": sample_ddpm_fused,
    "dpmpp_2m_sde_fused": sample_dpmpp_2m_sde_fused,
}


def _host(sigmas: Tensor | Sequence[float]) -> tuple[float, ...]:
    """The sigmas in float64, as the tables are made from them; one transfer from the device."""
    return tuple(torch.as_tensor(sigmas).detach().double().cpu().tolist())


def _check_eta(name: str, eta: float) -> None:
    if eta != 1:
        raise ValueError(
            f"{name}: eta must be 1, since the kernel has no deterministic form, got {eta!r}; "
            "s_noise scales its noise"
        )


class _Noise:
    """The address of the noise, and the draws of `noise_sampler` where that is given."""

    def __init__(
        self,
        x: Tensor,
        noise_sampler: Noise | None,
        seed: int | None,
        extra_args: dict | None,
        sample_ids: Sequence[int] | Tensor | None,
        plan: SigmaPlan,
    ) -> None:
        seed = (extra_args or {}).get("seed") if seed is None else seed
        if isinstance(seed, int) and 2**63 <= seed < 2**64:
            seed -= 2**64
        self.key = make_key(seed, x.device)
        first = np.float32(plan.sigmas[0] if plan.sigmas else 0).tobytes()
        patch = zlib.crc32(first) % 2**PATCH_BITS
        self.stream = make_stream(sample_ids, len(x), patch, x.device)
        self.sampler, self.like = noise_sampler, x

    def given(self, plan: SigmaPlan, row: int, between: tuple[Tensor, Tensor]) -> dict | None:
        """`noise` and `noise2` of a row from the sampler; None: addressed, or not needed."""
        wanted = plan.draws[row]
        if self.sampler is None or not wanted:
            return None
        found = {}
        for name, (begin, end) in wanted.items():
            sigma, sigma_next = (torch.lerp(*between, w) for w in (begin, end))
            drawn = self.sampler(sigma, sigma_next)
            if drawn.shape != self.like.shape:
                raise ValueError(
                    f"noise_sampler must return the shape of x {list(self.like.shape)}, got "
                    f"{list(drawn.shape)}"
                )
            found[name] = drawn.detach().reshape(len(drawn), -1).float().contiguous()
        if len(found) == 1 and plan.table.op[row] == "uld":
            for name in ("noise", "noise2"):
                found.setdefault(name, torch.zeros_like(next(iter(found.values()))))
        return found


@torch.no_grad()
def _run(
    plan: SigmaPlan,
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None,
    callback: Callable[[dict[str, Any]], Any] | None,
    disable: bool | None,
    s_noise: float,
    noise: _Noise,
) -> Tensor:
    """The rows of the plan's table on `model`, with functional ops: no tensor is written twice."""
    if plan.table is None:
        return x
    table, shape, extra_args = plan.table, x.shape, extra_args or {}
    levels = torch.tensor(plan.levels, dtype=torch.float32, device=x.device)
    schedule = uniform(table.to(x.device))
    scale = None if s_noise == 1 else per_sample("s_noise", s_noise, 1, x.device, low=0.0)
    state = State(x.reshape(len(x), -1).float(), schedule, True, scale)
    draws = schedule.buffers.draw.split(1)

    def call(row: int, step: Step) -> None:
        query = state.query(step)
        sigma = x.new_full((len(x),), table.level[row])
        out = model(query.view(shape).to(x.dtype), sigma, **extra_args)
        if isinstance(out, Tensor) and out.shape == shape:
            out = out.detach().reshape(query.shape)
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            out = out.float()
        check_output(out, query)
        state.take([out], step)

    with tqdm(total=plan.intervals, disable=disable) as bar:
        for row, step in enumerate(schedule.steps()):
            if step.calls_model is not False:
                call(row, step)
            interval = plan.begins.get(row)
            if interval is not None:
                if callback is not None:
                    sigma = levels[plan.stage[row]]
                    denoised = state.output.view(shape).to(x.dtype)
                    callback(
                        {
                            "x": state.x.view(shape).to(x.dtype), "i": interval, "sigma": sigma,
                            "sigma_hat": sigma, "denoised": denoised,
                        }
                    )  # fmt: skip
                bar.update(interval + 1 - bar.n)
            if step.saves_origin is not False:
                state.save_origin(step.saves_origin)
            for kind, which in step.launches:
                place = (schedule.buffers.coef, which, draws[row], noise.key, noise.stream)
                if kind.op == "accept":
                    state.accept(place, kind)
                else:
                    stage = plan.stage[row]
                    state.move(
                        kind.op, place, noise.given(plan, row, (levels[stage], levels[stage + 1]))
                    )
    return state.x.view(shape).to(x.dtype)
