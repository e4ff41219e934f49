"""Argument checks of the ops, shared by every Python backend and by the fakes.

The C++ kernels repeat these checks in the same order and with the same words
(``csrc/torch/checks.h``), so that a mistake reads the same on every backend. All raise
RuntimeError, as PyTorch's own operators do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

COLUMNS = 16
MODEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
QUADS = 2**32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"


def _got(t: Tensor) -> str:
    return f"got {_name(t.dtype)} {_shape(t.shape)}"


def width(t: Tensor) -> int:
    """Elements of a row of a tensor `[B, ...]`."""
    return math.prod(t.shape[1:])


def _wider(shape: Sequence[int]) -> tuple[int, ...]:
    rows, n, *rest = shape
    return (rows, 2 * n, *rest)


def check_dimensions(op: str, name: str, t: Tensor) -> None:
    if t.dim() < 2:
        raise RuntimeError(f"{op}: {name} must be [B, d] or [B, ...], got {t.dim()} dimensions")


def _vector(
    op: str, name: str, t: Tensor | None, dtype: torch.dtype, rows: int, shared: bool = False
) -> None:
    """A contiguous 1-D tensor of `dtype` and length `rows` (or 1, where it may be `shared`)."""
    if t is None:
        return
    lengths = [rows] if rows == 1 or not shared else [rows, 1]
    ok = t.dim() == 1 and t.dtype == dtype and t.is_contiguous()
    if not (ok and any(t.shape[0] == n for n in lengths)):
        raise RuntimeError(
            f"{op}: {name} must be a contiguous {_name(dtype)} "
            f"{' or '.join(f'[{n}]' for n in lengths)}, {_got(t)}"
        )


def _matrix(op: str, name: str, t: Tensor | None, dtype: torch.dtype, shape: Sequence[int]) -> None:
    if t is None:
        return
    ok = t.dtype == dtype and tuple(t.shape) == tuple(shape)
    if not ok:
        raise RuntimeError(f"{op}: {name} must be {_name(dtype)} {_shape(shape)}, {_got(t)}")


def _table(op: str, coef: Tensor) -> None:
    if not (
        coef.dtype == torch.float32
        and coef.dim() == 2
        and coef.shape[1] == COLUMNS
        and coef.shape[0] >= 1
        and coef.is_contiguous()
    ):
        raise RuntimeError(
            f"{op}: coef must be a contiguous float32 [T, {COLUMNS}] table with T >= 1, "
            f"{_got(coef)}"
        )


def _placement(
    op: str,
    tensors: Mapping[str, Tensor | None],
    written: Sequence[str],
    rowwise: bool = False,
) -> None:
    """One device, unit stride inside a row, and no overlapping rows where we write; of tensors
    `[B, ...]` too where the op is `rowwise`."""
    present = {name: t for name, t in tensors.items() if t is not None}
    first, device = next((name, t.device) for name, t in present.items())
    for name, t in present.items():
        if t.device != device:
            raise RuntimeError(
                f"{op}: all tensors must be on one device, but {first} is on {device} and "
                f"{name} on {t.device}"
            )
    for name, t in present.items():
        if t.dim() < 2 or (t.dim() > 2 and not rowwise):
            continue
        rows, d = t.shape[0], width(t)
        if rows > 0 and not _contiguous_rows(t):
            rule = "have unit stride in its last dimension"
            raise RuntimeError(
                f"{op}: {name} must {rule if t.dim() == 2 else 'be contiguous inside a row'}, got "
                f"strides {_shape(t.stride())}; call .contiguous() first"
            )
        if name in written and rows > 1 and t.stride(0) < d:
            raise RuntimeError(
                f"{op}: {name} is written in place but its rows overlap (row stride "
                f"{t.stride(0)}, {d} elements a row); clone it first"
            )
    for one, other in itertools.combinations([n for n in written if n in present], 2):
        if _same_memory(present[one], present[other]):
            raise RuntimeError(
                f"{op}: {one} and {other} are written in place but share their memory; clone one"
            )


def _contiguous_rows(t: Tensor) -> bool:
    expected = 1
    for n, stride in zip(reversed(t.shape[1:]), reversed(t.stride()[1:]), strict=True):
        if n == 0:
            return True
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors begin at one address; subclasses such as fake tensors have none."""
    if a is b:
        return a.numel() > 0
    real = type(a) is type(b) is Tensor
    return real and a.numel() > 0 and b.numel() > 0 and a.data_ptr() == b.data_ptr()


def _counter(op: str, counter: int) -> None:
    if not 0 <= counter < 2**32:
        raise RuntimeError(f"{op}: counter must lie in [0, 4294967295], got {counter}")


def check_philox_normal(key: Tensor, counter: int, stream: Tensor, n: int) -> None:
    op = "philox_normal"
    _vector(op, "key", key, torch.int64, 1)
    if not (stream.dim() == 1 and stream.dtype == torch.int64 and stream.is_contiguous()):
        raise RuntimeError(f"{op}: stream must be a contiguous int64 [B], {_got(stream)}")
    _counter(op, counter)
    if not 0 <= n <= 4 * QUADS:
        raise RuntimeError(f"{op}: n must lie in [0, {4 * QUADS}], got {n}")
    _placement(op, {"key": key, "stream": stream}, ())


def check_philox_normal_(out: Tensor, key: Tensor, counter: int, stream: Tensor) -> None:
    op = "philox_normal_"
    if out.dim() != 2:
        raise RuntimeError(f"{op}: out must be [B, n], got {out.dim()} dimensions")
    if out.dtype != torch.float32:
        raise RuntimeError(f"{op}: out must be float32, got {_name(out.dtype)}")
    _vector(op, "key", key, torch.int64, 1)
    _vector(op, "stream", stream, torch.int64, out.shape[0])
    _counter(op, counter)
    _placement(op, {"out": out, "key": key, "stream": stream}, ("out",))


def check_step(
    op: str,
    state: Mapping[str, Tensor],
    dtypes: Sequence[torch.dtype],
    elements_a_quad: int,
    learned_range: bool,
    written: Sequence[str],
    model_out: Tensor,
    coef: Tensor,
    row: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    options: Mapping[str, Tensor | None],
    second_memory: bool = False,
) -> None:
    """Checks common to the step ops; `state` lists the state tensors, the leading one first.

    With `second_memory`, `state["memory"]` may be twice as long in dimension 1. `options` may hold
    uncond_out, uncond_out2, guidance, guidance2, noise_scale, noise, noise2, x0 and z_model.
    """
    lead, x = next(iter(state.items()))
    check_dimensions(op, lead, x)
    kinds = " or ".join(_name(t) for t in dtypes)
    if x.dtype not in dtypes:
        raise RuntimeError(f"{op}: {lead} must be {kinds}, got {_name(x.dtype)}")
    rows, d = x.shape[0], width(x)
    limit = elements_a_quad * QUADS
    if not 1 <= d <= limit:
        raise RuntimeError(f"{op}: {lead} must have between 1 and {limit} elements a row, got {d}")
    for name, t in state.items():
        double = _wider(x.shape) if second_memory and name == "memory" else None
        if t.shape != x.shape and tuple(t.shape) != double:
            wide = f" (or {_shape(double)} with a second memory)" if double else ""
            raise RuntimeError(
                f"{op}: {name} must have the shape of {lead} {_shape(x.shape)}{wide}, "
                f"got {_shape(t.shape)}"
            )
        if t.dtype != x.dtype:
            raise RuntimeError(
                f"{op}: {name} must have the dtype of {lead} ({_name(x.dtype)}), "
                f"got {_name(t.dtype)}"
            )
    if model_out.dtype not in MODEL_DTYPES:
        raise RuntimeError(
            f"{op}: model_out must be float32, float16 or bfloat16, got {_name(model_out.dtype)}"
        )
    double = _wider(x.shape) if learned_range else None
    wide = f" (or {_shape(double)} with learned-range variance)" if double else ""
    if model_out.shape != x.shape and tuple(model_out.shape) != double:
        raise RuntimeError(
            f"{op}: model_out must have the shape of {lead} {_shape(x.shape)}{wide}, got "
            f"{_shape(model_out.shape)}"
        )
    _table(op, coef)
    _vector(op, "row", row, torch.int32, rows, shared=True)
    _vector(op, "draw", draw, torch.int32, rows, shared=True)
    _vector(op, "key", key, torch.int64, 1)
    _vector(op, "stream", stream, torch.int64, rows)
    _check_options(op, x, model_out, options)
    tensors = {
        **state,
        "model_out": model_out,
        "coef": coef,
        "row": row,
        "draw": draw,
        "key": key,
        "stream": stream,
        **options,
    }
    _placement(op, tensors, written, rowwise=True)


def _check_options(
    op: str, x: Tensor, model_out: Tensor, options: Mapping[str, Tensor | None]
) -> None:
    def given(name: str) -> bool:
        return options.get(name) is not None

    if not (given("uncond_out") == given("guidance")):
        raise RuntimeError(f"{op}: uncond_out and guidance go together: pass both or neither")
    if not (
        given("uncond_out2") == given("guidance2")
        and (given("uncond_out") or not given("uncond_out2"))
    ):
        raise RuntimeError(
            f"{op}: uncond_out2 and guidance2 go together, and only beside uncond_out and guidance"
        )
    if "noise2" in options:
        if not (given("noise") == given("noise2")):
            raise RuntimeError(f"{op}: noise and noise2 go together: pass both or neither")
    for name in ("uncond_out", "uncond_out2"):
        _matrix(op, name, options.get(name), model_out.dtype, model_out.shape)
    for name in ("guidance", "guidance2", "noise_scale"):
        _vector(op, name, options.get(name), torch.float32, len(x), shared=True)
    for name in ("noise", "noise2"):
        _matrix(op, name, options.get(name), torch.float32, x.shape)
    _matrix(op, "x0", options.get("x0"), x.dtype, x.shape)
    _matrix(op, "z_model", options.get("z_model"), torch.bfloat16, x.shape)


def check_x0_clamp(op: str, x0_clamp: float | None) -> None:
    if not (x0_clamp is None or x0_clamp > 0):
        raise RuntimeError(f"{op}: x0_clamp must be positive, got {x0_clamp}")
