"""libardiff through ctypes, as tests/packaging/test_cpp_embed.py calls it: the structures of
ardiff.h."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64
from ctypes import c_void_p as Pointer
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Matrix(Structure):
    """ardiff_input and ardiff_output."""

    _fields_ = [("data", Pointer), ("row_stride", c_int64), ("dtype", c_int32)]


class Each(Structure):
    """ardiff_ints and ardiff_floats."""

    _fields_ = [("data", Pointer), ("count", c_int64)]


class StepArgs(Structure):
    _fields_ = [
        ("struct_size", c_uint64), ("rows", c_int64), ("columns", c_int64), ("coef", Pointer),
        ("coef_rows", c_int64), ("row", Each), ("draw", Each), ("key", c_int64),
        ("stream", Pointer), ("model_out", Matrix), ("model_columns", c_int64),
        ("uncond_out", Matrix), ("uncond_out2", Matrix), ("guidance", Each), ("guidance2", Each),
        ("noise_scale", Each), ("noise", Matrix), ("noise2", Matrix), ("x0_clamp", c_float),
        ("threads", c_int32), ("z_model", Matrix),
    ]  # fmt: skip


class UldCoefs(Structure):
    NAMES = (
        *("z_from_v", "z_from_grad", "v_from_v", "v_from_grad"),
        *("var_z", "cov_zv", "var_v", "z_1", "z_2", "v_1"),
    )
    _fields_ = [(name, c_double) for name in NAMES]


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("ardiff_last_error", "ardiff_version", "ardiff_cpu_isa"):
        getattr(library, name).restype = c_char_p
    library.ardiff_uld_step.argtypes = [Matrix, Matrix, Matrix, POINTER(StepArgs)]
    library.ardiff_diffusion_step.argtypes = [Matrix, Matrix, c_int64, Matrix, POINTER(StepArgs)]
    counts = [c_int64] * 4
    library.ardiff_philox_normal.argtypes = [Matrix, *counts, Pointer]
    library.ardiff_brownian_increment.argtypes = [Matrix, *[c_int64] * 3, Pointer, Each, Each]
    library.ardiff_uld_coefficients.argtypes = [c_double, c_double, POINTER(UldCoefs)]
    library.ardiff_split.argtypes = [c_double, POINTER(c_float), POINTER(c_float)]
    library.ardiff_split.restype = None
    return library


def matrix(t: Tensor | None) -> Matrix:
    if t is None:
        return Matrix()
    return Matrix(t.data_ptr(), t.stride(0), DTYPES[t.dtype])


def each(t: Tensor | None) -> Each:
    return Each() if t is None else Each(t.data_ptr(), len(t))


def step_args(
    x: Tensor, model_out: Tensor, coef: Tensor, row: Tensor, draw: Tensor, key: Tensor,
    stream: Tensor, threads: int = 0, x0_clamp: float | None = None, **options: Tensor,
) -> StepArgs:  # fmt: skip
    """The arguments of a step on x `[B, d]`; the tensors must outlive them."""
    args = StepArgs(struct_size=ctypes.sizeof(StepArgs), rows=x.shape[0], columns=x.shape[1])
    args.coef, args.coef_rows = coef.data_ptr(), len(coef)
    args.row, args.draw, args.key = each(row), each(draw), int(key)
    args.stream, args.model_out = stream.data_ptr(), matrix(model_out)
    args.model_columns, args.threads = model_out.shape[1], threads
    args.x0_clamp = x0_clamp or 0.0
    for name, value in options.items():
        setattr(args, name, each(value) if value.dim() == 1 else matrix(value))
    return args
