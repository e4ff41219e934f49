"""`ardiff.sample`: draw samples from any callable denoiser."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .paths import Path
from .run import initial_state, run
from .solvers import solver as make_table
from .table import StepTable

PATCH_BITS = 20
MAX_SAMPLE_ID = 2**43


@dataclass(frozen=True)
class SampleStats:
    """What a run cost.

    Attributes:
        calls: model calls, counted at the model (guidance makes two a row).
        seconds: wall time of the run.
        acceptance: acceptance rate of each stage, None for solvers without an accept step.
        rejected_nonfinite: proposals rejected for NaN or inf.
    """

    calls: int
    seconds: float
    acceptance: Tensor | None = None
    rejected_nonfinite: int = 0


class CountedModel:
    """Counts the calls of a model, hoisted or plain, and gives it x in the caller's shape."""

    def __init__(self, model: Callable, shape: tuple[int, ...]) -> None:
        self.model, self.shape, self.calls = model, shape, 0
        if hasattr(model, "hoist"):
            self.hoist = self._hoist

    def _counted(self, function: Callable[..., Tensor], x: Tensor) -> Tensor:
        self.calls += 1
        out = function(x.view(self.shape))
        if isinstance(out, Tensor) and tuple(out.shape) != self.shape:
            raise ValueError(
                f"the model must return the shape of its input {list(self.shape)}, got "
                f"{list(out.shape)}"
            )
        return out.reshape(x.shape) if isinstance(out, Tensor) else out

    def __call__(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        return self._counted(lambda x: self.model(x, level, condition), x)

    def _hoist(self, levels: Tensor, condition: Any) -> Callable[[int, Tensor], Tensor]:
        function = self.model.hoist(levels, condition)
        return lambda row, x: self._counted(lambda x: function(row, x), x)


def make_key(
    seed: int | None, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """The key, int64 `[1]` on `device`: the seed itself, or drawn from `generator` for None."""
    if seed is None:
        source = "cpu" if generator is None else generator.device
        drawn = torch.randint(
            -(2**63), 2**63 - 1, (1,), generator=generator, device=source, dtype=torch.int64
        )
        return drawn.to(device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or None, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit in int64, got {seed}")
    return torch.tensor([seed], dtype=torch.int64, device=device)


def make_stream(
    sample_ids: Sequence[int] | Tensor | None, batch: int, patch: int, device: torch.device | str
) -> Tensor:
    """The streams, int64 `[batch]`: sample_id * 2^20 + patch.

    Raises:
        ValueError: ids that are not `batch` integers in [0, 2^43), or a patch outside [0, 2^20).
    """
    if not 0 <= patch < 2**PATCH_BITS:
        raise ValueError(f"patch must be in [0, {2**PATCH_BITS}), got {patch}")
    if sample_ids is None:
        ids = torch.arange(batch, dtype=torch.int64, device=device)
    else:
        ids = _as_ids(sample_ids)
        if ids.dim() != 1 or len(ids) != batch:
            raise ValueError(
                f"sample_ids must be {batch} integers, one a sample, got shape {list(ids.shape)}"
            )
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= MAX_SAMPLE_ID):
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ValueError(f"sample_ids must be in [0, 2^43), got {bad}")
        ids = ids.to(device)
    return ids * 2**PATCH_BITS + patch


def _as_ids(sample_ids: Sequence[int] | Tensor) -> Tensor:
    try:
        ids = torch.as_tensor(sample_ids if isinstance(sample_ids, Tensor) else list(sample_ids))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"sample_ids must be integers in [0, 2^43): {error}") from None
    if len(ids.shape) and ids.numel() == 0:
        return ids.long()
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"sample_ids must be integers, got {str(ids.dtype)[6:]}")
    return ids.long()


def per_sample(
    name: str, value: float | Tensor, batch: int, device: torch.device | str, *, low: float
) -> Tensor:
    """A number or a tensor `[B]` as float32 `[1]` or `[B]`; ValueError unless finite and >= low."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1).contiguous()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or have shape [{batch}], got {value!r}") from None
    if isinstance(value, Tensor) and value.dim() > 1 or len(tensor) not in (1, batch):
        shape = list(torch.as_tensor(value).shape)
        raise ValueError(f"{name} must be a number or have shape [{batch}], got {shape}")
    if not bool(((tensor >= low) & tensor.isfinite()).all()):
        bound = "" if low == -math.inf else f" and at least {low:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}")
    return tensor


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape must be a sequence of integers (B, ...), got {shape!r}") from None
    if len(sizes) < 2 or sizes[0] < 0 or any(n < 1 for n in sizes[1:]):
        raise ValueError(f"shape must be (B, ...) with B >= 0 and sizes >= 1 after, got {shape!r}")
    return sizes


def _choose_table(table: StepTable | None, choices: dict[str, Any], options: dict) -> StepTable:
    if table is None:
        missing = [name for name, value in choices.items() if value is None]
        if missing:
            raise TypeError(f"sample needs {', '.join(missing)}, or a table from ardiff.solver")
        return make_table(choices.pop("solver"), **choices, **options)
    if not isinstance(table, StepTable):
        raise TypeError(f"table must be a StepTable, got {type(table).__name__}")
    given = [name for name, value in {**choices, **options}.items() if value is not None]
    if given:
        raise TypeError(f"a table fixes the solver: do not pass {', '.join(given)} beside it")
    return table


def sample(
    model_fn: Callable,
    shape: Sequence[int],
    path: str | Path | None = None,
    prediction: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    seed: int | None = 0,
    condition: Any = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    return_stats: bool = False,
    *,
    table: StepTable | None = None,
    uncond: Any = None,
    guidance: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    patch: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor | tuple[Tensor, SampleStats]:
    """Sample with any denoiser. Sample i is a function of (seed, sample_ids[i], patch) alone.

    Args:
        model_fn: ``model_fn(x, level, condition) -> output``: x of `shape`, level float32 `[B]` in
            the path's own time (t for ``ou`` and ``flow``, sigma for ``edm``, the fractional
            training timestep for ``vp-*``), the output of x's shape. Or an object with ``hoist``
            (:class:`ardiff.run.HoistableModel`). It runs in `torch.inference_mode`.
        shape: (B, ...), the batch first.
        path, prediction, solver, steps, options: see :func:`ardiff.solver`; or pass `table`.
        seed: the key of the noise, any int64; None draws one from `generator` (or torch's own).
        condition: handed to the model as it is.
        sample_ids: `B` integers in [0, 2^43), default 0 to B - 1, which address the noise:
            samples do not depend on batch size, order or shard. Equal ids give equal noise.
        uncond, guidance: classifier-free guidance u + w (c - u) with weight `guidance`, a number
            or `[B]`; u is the model at condition `uncond`.
        temperature: multiplies the step noise (not the initial state), a number or `[B]`.
        patch: index of the patch within an autoregressive sample, in [0, 2^20).
        dtype: of the state; float32, or bfloat16 for solvers without kinetic rows.
        return_stats: also return :class:`SampleStats`.

    Returns:
        Samples of `shape` and `dtype`, or (samples, stats).

    Raises:
        ValueError, TypeError: before any model call for arguments, at the first for its output.
    """
    if not callable(model_fn) and not hasattr(model_fn, "hoist"):
        raise TypeError(f"model_fn must be callable or have hoist, got {type(model_fn).__name__}")
    sizes = _check_shape(shape)
    choices = {"path": path, "prediction": prediction, "solver": solver, "steps": steps}
    table = _choose_table(table, choices, options)
    if dtype not in (torch.float32, torch.bfloat16) or (
        dtype == torch.bfloat16 and "uld" in table.op
    ):
        raise ValueError(
            f"dtype must be float32 (bfloat16 too for solvers without velocity), got {dtype} for "
            f"{table.solver}"
        )
    if (uncond is None) != (guidance is None):
        raise ValueError("guidance and uncond go together: pass both or neither")
    batch = sizes[0]
    if guidance is not None:
        guidance = per_sample("guidance", guidance, batch, device, low=-math.inf)
    noise_scale = None
    if isinstance(temperature, Tensor) or temperature != 1:
        noise_scale = per_sample("temperature", temperature, batch, device, low=0.0)
    stream = make_stream(sample_ids, batch, patch, device)
    key = make_key(seed, device, generator)

    counted = CountedModel(model_fn, sizes)
    start = time.perf_counter()
    x = initial_state(table, key, stream, math.prod(sizes[1:]), dtype)
    x = run(
        table, counted, x, key=key, stream=stream, condition=condition, uncond=uncond,
        guidance=guidance, noise_scale=noise_scale,
    )  # fmt: skip
    if return_stats and x.is_cuda:
        torch.cuda.synchronize(x.device)
    x = x.view(sizes)
    return (x, SampleStats(counted.calls, time.perf_counter() - start)) if return_stats else x
