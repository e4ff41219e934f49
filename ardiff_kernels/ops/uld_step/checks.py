"""Argument checks of `uld_step`; ``csrc/torch/uld_step.h`` repeats them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._shared.steps import check_step


def check_uld_step(
    op: str,
    written: Sequence[str],
    z: Tensor,
    v: Tensor,
    model_out: Tensor,
    anchor: Tensor,
    *place: Tensor,
    **options: Tensor | None,
) -> None:
    options.setdefault("noise2", None)
    state = {"z": z, "v": v, "anchor": anchor}
    check_step(op, state, (torch.float32,), 2, False, written, model_out, *place, options)
