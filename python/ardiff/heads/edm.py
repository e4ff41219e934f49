"""The preconditioning of Karras et al. 2022 (EDM) around a head, hoisted or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..batch_invariant import batch_invariant as batch_invariant_mode
from .base import Head


class EDMHead:
    """A head in the preconditioning of Karras et al. 2022, unit variance: predicts the data.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), on the path `edm`, where level is sigma.
    c_noise is log(sigma)/4 times 1000, as the sinusoidal embedding is made for training timesteps.
    """

    hoists_ragged = True

    def __init__(self, head: Head) -> None:
        self.head = head

    @staticmethod
    def noise_level(sigma: Tensor) -> Tensor:
        return 250 * sigma.log()

    def __call__(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """x `[B, d]`, level (sigma) `[B]` or `[1]`, c `[B, context]` -> prediction `[B, d]`."""
        sigma = level.to(x.dtype)[:, None]
        norm = 1 + sigma**2
        inner = self.head(x * norm.rsqrt(), self.noise_level(level), c)
        return x / norm + inner * sigma * norm.rsqrt()

    def hoist(self, levels: Tensor, c: Tensor) -> Callable[[int, Tensor], Tensor]:
        """As `Head.hoist`, with the preconditioning around it."""
        inner = self.head.hoist(self.noise_level(levels), c)
        entering, skip, leaving = (f.to(c.dtype) for f in _factors(levels))

        def step(row: int, x: Tensor) -> Tensor:
            return x * skip[row] + inner(row, x * entering[row]) * leaving[row]

        return step

    def hoist_rows(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
        """As `Head.hoist_rows`, with the preconditioning around it."""
        return self.around_rows(
            self.head.hoist_rows(self.noise_level(levels), conditions), levels, False
        )

    @staticmethod
    def around_rows(
        call: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]], levels: Tensor, invariant: bool
    ) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
        """The preconditioning around ``call(rows, samples, x)``, an output for each condition."""
        factors = torch.stack([f[:, 0].float() for f in _factors(levels)])

        def step(rows: Tensor, samples: Tensor, x: Tensor) -> list[Tensor]:
            own = factors.index_select(1, rows)
            entering, skipped = torch.mul(x, own[:2]).unbind(0)
            scale, outs = own[2], call(rows, samples, entering)
            with batch_invariant_mode() if invariant else nullcontext():
                return [torch.addcmul(skipped, out, scale) for out in outs]

        return step

    @staticmethod
    def around(
        call: Callable[[int, Tensor], Tensor], levels: Tensor, conditions: int, invariant: bool
    ) -> Callable[[int, Tensor], Sequence[Tensor]]:
        """The preconditioning around ``call(row, x) -> [conditions, N, d]``, the fused head.

        It takes two operators, and returns the outputs in memory that the next call overwrites.
        """
        entering, skip, leaving = (f.float() for f in _factors(levels))
        inside = torch.stack([entering, skip], 1).unbind(0)
        outside = leaving.unbind(0)
        scaled = outs = None

        def step(row: int, x: Tensor) -> Sequence[Tensor]:
            nonlocal scaled, outs
            if scaled is None:
                scaled = x.new_empty(2, *x.shape, dtype=torch.float32)
                outs = x.new_empty(conditions, *x.shape, dtype=torch.float32)
                scaled, outs = (scaled, *scaled.unbind(0)), (outs, outs.unbind(0))
            both, scaled_x, skipped = scaled
            torch.mul(x, inside[row], out=both)
            inner = call(row, scaled_x)
            if invariant:
                with batch_invariant_mode():
                    return torch.addcmul(skipped, inner, outside[row]).unbind(0)
            torch.addcmul(skipped, inner, outside[row], out=outs[0])
            return outs[1]

        return step


def _factors(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_in, c_skip and c_out of levels `[T]` or `[T, B]`, float64 `[T, 1 or B, 1]`."""
    sigma = sigma.double().reshape(len(sigma), -1, 1)
    norm = 1 + sigma**2
    return norm**-0.5, 1 / norm, sigma * norm**-0.5
