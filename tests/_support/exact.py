"""Models, noise and tables whose bits are the same on every machine, and digests of bits.

Between machines may differ: the elementary functions in float64 of NumPy and the C library, from
which tables are made; torch's elementary functions, matrix products, long sums and normals. Sums,
products and quotients of two float32 numbers do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff.tables.paths import get_path, output_from_data
from ardiff.tables.table import StepTable

TABLE_BITS = 28  # of a mantissa: more than float32's 24, so that columns in two parts have both
MODEL_BITS = 12


def rounded(values: Any, bits: int) -> np.ndarray:
    """float64 values rounded to `bits` bits of mantissa, so that last bits have no say."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


@contextlib.contextmanager
def rounded_tables() -> Iterator[None]:
    """Every table made within has rounded numbers.

    Tables are cached by what they are asked for: ask for what no one else asks for.
    """
    finish = StepTable.__post_init__

    def round_and_finish(self: StepTable) -> None:
        for name in ("coefficients", "level", "ball_margin"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, rounded(getattr(self, name), TABLE_BITS))
        object.__setattr__(self, "init_scale", float(rounded(self.init_scale, TABLE_BITS)))
        finish(self)

    StepTable.__post_init__ = round_and_finish
    try:
        yield
    finally:
        StepTable.__post_init__ = finish


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch's products are cut into parts by the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in (-1.75, 1.75), float32, from integers alone."""
    count = math.prod(shape)
    words = (np.arange(count, dtype=np.int64) + 977 * seed + 1) * 2654435761 % 2**32 // 2**16
    values = (words.astype(np.float32) - 32767.5) / 2**16 * 3.5
    return torch.from_numpy(values.astype(np.float32)).view(shape)


class ExactModel:
    """A denoiser that believes x0 = k x + h(x) + condition, k that of N(0, I/4), h small.

    Its factors are computed in float64 for each level and rounded to 12 bits.
    """

    def __init__(self, path: str, prediction: str) -> None:
        self.path, self.prediction = get_path(path), prediction
        self._known: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    def factors(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a and b of out = a x + b (x0 - k x), and 1 / variance of x; float32 `[B]`."""
        place = level.numpy().tobytes()
        if place not in self._known:
            at = level.double().numpy()
            alpha, sigma = self.path.alpha(at), self.path.sigma(at)
            variance = alpha**2 / 4 + sigma**2
            a = output_from_data(self.prediction, alpha, sigma, 1.0, alpha / 4 / variance)
            b = output_from_data(self.prediction, alpha, sigma, 0.0, 1.0)
            found = (np.broadcast_to(v, at.shape) for v in (a, b, 1 / variance))
            self._known[place] = tuple(
                torch.from_numpy(rounded(v, MODEL_BITS).astype(np.float32)) for v in found
            )
        return self._known[place]

    def __call__(self, x: Tensor, level: Tensor, condition: Tensor | float | None) -> Tensor:
        wide = (-1,) + (1,) * (x.dim() - 1)
        a, b, _ = (v.view(wide) for v in self.factors(level))
        x = x.float()
        bend = x / (x * x + 1) * 0.25
        if condition is not None:
            bend = bend + condition
        return a * x + b * bend

    def energy(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        """-log density of N(0, variance of x), summed in order."""
        half = x.flatten(1) * x.flatten(1) * 0.5
        total = torch.zeros(len(x))
        for column in half.unbind(1):
            total = total + column
        return total * self.factors(level)[2]


def denoiser(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
    """As k-diffusion has it: x at sigma -> data."""
    s = sigma.view((-1,) + (1,) * (x.dim() - 1))
    return x / (s * s * 4 + 1) + x / (x * x + 1) * 0.25


def digest(*parts: Tensor) -> str:
    """The first 64 bits of the SHA-256 of float32 values and shapes, in hexadecimal.

    Raises:
        ValueError: for a NaN or infinity, from which a wrong number would not show.
    """
    found = hashlib.sha256()
    for part in parts:
        values = part.detach().float().contiguous()
        if not bool(values.isfinite().all()):
            raise ValueError("a result holds NaN or infinity")
        found.update(repr(tuple(values.shape)).encode())
        found.update(values.numpy().astype("<f4").tobytes())
    return found.hexdigest()[:16]


def _short(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[
        :8
    ]


def numpy_print() -> str:
    """A fingerprint of the float64 functions of NumPy and of the C library."""
    x = np.linspace(0.001, 3.0, 1009)
    functions = (np.exp, np.log, np.expm1, np.log1p, np.sqrt, np.sin, np.cos, np.tan)
    found = [f(x) for f in functions] + [np.hypot(x, x[::-1]), np.exp(-40 * x), np.power(x, 1 / 7)]
    scalar = (math.exp, math.log, math.expm1, math.log1p, math.sin, math.cos, math.tan, math.tanh)
    found += [np.array([f(v) for v in x.tolist()]) for f in scalar]
    return "numpy-" + _short(*found)


@one_thread()
def torch_print() -> str:
    """A fingerprint of torch's functions and small matrix products in float32 and float64."""
    x, found = numbers(9, 113).abs() + 0.001, []
    for values in (x, x.double()):
        functions = (torch.exp, torch.log, torch.sin, torch.cos, torch.rsqrt, torch.tanh, F.silu)
        found += [f(values) for f in functions]
        found += [F.layer_norm(values, (113,)), values.mean(1), values.pow(2).mean(1)]
    for rows in (1, 2, 3, 4, 5, 10, 15):
        for narrow, wide in ((24, 32), (32, 32), (256, 32), (32, 96), (32, 192), (6, 32), (32, 6)):
            found.append(F.linear(numbers(rows, narrow), numbers(wide, narrow, seed=2)))
    return "torch-" + _short(*(t.numpy() for t in found))


def used_columns(table: StepTable) -> np.ndarray:
    """The coefficients without the columns behind the sixteenth, where none of them is used: the
    bits of a table do not change when rows grow wider."""
    first, rest = np.split(table.coefficients, [16], 1)
    return table.coefficients if rest.any() else first
