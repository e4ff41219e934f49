"""Samplers with the signature of k-diffusion's, for ComfyUI, WebUIs and k-diffusion itself.

    sample_x(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1., s_noise=1.,
             noise_sampler=None)

with ``model(x, sigma * ones[B], **extra_args)`` returning the denoised x, `sigmas` decreasing, most
often to 0, and x `[B, ...]` of any float dtype; the state is held in float32. The package
k_diffusion is not needed. The model may use gradients (`torch.enable_grad`), and tensors that it or
a callback keeps are never written again.

There is a `sample_x` for every solver x of :data:`ardiff.solvers.SOLVERS`, with underscores in its
name (:data:`SOLVER_SAMPLERS`), besides those written out below (:data:`SAMPLERS`); and
:func:`sample_table` for a table of your own.

The callback gets a dict with x, i, sigma, sigma_hat and denoised once for each interval i of
`sigmas`, also where the sampler makes more calls in it: x at sigma and the model's answer there.
With `stages` it is once per stage, and i is the interval in which the stage begins.

Noise: ``noise_sampler(sigma, sigma_next)`` where given. Else it is addressed, by `seed`, or
``extra_args["seed"]`` (ComfyUI passes it there), or a key drawn from torch's own generator: sample
i is then the same in any batch. The first sigma is part of the address, so that the second half of
a run that was split does not repeat the noise of the first. With ``noise="path"`` it is the
increment of a Brownian path between the sigmas, which a :class:`PathNoiseSampler` gives to samplers
of k-diffusion too: a run that was split has the noise of the whole.

Solvers that take `cfg_pp` (CFG++) need the model's prediction without its condition. They have it
from a function in ``extra_args["model_options"]["sampler_post_cfg_function"]``, which ComfyUI's
guidance calls with a dict of ``denoised`` and ``uncond_denoised``.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from os import PathLike

import torch
from torch import Tensor

from ..loop.lookahead import check_lookahead
from ..solvers import SOLVERS, check_options, solver_options, table_function
from ..solvers._rtk import stages as rtk
from ..solvers._rtk.adjusted import langevin_tau
from ..tables.table import StepTable
from ._path_noise import PathNoiseSampler as PathNoiseSampler
from ._sigma_loop import Noise, run_plan
from ._sigma_plan import solver_plan, stage_plan, table_levels, table_plan

NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def sample_ddpm_fused(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *, path: str = "edm",
    seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None, noise: str = "step",
    lookahead: int | str | None = None, mode: str | None = None, tolerance: float | None = None,
) -> Tensor:  # fmt: skip
    """DDPM's ancestral step: k-diffusion's `sample_euler_ancestral`, for any eta.

    One model call per interval. eta scales the noise: 0 is the ODE (DDIM, Euler). ComfyUI's sampler
    `ddpm` is the same law at eta = 1.

    Args:
        path: ``edm`` (x = x0 + sigma eps), or ``flow`` (x = (1 - sigma) x0 + sigma eps, as ComfyUI
            has rectified-flow models).
        seed: of the addressed noise, int64 or ComfyUI's uint64; goes before ``extra_args["seed"]``,
            and the model does not see it.
        sample_ids: `B` ids that address the noise, default 0 to B - 1.
        noise: ``step``, or ``path``: that of a :class:`PathNoiseSampler` of the seed, so that runs
            of one seed are near to each other whatever their sigmas. For solvers that add noise
            once on each interval. `noise_sampler` goes before it.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`: rows looked ahead, without a
            callback, and with addressed noise alone.

    Returns:
        x at the last sigma, like the x given.

    Raises:
        ValueError, TypeError: sigmas out of order, an eta out of range, a model output
            that does not fit x.
    """
    ahead = check_lookahead(lookahead, mode, tolerance)
    plan = solver_plan("ddim", path, _host(sigmas), eta=float(eta))
    drawn = Noise(x, noise_sampler, seed, extra_args, sample_ids, plan, noise)
    return run_plan(plan, model, x, extra_args, callback, disable, s_noise, drawn, ahead)


def sample_dpmpp_2m_sde_fused(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint", *, path: str = "edm", seed: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None, noise: str = "step",
    lookahead: int | str | None = None, mode: str | None = None, tolerance: float | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) SDE: k-diffusion's `sample_dpmpp_2m_sde`, one model call per interval.

    `solver_type` is ``midpoint`` or ``heun``. Other arguments, results and errors as
    :func:`sample_ddpm_fused`'s.
    """
    options = {"eta": float(eta), "solver_type": solver_type}
    ahead = check_lookahead(lookahead, mode, tolerance)
    plan = solver_plan("dpmpp-2m-sde", path, _host(sigmas), **options)
    drawn = Noise(x, noise_sampler, seed, extra_args, sample_ids, plan, noise)
    return run_plan(plan, model, x, extra_args, callback, disable, s_noise, drawn, ahead)


def sample_rtk_uld(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *, inner: int = 2,
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
    noise = Noise(x, noise_sampler, seed, extra_args, sample_ids, plan)
    return run_plan(plan, model, x, extra_args, callback, disable, s_noise, noise)


def sample_rtk_mala(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, eta: float = 1.0,
    s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *, inner: int = 2,
    tau: float | None = None, accept: str = "trapezoid", stages: int | None = None,
    path: str = "edm", seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Reverse transition kernels by Metropolis-adjusted Langevin (MALA), the score alone.

    As :func:`sample_rtk_uld`, each of the `inner` steps accepted or rejected, sample by sample, by
    the trapezoidal rule for the log-density along it or, with ``accept="simpson"``, Simpson's at
    one more call. The answer at the accepted state is carried, so n intervals down to 0 make
    1 + (n - 1) (1 + inner) calls, or 1 + (n - 1) (1 + 2 inner) with Simpson's; the last interval
    makes none. A stage asks `noise_sampler` for 1 + inner draws; the uniforms of the decisions are
    always addressed.

    Args:
        tau: step in units of the squared width of the stage's envelope; None: 0.4 for samples of up
            to 40 elements, and 0.4 (40 / d)^(1/2) for d.

    Guided and learned models are no gradients of a density: the decisions are then approximate.
    """
    _check_eta("sample_rtk_mala", eta)
    tau = langevin_tau(math.prod(x.shape[1:])) if tau is None else tau
    rtk.check_positive("sample_rtk_mala", tau=tau)
    if accept not in ("trapezoid", "simpson"):
        raise ValueError(f"unknown accept {accept!r}; known: trapezoid, simpson")
    options = {"inner": inner, "tau": float(tau), "accept": accept}
    plan = stage_plan("rtk-mala", path, _host(sigmas), stages, **options)
    noise = Noise(x, noise_sampler, seed, extra_args, sample_ids, plan)
    return run_plan(plan, model, x, extra_args, callback, disable, s_noise, noise)


def table_sigmas(table: StepTable | str | PathLike, path: str = "edm") -> Tensor:
    """The sigmas at which a table calls the model, then 0; float32, on the CPU.

    Args:
        table: a table or the name of its file; of another path or prediction it is converted, see
            :meth:`ardiff.tables.table.StepTable.on`.
        path: ``edm`` or ``flow``, as of :func:`sample_ddpm_fused`.
    """
    table = StepTable.of(table)
    own = (table.path, table.prediction) == (path, "sample")
    return torch.tensor(table_levels(table if own else table.on(path, "sample")))


def sample_table(
    model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
    callback: Callable | None = None, disable: bool | None = None, s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None, *, table: StepTable | str | PathLike,
    path: str = "edm", seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None,
    noise: str = "step",
) -> Tensor:  # fmt: skip
    """A given table, such as a learned one, at its own levels.

    Args:
        sigmas: those of :func:`table_sigmas`, at whose first x begins.
        table: a table that ends at the data, or the name of its file; of another path or prediction
            it is converted.

    Other arguments, results and errors as :func:`sample_ddpm_fused`'s.
    """
    plan = table_plan(StepTable.of(table), path, _host(sigmas))
    drawn = Noise(x, noise_sampler, seed, extra_args, sample_ids, plan, noise)
    return run_plan(plan, model, x, extra_args, callback, disable, s_noise, drawn)


SAMPLERS = {
    "rtk_uld": sample_rtk_uld,
    "rtk_mala": sample_rtk_mala,
    "ddpm_fused": sample_ddpm_fused,
    "dpmpp_2m_sde_fused": sample_dpmpp_2m_sde_fused,
}

_SHARED = """

    The solver's steps, or its stages, end at `sigmas`. eta is given to a solver that takes it, and
    must be left out for the others. `dim`, where a solver takes it, is that of x unless given.
    Other arguments, results and errors as :func:`sample_ddpm_fused`'s; the solver's own options as
    :func:`ardiff.solver` takes them, but for `stages`.
"""


def _sampler_of(solver: str) -> Callable[..., Tensor]:
    """The sampler of a solver, with the signature of k-diffusion's and the solver's options."""
    name, own = f"sample_{_as_name(solver)}", solver_options(solver)

    def sample(
        model: Callable, x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
        callback: Callable | None = None, disable: bool | None = None, eta: float | None = None,
        s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *, path: str = "edm",
        seed: int | None = None, sample_ids: Sequence[int] | Tensor | None = None,
        noise: str = "step", **options,
    ) -> Tensor:  # fmt: skip
        if "stages" in options:
            raise ValueError(f"{name} takes no stages: there is one for each interval of sigmas")
        if eta is not None and "eta" not in own:
            raise ValueError(f"{name}: solver {solver} takes no eta, got {eta!r}; leave it out")
        given = check_options(solver, options)
        given |= {} if eta is None else {"eta": float(eta)}
        if "dim" in own:
            given.setdefault("dim", math.prod(x.shape[1:]))
        plan = solver_plan(solver, path, _host(sigmas), **given)
        drawn = Noise(x, noise_sampler, seed, extra_args, sample_ids, plan, noise)
        return run_plan(plan, model, x, extra_args, callback, disable, s_noise, drawn)

    shown = inspect.signature(sample)
    defaults = inspect.signature(table_function(solver)).parameters
    parameters = list(shown.parameters.values())[:-1]
    if "eta" in own:
        eta = defaults["eta"].default
        parameters = [p.replace(default=eta) if p.name == "eta" else p for p in parameters]
    parameters += [defaults[option] for option in own if option not in ("eta", "stages")]
    about = (sys.modules[table_function(solver).__module__].__doc__ or solver).split("\n", 1)[0]
    sample.__name__ = sample.__qualname__ = name
    sample.__doc__ = about + _SHARED
    sample.__signature__ = shown.replace(parameters=parameters)
    return sample


def _as_name(solver: str) -> str:
    return solver.replace("-", "_")


# a sampler for every solver that there is, by the name of its file
SOLVER_SAMPLERS = {
    _as_name(solver): SAMPLERS.get(_as_name(solver)) or _sampler_of(solver) for solver in SOLVERS
}
globals().update({f"sample_{name}": sample for name, sample in SOLVER_SAMPLERS.items()})


def _host(sigmas: Tensor | Sequence[float]) -> tuple[float, ...]:
    """The sigmas in float64, as the tables are made from them; one transfer from the device."""
    return tuple(torch.as_tensor(sigmas).detach().double().cpu().tolist())


def _check_eta(name: str, eta: float) -> None:
    if eta != 1:
        raise ValueError(
            f"{name}: eta must be 1, since the kernel has no deterministic form, got {eta!r}; "
            "s_noise scales its noise"
        )
