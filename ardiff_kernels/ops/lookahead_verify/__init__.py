r"""`lookahead_verify`: which drafted rows hold, by the model's outputs at their states.

Two rules. *By law*, the sample has exactly the distribution that the rows give one after another.
A drafted row is N(m', w^2) and the true one N(m, w^2), m with the model's data prediction; they are
joined by the reflection-maximal coupling (Bou-Rabee, Eberle & Zimmer 2020; in speculative sampling
of diffusion models De Bortoli et al. 2025). With the row's normal Z and delta = (m' - m) / w, the
drafted state m' + w Z stays where log U <= -|Z + delta|^2 / 2 + |Z|^2 / 2, with probability
2 Phi(-|delta| / 2); else the state is m + w (Z - 2 (e.Z) e), e = delta / |delta|. Guess and delta
do not depend on the row's own Z and U, which is all that is needed: what a guess is made of is
free.

*By tolerance*, the sample is the one that the rows give one after another with the same noise, as
near as the tolerance says (Picard iteration: Shih et al. 2023). A drafted row stays where it lies
within the tolerance of what the row gives with the model's data prediction.

At the first row that does not stay the true row is taken, and the window ends.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import operator
from .checks import check_lookahead_verify


class Verified(NamedTuple):
    """What holds; the docstring of :func:`lookahead_verify` has the shapes."""

    x: Tensor
    v: Tensor
    memory: Tensor
    x0: Tensor
    gain: Tensor
    row: Tensor
    accepted: Tensor


def _fake(states, drafts, outs, memory, coef, plan, row, *args, velocities=None, **options):
    batch, rows, d = drafts.shape
    return (
        drafts.new_empty(batch, d),
        drafts.new_empty(0 if velocities is None else (batch, d)),
        memory.new_empty(memory.shape),
        drafts.new_empty(batch, rows, d),
        drafts.new_empty(batch, rows),
        row.new_empty(batch),
        row.new_empty(batch),
    )


@operator(check=check_lookahead_verify, fake=_fake)
def lookahead_verify(
    states: Tensor,
    drafts: Tensor,
    outs: Tensor,
    memory: Tensor,
    coef: Tensor,
    plan: Tensor,
    row: Tensor,
    count: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    *,
    velocities: Tensor | None = None,
    op: Tensor | None = None,
    known_x: Tensor | None = None,
    known_0: Tensor | None = None,
    gain: Tensor | None = None,
    known_row: Tensor | None = None,
    known_count: Tensor | None = None,
    noise: Tensor | None = None,
    noise_scale: Tensor | None = None,
    x0_clamp: float | None = None,
    tolerance: float | None = None,
) -> Verified:
    """Keep the drafted rows that hold, take the first that does not by the model's output.

    Row j of a sample, j < n, holds where all rows before it do and

    - without `tolerance`: the coupling of the module accepts it, with the normals of its draw and
      U, word 0 of quad 0 at counter 4 (draw + i) + 2. Where the plan's `couples` is 0 (a row
      without noise, or whose noise does not reach where the means differ) or the noise scale is 0,
      it holds if the row with the model's output gives the drafted state to the bit. A `uld_step`
      row is coupled in both normals: delta_1 = dv / v_1, delta_2 = (dz - z_1 delta_1) / z_2, with
      dz and dv the differences of the means.
    - with `tolerance`: sum((unit (m' - m))^2) <= tolerance^2 d; for tolerance 0, if the row with
      the model's output gives the drafted state to the bit. Nothing is reflected.

    m' and m differ by the data prediction (the guess, and p_x x + p_o out clamped to +-x0_clamp),
    and by the memory, which each has had from its own data predictions since the window began. The
    result's memory is from the model's alone. Where the plan's `calls` is 0 the guess stands for
    the data prediction.

    Gains are estimated at all n rows, where sums are over the elements, from dx and d0::

        G = (dx . d0) / (dx . dx), at least 0 and at most g_max
        of a row that is known: dx = x - X, d0 = x0 - X0
        else, with the row before: dx = x - r_x x_ - r_0 x0_, d0 = x0 - x0_

    where the row before is row j - 1 of the window, or for j = 0 the known one. Where there is none
    or dx is 0 or G is not finite, G is the known gain, or min(g_s G_, g_max) of the row before, or
    g_0. Sums of a sample are taken in an order that depends on d alone.

    Args:
        states, drafts, velocities: as `lookahead_draft` returns them; rows contiguous.
        outs: `[B, L, d]` float32, float16 or bfloat16, contiguous inside a sample: the model's
            outputs, guided; read for rows j < n that call the model.
        tolerance: 0 or more.
        memory, coef, ..., x0_clamp: as `lookahead_draft` was given them.

    Returns:
        A named tuple. x, v, memory: the state at the new row, of the shapes of `lookahead_draft`'s
        x, v (`[0]` without) and memory. x0: float32 `[B, L, d]`, the data predictions at `states`,
        0 past n; with gain, float32 `[B, L]`, 0 past n, and `states[:, :L]`, `row` and n it is what
        the next round knows. row: int32 `[B]`, the new row. accepted: int32 `[B]`, drafted rows
        that hold; row advances by one more where that is less than n.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options.
    """


_autograd.without_gradient("lookahead_verify", "detach it")
