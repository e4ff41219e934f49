"""The loop of the samplers over sigmas: rows of a plan's table on a k-diffusion denoiser."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..guide import per_sample
from ..loop.checks import OUTPUT_DTYPES, check_output
from ..loop.lookahead import Lookahead, run_lookahead
from ..loop.path_noise import check_noise_name
from ..loop.rows import Decision, Rows
from ..loop.run import make_schedule
from ..loop.stats import collect, warn_of_acceptance
from ..noise import MAX_PATCHES, make_key, make_stream
from ._path_noise import PathNoiseSampler, of_flow, signed
from ._sigma_plan import SigmaPlan
from ._unconditional import Unconditional


class Noise:
    """The address of the noise, and the draws of `sampler` where that is given.

    Args:
        x: `[B, ...]`, what the sampler's normals are like.
        sampler: ``sampler(sigma, sigma_next)``, or None. It goes before `noise`.
        seed: int64 or uint64; None: ``extra_args["seed"]``, else drawn from torch's generator.
        sample_ids: as of :func:`ardiff.noise.make_stream`.
        plan: whose first sigma is part of the address of ``step`` noise.
        noise: ``step``, or ``path``: a :class:`PathNoiseSampler` of the seed and ids.
    """

    def __init__(
        self,
        x: Tensor,
        sampler: Callable[[Tensor, Tensor], Tensor] | None,
        seed: int | None,
        extra_args: dict | None,
        sample_ids: Sequence[int] | Tensor | None,
        plan: SigmaPlan,
        noise: str = "step",
    ) -> None:
        check_noise_name(noise)
        seed = signed((extra_args or {}).get("seed") if seed is None else seed)
        if noise == "path" and sampler is None:
            plan.require_whole_intervals()
            scale = of_flow if plan.path == "flow" else torch.clone
            sampler = PathNoiseSampler(x, seed=seed, transform=scale, sample_ids=sample_ids)
        self.key = make_key(seed, x.device)
        first = np.float32(plan.sigmas[0] if plan.sigmas else 0).tobytes()
        patch = zlib.crc32(first) % MAX_PATCHES
        self.stream = make_stream(sample_ids, len(x), patch, x.device)
        self.sampler, self.like = sampler, x

    def given(self, plan: SigmaPlan, row: int, levels: Tensor) -> dict[str, Tensor]:
        """`noise` (and `noise2`) of a row from the sampler; empty: addressed, or not needed."""
        if self.sampler is None or not plan.draws[row]:
            return {}
        ends = levels[plan.stage[row]], levels[plan.stage[row] + 1]
        found = {}
        for name, parts in plan.draws[row].items():
            drawn = self.sampler(*(torch.lerp(*ends, part) for part in parts))
            if drawn.shape != self.like.shape:
                raise ValueError(
                    f"noise_sampler must return the shape of x {list(self.like.shape)}, got "
                    f"{list(drawn.shape)}"
                )
            found[name] = drawn.detach().reshape(len(drawn), -1).float().contiguous()
        if plan.table.op[row] == "uld":  # which takes both or none; a coefficient of 0 drops one
            some = next(iter(found.values()))
            found = {"noise": some, "noise2": some} | found
        return found


@torch.no_grad()
def run_plan(
    plan: SigmaPlan,
    model: Callable[..., Tensor],
    x: Tensor,
    extra_args: dict | None,
    callback: Callable[[dict[str, Any]], Any] | None,
    disable: bool | None,
    s_noise: float,
    noise: Noise,
    lookahead: Lookahead | None = None,
) -> Tensor:
    """Every row of the plan's table, of which no tensor that was shown is ever written.

    With a lookahead the model is called with the states of several rows of each sample at once, of
    `extra_args` those that are tensors with a row per sample repeated for them.

    Returns:
        x at the last sigma, of the shape and dtype of `x`.

    Raises:
        ValueError, TypeError: a model output or drawn noise that does not fit x; a callback or a
            noise sampler beside a lookahead; a CFG++ table whose model does not tell its prediction
            without the condition.
    """
    if plan.table is None:
        return x
    if lookahead is not None:
        if callback is not None or noise.sampler is not None:
            what = "a callback" if callback is not None else "a noise sampler"
            raise ValueError(
                f"lookahead takes several rows at once, and {what} is asked for one after the "
                "other: leave one out"
            )
        return _run_ahead(plan, model, x, extra_args, s_noise, noise, lookahead)
    shape, dtype, table = x.shape, x.dtype, plan.table
    schedule = make_schedule(table, x)
    levels = torch.tensor(plan.levels, dtype=torch.float32, device=x.device)
    options = (
        {} if s_noise == 1 else {"noise_scale": per_sample("s_noise", s_noise, 1, x.device, low=0)}
    )
    flat = x.reshape(len(x), -1).float()
    decisions: list[Decision] = []
    other = Unconditional(extra_args) if table.unconditional else None
    extra_args = other.extra_args if other else extra_args or {}
    # what the model answers is guided already: u + 1 (c - u)
    weights = [flat.new_ones(1)] if other else []
    rows = Rows(
        schedule, flat, key=noise.key, stream=noise.stream, options=options, weights=weights,
        decisions=decisions,
    )  # fmt: skip

    def answers(z: Tensor, row: int) -> list[Tensor]:
        sigma = x.new_full((len(x),), table.level[row])
        own = z.view(shape).to(dtype, copy=True)  # which the model may change
        outs = [model(own, sigma, **extra_args)]
        outs += [other.take()] if other else []
        for out in outs:
            check_output(out, x, schedule.learned_range, (*OUTPUT_DTYPES, torch.float64))
        outs = [out.detach().reshape(len(x), -1) for out in outs]
        return [out.float() if out.dtype == torch.float64 else out for out in outs]

    def shown(z: Tensor) -> Tensor:
        return z[:, : flat.shape[1]].view(shape).to(dtype)

    with tqdm(total=plan.intervals, disable=disable) as bar:
        while not rows.ended:
            k = rows.index
            if rows.calls_model:
                outs = answers(rows.query(), k)
                rows.state.theirs = outs  # the model may answer in the same memory each time
                rows.take(outs)
            if k in plan.begins:
                if callback is not None:
                    at = {"sigma": levels[plan.stage[k]], "sigma_hat": levels[plan.stage[k]]}
                    seen = {"x": shown(rows.x), "denoised": shown(rows.out)}
                    callback({"i": plan.begins[k], **seen, **at})
                bar.update(plan.begins[k] + 1 - bar.n)
            rows.execute(**noise.given(plan, k, levels))
    warn_of_acceptance(collect(table, 0, 0.0, decisions), table.solver)
    return shown(rows.x)


def _run_ahead(
    plan: SigmaPlan,
    model: Callable[..., Tensor],
    x: Tensor,
    extra_args: dict | None,
    s_noise: float,
    noise: Noise,
    lookahead: Lookahead,
) -> Tensor:
    def denoised(z: Tensor, sigma: Tensor, extra: dict) -> Tensor:
        own = z.view(len(z), *x.shape[1:]).to(x.dtype)
        out = model(own, sigma.to(x.dtype), **extra)
        check_output(out, own, False, (*OUTPUT_DTYPES, torch.float64))
        out = out.reshape(len(z), -1)
        return out.float() if out.dtype == torch.float64 else out

    scale = None if s_noise == 1 else per_sample("s_noise", s_noise, 1, x.device, low=0)
    found, _ = run_lookahead(
        plan.table, denoised, x.reshape(len(x), -1).float(), lookahead, key=noise.key,
        stream=noise.stream, condition=extra_args or {}, noise_scale=scale,
    )  # fmt: skip
    return found.view(x.shape).to(x.dtype)
