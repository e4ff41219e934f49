"""The bound on KL(data | samples) of K patches drawn one after another by DDPM, term by term.

Huang et al. 2025, "Capturing Conditional Dependence via Auto-regressive Diffusion Models". With T
the OU time of the noisiest level and R steps of eta for each patch, up to constants that it does
not give,

    KL <~ 2 e^-2T L (m0 + d) + (L^2 R eta^2 + T eta) d + eta m0 + eta K R eps_score^2.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from .theory import Setting, check_horizon

_TERMS = ("truncation", "curvature", "time", "moment", "score")


@dataclass(frozen=True)
class KLBound:
    """The terms of the bound on KL(data | samples) of K patches drawn by DDPM, constant 1.

    With T the OU time of the noisiest level and R steps of eta per patch:

        truncation      2 e^-2T L (m0 + d)      starting from N(0, I)
        curvature       L^2 R eta^2 d           discretisation: the score changes within a step
        time            T eta d                 discretisation: the same, of the noise
        moment          eta m0
        score           eta K R eps_score^2     the only term that grows with K
    """

    horizon: float
    eta: float
    steps: float
    truncation: float
    curvature: float
    time: float
    moment: float
    score: float

    @property
    def terms(self) -> dict[str, float]:
        """Each term by its name."""
        return {name: getattr(self, name) for name in _TERMS}

    @property
    def total(self) -> float:
        return sum(self.terms.values())

    @property
    def dominant(self) -> str:
        """The name of the largest term."""
        return max(self.terms, key=self.terms.get)

    def as_dict(self) -> dict:
        return {**asdict(self), "total": self.total, "dominant": self.dominant}


def kl_bound(setting: Setting, horizon: float, steps: float, eta: float | None = None) -> KLBound:
    """The terms of the bound for R = `steps` steps of `eta` per patch, T / R where None.

    Raises:
        ValueError: a number that is not positive and finite.

    Example:
        >>> from ardiff.planning.kl_bound import kl_bound
        >>> from ardiff.planning.theory import Setting
        >>> found = kl_bound(Setting(dim=4, lipschitz=2.0, accuracy=0.1), horizon=3.0, steps=300)
        >>> found.dominant, round(found.truncation, 4), round(found.time, 4)
        ('curvature', 0.0793, 0.12)
    """
    check_horizon(horizon)
    eta = horizon / steps if eta is None and steps > 0 else eta
    if eta is None or not (0 < steps < math.inf and 0 < eta < math.inf):
        raise ValueError(f"steps and eta must be positive and finite, got {steps} and {eta}")
    d, L, K, m0, T, R = (
        setting.dim, setting.lipschitz, setting.patches, setting.second_moment, horizon, steps,
    )  # fmt: skip
    return KLBound(
        T, eta, R,
        truncation=2 * math.exp(-2 * T) * L * (m0 + d),
        curvature=L**2 * R * eta**2 * d,
        time=T * eta * d,
        moment=eta * m0,
        score=eta * K * R * setting.score_error**2,
    )  # fmt: skip
