"""How an ancestral step is split: without noise down to a level below b, then noise up to b.

In y = x / alpha, s = sigma / alpha the noise is s_up with s_down^2 + s_up^2 = s_b^2. Two laws say
how far down:

- k-diffusion's `get_ancestral_step`, s_up = s_b min(1, eta sqrt(1 - s_b^2 / s_a^2)), where eta = 1
  is the noise of DDPM;
- on the path ``flow`` that of ComfyUI's `_RF` samplers and diffusers' LTXEulerAncestralRFScheduler,
  sigma_down = sigma_b (1 + (sigma_b / sigma_a - 1) eta), not below 0.
"""

from __future__ import annotations

import numpy as np

from ..tables.paths import FlowPath, Path, Transition


def check_eta(name: str, eta: float) -> float:
    if isinstance(eta, (str, bool)) or not 0 <= eta < np.inf:
        raise ValueError(f"{name}: eta must be finite and not negative, got {eta!r}")
    return float(eta)


def split(path: Path, t: Transition, eta: float) -> tuple[float, float]:
    """(s_down / s_b, s_up / s_b) by the law of the path."""
    if not isinstance(path, FlowPath):
        return split_by_sigma(t.h, eta)
    short = min(eta * (1 - t.sigma_b / t.sigma_a), 1.0)  # 1 - sigma_down / sigma_b
    gap = short / (1 - (1 - short) * t.sigma_b)  # 1 - s_down / s_b
    return 1 - gap, float(np.sqrt(gap * (2 - gap)))


def split_by_sigma(h: float, eta: float) -> tuple[float, float]:
    """(s_down / s_b, s_up / s_b) by k-diffusion's law, h = log(s_a / s_b)."""
    fresh = min(eta * eta * -np.expm1(-2 * h), 1.0)
    return float(np.sqrt(1 - fresh)), float(np.sqrt(fresh))
