"""Host numerics, free of torch: float64 coefficients, Philox words, CPU features, build info.

Compiled from `csrc/host.cpp` to a library without Python's ABI; where that is not built, the same
functions in pure Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from . import _host_reference

_COEFFICIENTS = (
    *("z_from_v", "z_from_grad", "v_from_v", "v_from_grad"),
    *("var_z", "cov_zv", "var_v", "z_1", "z_2", "v_1"),
)


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("_host.so")))
    except OSError:
        return None
    library.ardiff_host_build_info.restype = ctypes.c_char_p
    return library


_library = _load()
compiled = _library is not None


def uld_coefficients(gamma: float, tau: float) -> dict[str, float]:
    """Underdamped Langevin over a step tau with the gradient G of the potential frozen, unit mass.

    z' = z + z_from_v v + z_from_grad G + xi_z,  v' = v_from_v v + v_from_grad G + xi_v, where
    (xi_z, xi_v) has covariance var_z, cov_zv, var_v and is xi_v = v_1 Z1, xi_z = z_1 Z1 + z_2 Z2
    with independent standard normals. Cheng, Chatterji, Bartlett and Jordan, COLT 2018, in forms
    that do not cancel: relative error below 2e-15 for gamma tau from 1e-12 to 31.

    Args:
        gamma: friction, 1/time.
        tau: step, time.

    Returns:
        z_from_v, z_from_grad, v_from_v, v_from_grad, var_z, cov_zv, var_v, z_1, z_2, v_1.

    Raises:
        ValueError: gamma or tau not positive and finite.
    """
    if _library is None:
        return _host_reference.uld_coefficients(gamma, tau)
    gamma, tau = _host_reference.check_uld_coefficients(gamma, tau)
    values = (ctypes.c_double * len(_COEFFICIENTS))()
    _library.ardiff_host_uld_coefficients(ctypes.c_double(gamma), ctypes.c_double(tau), values)
    return dict(zip(_COEFFICIENTS, values, strict=True))


def philox(counter4: Sequence[int], key2: Sequence[int]) -> list[int]:
    """The four words of Philox4x32-10 (Salmon et al., SC 2011) for 4 counter and 2 key words.

    Raises:
        ValueError: another number of words, or one outside [0, 2^32).
    """
    if _library is None:
        return _host_reference.philox(counter4, key2)
    counter, key = _host_reference.check_philox(counter4, key2)
    words = (ctypes.c_uint32 * 4)(*counter)
    _library.ardiff_host_philox(words, (ctypes.c_uint32 * 2)(*key))
    return list(words)


def cpu_features() -> dict[str, bool]:
    """Whether this CPU has what the kernels can use (avx2, fma, avx512f, ...); empty off x86."""
    return _host_reference.cpu_features()


def build_info() -> dict[str, str]:
    """What the compiled libraries were built with: compiler, torch, cuda (nvcc's version, empty
    without CUDA). Empty when they are not built."""
    if _library is None:
        return {}
    lines = _library.ardiff_host_build_info().decode().split("\n")
    return dict(zip(("compiler", "torch", "cuda"), lines, strict=True))
