"""A convolution's weights as the matrix of a product with windows of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_kernels import PackedWeight, ops, pack_linear

from ....heads.packing import WEIGHTS, bit_sums

# Steps from which PyTorch's own product of float32 is the faster one, its copy of the windows
# included: 2-core AMD EPYC (Zen 4), one thread.
_PLAIN_FROM = 64


class ConvMatrix:
    """The matrix of a convolution, followed when its parameters change.

    A Conv1d `[O, C, k]` is `[O, k C]`, for windows of k steps with channels last. A ConvTranspose1d
    `[C, O, 2 s]` of stride s is `[s O, 2 C]`, for windows of two steps.

    Args:
        conv: a Conv1d or ConvTranspose1d.
        weights: dtype of the packed form; None for float32.
    """

    def __init__(self, conv: nn.Module, weights: str | None) -> None:
        self.conv, self._dtype = conv, WEIGHTS[weights or "float32"]
        self._sums: Tensor | None = None
        self._plain: Tensor | None = None
        self._packed: PackedWeight | None = None
        self._bias: Tensor | None = None
        self.refresh()

    @property
    def memory_bytes(self) -> int:
        held = (self._plain, self._packed.weight, self._packed.scale, self._bias)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def refresh(self) -> None:
        """Reads the parameters, and makes the matrix anew where they were replaced or changed."""
        own = [t for t in (self.conv.weight, self.conv.bias) if t is not None]
        sums = bit_sums([t.detach() for t in own])
        if self._sums is not None and torch.equal(sums, self._sums):
            return
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = self.conv.weight.detach(), self.conv.bias
            self._bias = None if bias is None else bias.detach().clone()
            if isinstance(self.conv, nn.ConvTranspose1d):
                # [in, out, 2 stride] -> [stride out, 2 in]: of the step before, then of this one.
                stride = self.conv.stride[0]
                now, before = weight.split(stride, 2)
                matrix = torch.cat([before, now], 0).permute(2, 1, 0).flatten(0, 1)
                self._bias = None if bias is None else self._bias.repeat(stride)
            else:
                matrix = weight.transpose(1, 2).flatten(1)
            matrix = matrix.contiguous()
            self._plain = matrix if self._dtype == torch.float32 else None
            self._packed = pack_linear(matrix, self._dtype)
        self._sums = sums

    def __call__(self, windows: Tensor, residual: Tensor | None = None) -> Tensor:
        """`[T, K]`, any row stride, and the residual `[T, O]` -> `[T, O]`."""
        if self._plain is not None and len(windows) >= _PLAIN_FROM:
            found = F.linear(windows, self._plain, self._bias)
            return found if residual is None else found.add_(residual)
        packed = self._packed
        return ops.packed_linear(
            windows, packed.weight, packed.rows, scale=packed.scale, bias=self._bias,
            residual=residual,
        )  # fmt: skip
