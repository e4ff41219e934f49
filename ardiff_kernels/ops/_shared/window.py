"""Pieces of the references of `lookahead_draft` and `lookahead_verify`: a window of rows of each
sample, what is known of rows from the last round, and one row on a data prediction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion_step import COLUMNS as DIFFUSION
from ..lookahead_draft import COLUMNS
from ..uld_step import COLUMNS as ULD
from .address import counter_word, normal_pairs, normals
from .rows import column, lookup, term


class Known(NamedTuple):
    """What is known of a row of each sample: found `[B, 1]`, x and x0 `[B, d]`, gain `[B, 1]`."""

    found: Tensor
    x: Tensor
    x0: Tensor
    gain: Tensor


class Window:
    """The rows `row` + j, j < rows, of each sample; arguments as of the ops."""

    def __init__(
        self, coef, plan, row, count, draw, key, stream, rows: int, d: int, dtype, given
    ) -> None:
        self.row, self.rows, self._dtype, self._given = row, rows, dtype, given
        inside = (row >= 0) & (row < len(coef))
        last = torch.minimum(count.clamp(max=rows), len(coef) - row)
        self.count = torch.where(inside, last.clamp(min=0), 0)  # n
        self._coef, self._plan, self._d = coef, plan, d
        self._address = draw, key, stream

    def live(self, j: int) -> Tensor:
        """Whether sample b has a row j, bool `[B, 1]`."""
        return (j < self.count)[:, None]

    def _rows(self, j: int) -> Tensor:
        return (self.row + j).clamp(0, len(self._coef) - 1)

    def coefficients(self, j: int) -> tuple[SimpleNamespace, SimpleNamespace, Tensor]:
        """Row j's coefficients by the names of both ops, its plan, and :meth:`live`."""
        rows, batch = self._rows(j), len(self.row)
        both = [
            lookup(self._coef, names, rows, batch, self._dtype)[0] for names in (DIFFUSION, ULD)
        ]
        plan, _ = lookup(self._plan, COLUMNS, rows, batch, self._dtype)
        c = SimpleNamespace(**{k: v for each in both for k, v in vars(each).items()})
        scale = column(self._given.noise_scale, self._dtype)
        if scale is not None:
            for name in ("x_n", "z_1", "z_2", "v_1"):
                setattr(c, name, scale * getattr(c, name))
            plan.couples = torch.where(scale == 0, 0, plan.couples)
        return c, plan, self.live(j)

    def kinetic(self, j: int) -> Tensor:
        """Whether row j is one of `uld_step`, bool `[B, 1]`."""
        if self._given.op is None:
            return torch.zeros_like(self.row, dtype=torch.bool)[:, None]
        return (self._given.op[self._rows(j).long()] != 0)[:, None]

    def noise(self, j: int) -> tuple[Tensor, Tensor, Tensor]:
        """The normal of a `diffusion_step` row j, and the two of a `uld_step` row, `[B, d]`."""
        draw, key, stream = self._address
        counter = counter_word(draw.expand(len(self.row)) + self.row + j)
        if self._given.noise is not None:
            n = self._given.noise[:, j]
        else:
            n = normals(key, counter, stream, self._d)
        pair = (n, n)
        if self._given.op is not None:
            pair = normal_pairs(key, counter, stream, self._d)
        return tuple(each.to(self._dtype) for each in (n, *pair))

    def known(self, row: Tensor) -> Known:
        """The entries of a row of each sample, int32 `[B]`; zeros where there is none."""
        given = self._given
        zero = torch.zeros(len(row), self._d, dtype=self._dtype, device=row.device)
        if given.known_x is None:
            found = torch.zeros_like(row, dtype=torch.bool)[:, None]
            return Known(found, zero, zero, zero[:, :1])
        k = row - given.known_row
        entries = given.known_count.clamp(max=given.gain.shape[1])
        found = ((k >= 0) & (k < entries))[:, None]
        samples = torch.arange(len(row), device=row.device)
        place = torch.where(found[:, 0], k, 0).long()
        x, x0 = (t[samples, place].to(self._dtype) for t in (given.known_x, given.known_0))
        gain = given.gain[samples, place].to(self._dtype)[:, None]
        return Known(found, *(torch.where(found, t, 0) for t in (x, x0, gain)))


def clamped(x0: Tensor, bound: float | None) -> Tensor:
    return x0 if bound is None else x0.clamp(-bound, bound)


def split(memory: Tensor, d: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Memory, the second or None, and the origin of x_d."""
    first, *second = memory.split(d, 1)
    return first, second[0] if second else None, second[0] if second else first


def advance(
    c: SimpleNamespace,
    p: SimpleNamespace,
    kinetic: Tensor,
    x: Tensor,
    v: Tensor,
    x0: Tensor,
    memory: Tensor,
    noise: tuple[Tensor, Tensor, Tensor],
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """New state, velocity and memory of a row whose data prediction is x0, of `uld_step` rows with
    the output `out` where it is given."""
    n, n1, n2 = noise
    kept, second, origin = split(memory, x.shape[1])
    move = term(c.x_x_lo, x) + term(c.x_0, x0) + term(c.x_m, kept) + term(c.x_d, x - origin)
    x_new = term(c.x_x, x) + (move + term(c.x_n, n))
    keeps = (c.m_x == 0) & (c.m_x_lo == 0) & (c.m_0 == 0)
    memory_new = torch.where(keeps, kept, term(c.m_x, x) + term(c.m_x_lo, x) + term(c.m_0, x0))
    if second is not None:
        keeps = (c.s_x == 0) & (c.s_m == 0) & (c.s_2 == 0)
        moved = term(c.s_x, x) + (term(c.s_m, kept) + term(c.s_2, second))
        memory_new = torch.cat([memory_new, torch.where(keeps, second, moved)], 1)
    if not bool(kinetic.any()):
        return x_new, v, memory_new

    if out is None:
        out = (x0 - term(p.p_x, x)) * p.o_0
    start = c.a_z != 0
    diff = torch.where(start, 0, x - kept)
    move = term(c.z_z_lo, x) + term(c.z_d, diff) + term(c.z_v, v) + term(c.z_o, out)
    z_new = term(c.z_z, x) + (move + term(c.z_1, n1) + term(c.z_2, n2))
    v_new = term(c.v_z, x) + term(c.v_d, diff) + term(c.v_v, v) + term(c.v_o, out) + term(c.v_1, n1)
    anchor = torch.where(start, term(c.a_z, x) + term(c.a_z_lo, x), kept)
    if second is not None:
        anchor = torch.cat([anchor, second], 1)
    return (
        torch.where(kinetic, z_new, x_new),
        torch.where(kinetic, v_new, v),
        torch.where(kinetic, anchor, memory_new),
    )
