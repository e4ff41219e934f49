"""Host numerics in pure Python, float64: the definition of what `csrc/host.cpp` computes.

Used where the compiled module is not built, and by the tests as the other opinion.
"""

from __future__ import annotations

import math
import operator
import platform
from collections.abc import Sequence

_WORD = 0xFFFFFFFF


def check_uld_coefficients(gamma: float, tau: float) -> tuple[float, float]:
    """Both as floats; ValueError unless they are positive and finite."""
    gamma, tau = float(gamma), float(tau)
    if not (0 < gamma < math.inf and 0 < tau < math.inf):
        raise ValueError(
            "uld_coefficients: gamma and tau must be positive and finite, "
            f"got gamma {gamma!r} and tau {tau!r}"
        )
    return gamma, tau


def check_philox(counter4: Sequence[int], key2: Sequence[int]) -> tuple[list[int], list[int]]:
    """Both as lists of ints; ValueError unless they are 4 and 2 words of 32 bits."""
    if len(counter4) != 4 or len(key2) != 2:
        raise ValueError(
            f"philox: expected 4 counter words and 2 key words, got {len(counter4)} and {len(key2)}"
        )
    counter, key = ([operator.index(w) for w in words] for words in (counter4, key2))
    for w in counter + key:
        if not 0 <= w <= _WORD:
            raise ValueError(f"philox: words must lie in [0, 4294967295], got {w!r}")
    return counter, key


def _drift_integral(x: float) -> float:
    """x - (1 - e^-x), without cancellation."""
    if x >= 1:
        return x + math.expm1(-x)
    h = 1.0
    for k in range(20, 2, -1):
        h = 1 - h * x / k
    return x * x * h / 2


def _tanh_defect(x: float) -> float:
    """x - 2 tanh(x/2), without cancellation (a continued fraction below 2)."""
    if x >= 2:
        return x - 2 * math.tanh(x / 2)
    y = x * x / 4
    c = 0.0
    for k in range(23, 2, -2):
        c = y / (k + c)
    return x * c / (1 + c)


def uld_coefficients(gamma: float, tau: float) -> dict[str, float]:
    gamma, tau = check_uld_coefficients(gamma, tau)
    x = gamma * tau
    a, b, w = -math.expm1(-x), _drift_integral(x), _tanh_defect(x)
    var_v, t = -math.expm1(-2 * x), math.tanh(x / 2)
    v_1 = math.sqrt(var_v)
    return {
        "z_from_v": a / gamma,
        "z_from_grad": -b / gamma / gamma,
        "v_from_v": math.exp(-x),
        "v_from_grad": -a / gamma,
        "var_z": (t * t * var_v + 2 * w) / gamma / gamma,
        "cov_zv": a * a / gamma,
        "var_v": var_v,
        "z_1": t / gamma * v_1,
        "z_2": math.sqrt(2 * w) / gamma,
        "v_1": v_1,
    }


def philox(counter4: Sequence[int], key2: Sequence[int]) -> list[int]:
    (c0, c1, c2, c3), (k0, k1) = check_philox(counter4, key2)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def cpu_features() -> dict[str, bool]:
    """The flags of /proc/cpuinfo; empty on other systems and processors."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return {}
    names = ("avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl")
    return {name: name in flags for name in names}
