"""The columns of the rows of each op, as the kernels read them; see `table` for what they weigh."""

from __future__ import annotations

from ardiff_kernels.ops.diffusion_step import COLUMNS as DIFFUSION_COLUMNS
from ardiff_kernels.ops.mala_accept import COLUMNS as ACCEPT_COLUMNS
from ardiff_kernels.ops.uld_step import COLUMNS as ULD_COLUMNS

WIDTH = 20
COLUMNS = {"diffusion": DIFFUSION_COLUMNS, "uld": ULD_COLUMNS, "accept": ACCEPT_COLUMNS}
