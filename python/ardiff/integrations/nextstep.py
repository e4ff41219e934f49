"""NextStep-1 (2025) and models with its flow head: the sampling loop of each token by the head
engine.

The head predicts the velocity v of a rectified flow whose time runs from noise at 0 to data at 1.
Stock evaluates the whole head at each step, on up to three conditions; here everything that depends
on time and condition alone is computed once per token, and a step is one `head_step` and one
`diffusion_step`.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..guide import Guidance
from ..heads.fused import FusedHead
from ..loop.lookahead import check_lookahead, run_lookahead
from ..loop.run import run
from ..noise import initial_state, make_key, stream_of
from ..tables.table import COLUMNS, StepTable, TableBuilder
from ._head_sampler import HeadSampler, owner_of
from ._replace import install, uninstall

__all__ = ["NextStepSampler", "accelerate", "restore", "shifted_times", "velocity_table"]


def shifted_times(steps: int, shift: float = 1.0, last_step_size: float = 0.04) -> np.ndarray:
    """The times of the calls, float64 `[steps]`: even from 0 to 1 - last_step_size, then t ->
    t / (s - (s - 1) t), which for a shift s > 1 takes smaller steps near the noise.

    Raises:
        ValueError: fewer than two steps, a shift that is not positive, or a last step outside
            (0, 1).
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"num_sampling_steps must be an integer of 2 or more, got {steps!r}")
    if not (np.isfinite(shift) and shift > 0):
        raise ValueError(f"timesteps_shift must be positive, got {shift!r}")
    if not 0 < last_step_size < 1:
        raise ValueError(f"last_step_size must be within (0, 1), got {last_step_size!r}")
    t = np.linspace(0, 1 - last_step_size, steps)
    return t / (shift - (shift - 1) * t)


@functools.lru_cache(maxsize=64)
def velocity_table(steps: int, shift: float = 1.0, last_step_size: float = 0.04) -> StepTable:
    """Euler-Maruyama with score (t v - x) / ((1 - t)^2 + t (1 - t)) = (t v - x) / (1 - t).

    From t to t + dt the drift v + (1 - t) score = (1 + t) v - x and the noise give ::

        x' = (1 - dt) x + dt (1 + t) v + sqrt(2 (1 - t) dt) n

    and the last step is x + last_step_size v. The rows' x0 is the velocity itself.
    """
    times = shifted_times(steps, shift, last_step_size)
    builder = TableBuilder("nextstep", "flow", "nextstep")  # its t is 1 at the data
    for t, dt in zip(times, np.diff(times), strict=False):
        builder.add(
            "diffusion", t, p_o=1.0, x_x=1 - dt, x_0=dt * (1 + t), x_n=np.sqrt(2 * (1 - t) * dt)
        )
    builder.add("diffusion", times[-1], p_o=1.0, x_x=1.0, x_0=last_step_size)
    return builder.finish(init_scale=1.0)


@functools.lru_cache(maxsize=64)
def _rounded(steps: int, shift: float, last_step_size: float, dtype: torch.dtype) -> StepTable:
    """Its times in the dtype in which the head is given them."""
    table = velocity_table(steps, shift, last_step_size)
    level = torch.tensor(table.level, dtype=torch.float32).to(dtype).double()
    return replace(table, level=level.numpy())


@functools.lru_cache(maxsize=64)
def _table_of(table: StepTable, dtype: torch.dtype) -> StepTable:
    """A table of path and prediction ``flow`` for the head, whose time is 1 at the data and whose
    velocity points there; times in the dtype in which the head is given them."""
    table.check_model("flow", "flow")
    if set(table.op) != {"diffusion"}:
        raise ValueError(f"NextStep: a table needs diffusion rows alone, {table.solver} has others")
    level = torch.tensor(1 - table.level, dtype=torch.float32).to(dtype).double()
    coefficients = table.coefficients.copy()
    coefficients[:, COLUMNS["diffusion"].index("p_o")] *= -1
    return replace(table, level=level.numpy(), coefficients=coefficients, path="nextstep")


class NextStepSampler(HeadSampler):
    """What :func:`accelerate` returns."""

    system = "NextStep"
    methods = {"sample": ("c", "cfg", "cfg2", "timesteps_shift", "num_sampling_steps")}

    def head(self) -> FusedHead:
        fused = super().head()
        dim = fused.model.input_proj.in_features
        outputs = fused.model.final_layer.linear.out_features
        if outputs != dim:
            raise ValueError(
                f"NextStep: expected a head with as many outputs as inputs, got {outputs} and {dim}"
            )
        return fused

    def sample(
        self,
        c: Tensor,
        cfg: float = 1.0,
        cfg2: float = 1.0,
        timesteps_shift: float = 1.0,
        num_sampling_steps: int = 20,
        last_step_size: float = 0.04,
        noise_repeat: int = 1,
        *,
        noise: Tensor | None = None,
    ) -> Tensor:
        """A token for each condition, as ``image_head.sample``.

        Each of `cfg` and `cfg2` above 1 is one way more: with one of them the guided velocity is
        u + cfg (v - u), with both u2 + cfg2 (u1 - u2) + cfg (v - u1).

        Args:
            c: `[ways B, D]`: the conditions, then those of u (or u1), then those of u2.
            timesteps_shift, num_sampling_steps, last_step_size: see :func:`shifted_times`.
            noise_repeat: noises drawn; row i has that of i modulo noise_repeat. By default all rows
                have the same.
            noise: `[num_sampling_steps, B, d]` (of a table, its rows in place of the steps)
                normals in place of drawn ones, the first the initial state. Then torch's generator
                is not drawn from.

        Returns:
            `[B, d]` in the dtype of c.

        Raises:
            ValueError: shapes or options that do not go together.
        """
        fused = self.head()
        weight, dim = fused.model.cond_embed.weight, fused.model.input_proj.in_features
        ways = 1 + bool(cfg > 1) + bool(cfg2 > 1)
        if c.dim() != 2 or c.shape[1] != weight.shape[1] or len(c) % ways:
            raise ValueError(
                f"c must be [{ways} B, {weight.shape[1]}] (cfg {cfg}, cfg2 {cfg2}: {ways} "
                f"conditions per token), got {list(c.shape)}"
            )
        count = len(c) // ways
        if noise_repeat < 1 or count % noise_repeat:
            raise ValueError(f"noise_repeat must divide the {count} tokens, got {noise_repeat}")
        if self.options["table"] is not None:
            table = _table_of(self.options["table"], c.dtype)
        else:
            own = float(timesteps_shift), float(last_step_size)
            table = _rounded(num_sampling_steps, *own, c.dtype)
        if noise is not None and noise.shape != (len(table), count, dim):
            raise ValueError(
                f"noise must have shape {[len(table), count, dim]}, got {list(noise.shape)}"
            )
        if not count:
            return c.new_zeros(0, dim)
        with torch.inference_mode(), torch.autocast(c.device.type, enabled=False):
            stream = stream_of(torch.arange(count, device=c.device) % noise_repeat)
            modifiers: dict[str, Any] = {}
            if noise is None:
                key = make_key(None, c.device)
                start = initial_state(table, key, stream, dim)
            else:
                key = stream.new_zeros(1)  # addresses nothing
                start = noise[0] * table.init_scale
                modifiers["noise"] = torch.cat([noise[1:], torch.zeros_like(noise[:1])])
            condition, *others = c.to(weight).chunk(ways)
            guidance = Guidance(tuple(others), (cfg, cfg2)[: len(others)])
            modifiers |= guidance.per_sample(count, c.device, ("cfg", "cfg2")).arguments()
            modifiers |= {"key": key, "stream": stream, "condition": condition}
            ahead = self.options["lookahead"]
            if ahead is None:
                x = run(table, fused, start, **modifiers)
            else:
                x, _ = run_lookahead(table, fused, start, ahead, **modifiers)
        return x.to(c.dtype, copy=True)  # no inference tensor


def accelerate(
    model: nn.Module,
    *,
    table: StepTable | str | PathLike | None = None,
    weights: str | None = None,
    batch_invariant: bool = False,
    lookahead: int | str | None = None,
    mode: str | None = None,
    tolerance: float | None = None,
) -> NextStepSampler:
    """Replaces ``model.image_head.sample`` by the head engine; :func:`restore` undoes it.

    The distribution of the samples stays that of the model's own loop. Noise is drawn from torch's
    global generator (one number per call), so that `torch.manual_seed` seeds it; the numbers are
    others than those of the model's own loop.

    Args:
        model: with an `image_head` whose `net` has MAR's state-dict names, or that `image_head`.
        table: a table of path and prediction ``flow``, or the name of its file, in place of the
            model's own steps; the arguments of `sample` that say those have no say then.
        weights: dtype of the blocks' weights (``float32``, ``bfloat16``, ``int8``), None: theirs.
        batch_invariant: a token's bits depend on its conditions and noise alone.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`, of each token's run.

    Returns:
        The sampler now in place; its ``sample`` takes given noise too.

    Raises:
        TypeError: a model without such an `image_head`.
        ValueError: a head of another form, unknown weights.
        RuntimeError: a `sample` of other parameters, or one that was replaced already.
    """
    ahead = check_lookahead(lookahead, mode, tolerance)
    table = None if table is None else StepTable.of(table)
    if table is not None:
        _table_of(table, torch.float32)  # refuses a table of another kind at once
    options = {
        "table": table,
        "weights": weights,
        "batch_invariant": batch_invariant,
        "lookahead": ahead,
    }
    return install(NextStepSampler, owner_of("NextStep", model, "image_head"), options)


def restore(model: nn.Module) -> None:
    """Gives the model its own loop back; nothing where none was replaced."""
    uninstall(NextStepSampler, owner_of("NextStep", model, "image_head"))
