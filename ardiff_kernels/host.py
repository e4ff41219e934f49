"""Host numerics, free of torch: float64 coefficients, Philox words, CPU features, build info.

Compiled from `csrc/host.cpp`; where that is not built, the same functions in pure Python.
"""

from __future__ import annotations

from collections.abc import Sequence

try:
    from . import _host as _implementation

    compiled = True
except ImportError:
    from . import _host_reference as _implementation

    compiled = False


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
    return _implementation.uld_coefficients(gamma, tau)


def philox(counter4: Sequence[int], key2: Sequence[int]) -> list[int]:
    """The four words of Philox4x32-10 (Salmon et al., SC 2011) for 4 counter and 2 key words.

    Raises:
        ValueError: another number of words, or one outside [0, 2^32).
    """
    return list(_implementation.philox(counter4, key2))


def cpu_features() -> dict[str, bool]:
    """Whether this CPU has what the kernels can use (avx2, fma, avx512f, ...); empty off x86."""
    return dict(_implementation.cpu_features())


def build_info() -> dict[str, str]:
    """What the compiled libraries were built with: compiler, torch, cuda (nvcc's version, empty
    without CUDA). Empty when they are not built."""
    return dict(_implementation.build_info())
