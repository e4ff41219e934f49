r"""`lookahead_draft`: the next rows of a table, run on guessed data predictions.

The rows of a table are cheap; the model's call before each is not. A run with a lookahead guesses
the data prediction of L rows, runs them on the guesses, calls the model at all L states at once and
lets `lookahead_verify` keep what holds. The guess decides how much holds. It has two forms.

*A row that the last round has evaluated* at another state X, with data prediction X0, is guessed by
a secant, of which the gain G is one number per row and sample::

    D = X0 + G (x - X)

*A row that has not been evaluated* is guessed from the row before it, whose state is x_ and whose
guess (or data prediction) is D_. Along the exact reverse process the data prediction is a
martingale: between two levels with the data known to be D_, y = x / alpha has the mean
k y_ + (1 - k) D_, k = (s / s_)^2 with s = sigma / alpha, and no drift moves the data prediction
while y is there. It moves with what y does beside that::

    D = D_ + G (x - r_x x_ - r_0 D_)

which is exact for Gaussian data of one variance, and has no bias for any other. Before any row has
been evaluated G is the gain of data of unit variance, and D of the first row G x.
"""

from __future__ import annotations

from torch import Tensor

from ...dispatch import autograd as _autograd
from ...dispatch.library import operator
from .checks import check_lookahead_draft

# Of the plan, float32 [T, 20], which says of each row of a table what `coef` does not.
COLUMNS = (
    *("p_x", "p_o", "o_0"),  # x0 = p_x x + p_o out; o_0 = 1 / p_o, or 0
    *("r_x", "r_0"),  # of the mean above; r_x x_ + r_0 D_
    *("g_0", "g_s", "g_max"),  # unit-variance gain; factor on the row before's gain; largest gain
    *("couples", "unit"),  # of lookahead_verify
    "calls",  # 1 where the row calls the model
)


def _fake(x, memory, coef, plan, row, count, draw, key, stream, rows, *, v=None, **options):
    batch, d = x.shape
    none = x.new_empty(0 if v is None else (batch, rows + 1, d))
    return x.new_empty(batch, rows + 1, d), none, x.new_empty(batch, rows, d)


@operator(check=check_lookahead_draft, fake=_fake)
def lookahead_draft(
    x: Tensor,
    memory: Tensor,
    coef: Tensor,
    plan: Tensor,
    row: Tensor,
    count: Tensor,
    draw: Tensor,
    key: Tensor,
    stream: Tensor,
    rows: int,
    *,
    v: Tensor | None = None,
    op: Tensor | None = None,
    known_x: Tensor | None = None,
    known_0: Tensor | None = None,
    gain: Tensor | None = None,
    known_row: Tensor | None = None,
    known_count: Tensor | None = None,
    noise: Tensor | None = None,
    noise_scale: Tensor | None = None,
    x0_clamp: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run up to `rows` rows of each sample's table on guessed data predictions.

    Row i of sample b is row `row[b]` + j, j < n = min(count[b], rows, T - row[b]). Its guess D is
    as the module says, clamped to +-x0_clamp if given; then `diffusion_step`'s new x and memory
    with D in the place of x0, or where ``op[i]`` is 1 `uld_step`'s with (D - p_x z) o_0 in the
    place of the output. Noise is that of draw ``draw + i``.

    The martingale form takes as (x_, D_, G_) of row `row[b]` its entry in what is known of the row
    before, and later those of the drafted row before, whose gain times g_s is the row's. Where
    nothing is known (no `known_x`, or known_count 0) G is g_0 in all rows and the first D is G x.
    A gain is at most g_max; those given are taken as they are.

    Args:
        x: float32 `[B, d]`, the states; unit inner stride.
        memory: float32 `[B, d]`, or `[B, 2d]` with a second memory; of `uld` rows the anchor.
        coef: float32 `[T, 20]`, as of the step ops; x_3, t_2, x_u and m_u are zero.
        plan: float32 `[T, 20]`, columns `COLUMNS`.
        row: int32 `[B]`, the next row of each sample; outside [0, T) no row is run.
        count: int32 `[B]`, how many rows at most; below 1 none.
        draw: int32 `[B]` or `[1]`, the noise draw of row 0.
        key: int64 `[1]`.
        stream: int64 `[B]`.
        rows: L, 1 or more.
        v: float32 `[B, d]`, the velocities, for tables with rows of `uld_step`.
        op: int32 `[T]`, beside `v`: 1 for a row of `uld_step`, else 0.
        known_x, known_0: float32 `[B, K, d]`, contiguous inside a sample: states of the last round
            and the data predictions there.
        gain: float32 `[B, K]`, contiguous.
        known_row, known_count: int32 `[B]`: entry k < known_count is of row known_row + k. All five
            are given, or none.
        noise: float32 `[B, L, d]`, normals of the rows in place of the addressed ones, for tables
            of `diffusion_step` rows alone.
        noise_scale: float32 `[B]` or `[1]`, multiplies the step noise.
        x0_clamp: positive bound on the data prediction, for tables of `diffusion_step` rows alone.

    Returns:
        The states before the rows and after the last, float32 `[B, L + 1, d]`, those past n equal
        to the last; the velocities likewise (`[0]` without `v`); and the guesses, float32
        `[B, L, d]`, 0 past n.

    Raises:
        RuntimeError: a wrong shape, dtype, device, stride or combination of options.
    """


_autograd.without_gradient("lookahead_draft", "detach it")
