"""The tables that are learned: rows in y = x / alpha, s = sigma / alpha whose weights sum to 1.

With h_i the step in log s, h'_i the one before, D the prediction and D1, D2, D3 those before it,

    y' = rho y + (1 - rho) (D + p h / (2 h') (D - D1) + q (D1 - D2) + r (D2 - D3)),
    rho = e^(a - h),    noise of std e s_b, s_b the next row's s,

and rho is a number of its own in the last row, which makes the sample without noise. p = 1 and all
else 0 is DPM-Solver++(2M); every method with one call per step, two earlier predictions (three with
r) and a rho above 0 is a point of the family. The first row has no D1 and the second no D2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LEAST = 1e-4  # a row's rho is at least this, so that its logarithm exists


class Family:
    """Tables of `steps` rows from ratio `first` on.

    Args:
        steps: rows, each with one model call.
        first: s of the first row, where runs begin; it is not learned.
        third: whether r is learned, the weight of a third earlier prediction.
        noisy: whether e is learned.

    Attributes:
        free: bool `[6, steps]`, which parameters are learned: in the order of ROWS, a column per
            row of the table; the last row's rho is in the place of its log h.
    """

    ROWS = ("log_h", "a", "p", "q", "r", "e")

    def __init__(self, steps: int, first: float, third: bool = False, noisy: bool = False) -> None:
        self.steps, self.first = steps, first
        free = torch.zeros(len(self.ROWS), steps, dtype=torch.bool)
        free[0] = True
        free[1, :-1] = True
        free[2, 1:] = True
        free[3, 2:] = True
        free[4, 3:] = third
        free[5, :-1] = noisy
        self.free = free

    def rows(self, parameters: Tensor) -> Tensor:
        """float64 `[6, steps]` -> rows `[steps, 7]`, differentiable; see
        :mod:`ardiff.tables.ratio_rows`."""
        log_h, a, p, q, r, e = parameters
        h = log_h[:-1].exp()
        s = self.first * torch.cat([h.new_zeros(1), -h.cumsum(0)]).exp()
        rho = torch.cat([(a[:-1] - h).exp(), log_h[-1:]])
        ratio = torch.cat([h.new_ones(1), h[1:] / h[:-1], h.new_ones(1)])[: self.steps]
        gain = 1 - rho
        p, q, r = gain * p * ratio / 2, gain * q, gain * r
        noise = torch.cat([e[:-1] * s[1:], h.new_zeros(1)])
        return torch.stack([s, rho, gain + p, q - p, r - q, -r, noise], 1)

    def parameters(self, rows: np.ndarray) -> Tensor:
        """Of `rows` `[steps, 7]`, as near as the family comes: the inverse of :meth:`rows`."""
        rows = torch.as_tensor(rows, dtype=torch.float64)
        s, rho = rows[:, 0], rows[:, 1]
        rho = torch.cat([rho[:-1].clamp(min=_LEAST), rho[-1:]])
        h = (s[:-1] / s[1:]).log()
        ratio = torch.cat([h.new_ones(1), h[1:] / h[:-1], h.new_ones(1)])[: self.steps]
        found = torch.zeros(len(self.ROWS), self.steps, dtype=torch.float64)
        found[0] = torch.cat([h.log(), rho[-1:]])
        found[1, :-1] = rho[:-1].log() + h
        r = -rows[:, 5]
        q = r - rows[:, 4]
        found[2] = (q - rows[:, 3]) / (1 - rho) * 2 / ratio
        found[3], found[4] = q / (1 - rho), r / (1 - rho)
        found[5, :-1] = rows[:-1, 6] / s[1:]
        return torch.where(self.allowed, found, torch.zeros_like(found))

    @property
    def allowed(self) -> Tensor:
        """What a table may have, learned or not."""
        return Family(self.steps, self.first, True, True).free
