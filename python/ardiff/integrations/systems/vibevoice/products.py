"""The matrix products of a streaming codec, on few rows or many."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff_kernels import PackedWeight, ops, pack_linear

from ....heads.packing import WEIGHTS

# Up to how many rows `packed_linear`, with norm, scale and residual in it, takes less time than
# PyTorch's product and what it needs beside it; by the dtype of the model and that of the packed
# weights. Measured on the layers of VibeVoice's codec, widths 32 to 2048, on an AMD EPYC "Zen 4"
# with AVX-512 BF16, 2 cores; float32 weights of a bfloat16 model were not measured.
MOST_ROWS = {
    (torch.float32, torch.float32): 400,
    (torch.float32, torch.bfloat16): 1000,
    (torch.float32, torch.int8): 1000,
    (torch.bfloat16, torch.float32): 400,
    (torch.bfloat16, torch.bfloat16): 1000,
    (torch.bfloat16, torch.int8): 100,
}


class Product:
    """y = s (W n(x) + b) + r, where n is an RMS norm, s the scale of a layer and r a residual, each
    of which may be absent.

    The forms of the matrix are made where they are first needed, since the number of rows decides
    which one that is.

    Args:
        matrix: gives W `[O, K]` in its own dtype, float32 or bfloat16; called for each form.
        bias: `[O]`.
        scale: `[O]`, or None.
        norm: weight `[K]` of the norm and its eps, or None.
        weights: of `WEIGHTS`, the dtype of the packed form; None: that of W.
        packed_only: whether the packed form takes any number of rows, so that the bits of a row
            do not depend on it.
    """

    def __init__(
        self,
        matrix: Callable[[], Tensor],
        bias: Tensor,
        *,
        scale: Tensor | None = None,
        norm: tuple[Tensor, float] | None = None,
        weights: str | None = None,
        packed_only: bool = False,
    ) -> None:
        self._matrix, self._bias, self._scale, self._norm = matrix, bias, scale, norm
        self._dtype = WEIGHTS[weights] if weights else bias.dtype
        self._most = 2**62 if packed_only else MOST_ROWS[bias.dtype, self._dtype]
        self._packed: tuple[PackedWeight, dict] | None = None
        self._plain: Tensor | None = None

    @property
    def memory_bytes(self) -> int:
        """Of the forms made, but for a plain one that is the parameter itself."""
        size = 0
        if self._packed is not None:
            size += self._packed[0].weight.nbytes
        if self._plain is not None and self._plain.data_ptr() != self._matrix().data_ptr():
            size += self._plain.nbytes
        return size

    def prepare(self, rows: int) -> None:
        """Makes the form that so many rows need."""
        with torch.inference_mode(False), torch.no_grad():
            if rows > self._most:
                if self._plain is None:
                    self._plain = self._matrix().detach()
            elif self._packed is None:
                self._packed = pack_linear(self._matrix(), self._dtype), self._options()

    def _options(self) -> dict:
        options = {"bias": self._bias.detach().float()}
        if self._scale is not None:
            options["gate"] = self._scale.detach().float()[None]
        if self._norm is not None:
            weight, eps = self._norm
            options |= {"norm": weight.detach().float(), "eps": eps}
        return options

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x `[N, K]`, residual `[N, O]` -> `[N, O]`, all in the dtype of W."""
        self.prepare(len(x))
        if len(x) <= self._most:
            packed, options = self._packed
            return ops.packed_linear(
                x, packed.weight, packed.rows, scale=packed.scale, residual=residual, **options
            )
        if self._norm is not None:
            weight, eps = self._norm
            x = F.rms_norm(x, weight.shape, weight, eps)
        y = F.linear(x, self._plain, self._bias)
        if residual is None:
            return y if self._scale is None else y * self._scale
        return residual + y if self._scale is None else torch.addcmul(residual, y, self._scale)
