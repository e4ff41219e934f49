"""The convolutions of the package pocket-tts from codec latents to samples, over its own state.

A convolution of few steps is a product of a matrix with windows of its input. With channels last,
windows of neighbouring steps overlap in memory, so that they need no copy; and a transposed
convolution whose kernel is two strides long is a product with windows of two steps, whose results
stand behind each other as the steps of the output do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._tree import Tree
from ..swaps import why_not
from .conv_matrix import ConvMatrix
from .transformer import State, Streams


class PackageDecoder:
    """Stands in for the `forward` of one SEANetDecoder.

    Args:
        module: the decoder.
        weights: dtype of packed matrices; None for float32.
    """

    def __init__(self, module: nn.Module, weights: str | None) -> None:
        self.module, self._streams, self._weights = module, Streams(), weights
        self._find()
        self._tree = Tree(module)

    def _find(self) -> None:
        """The matrices of the convolutions that the decoder has now."""
        self._convs = [m for m in self.module.modules() if _form(m) in ("conv", "transposed")]
        self._matrices = {m: ConvMatrix(_conv(m), self._weights) for m in self._convs}

    @property
    def memory_bytes(self) -> int:
        return sum(matrix.memory_bytes for matrix in self._matrices.values())

    def forward(self, z: Tensor, model_state: State) -> Tensor:
        """As the module's own: `[1, C, T]` to samples `[1, channels, T hop_length]`."""
        if not self._serves(z, model_state):
            return type(self.module).forward(self.module, z, model_state)
        first = self._convs[0].get_state(model_state)["previous"]
        if self._tree.replaced():
            self._find()
            self._tree.look()
        if self._streams.begins(first) or not self._tree.same():
            for matrix in self._matrices.values():
                matrix.refresh()
            self._tree.look()
        x, active = z[0].t(), False
        for layer in self.module.model:
            kind = _form(layer)
            if isinstance(layer, nn.ELU):
                active = True
                continue
            if kind == "conv":
                x = self._conv(layer, x, model_state, active)
            elif kind == "transposed":
                x = self._transposed(layer, x, model_state, active)
            else:
                inner = x
                last = layer.block[-1]
                for conv in layer.block[1::2]:
                    residual = x if conv is last else None
                    inner = self._conv(conv, inner, model_state, True, residual)
                x = inner
            active = False
        return x.t()[None]

    def _serves(self, z: Tensor, state: State | None) -> bool:
        if z.dim() != 3 or len(z) != 1 or not z.numel() or z.dtype != torch.float32:
            return False
        if state is None or not z.is_cpu or self._tree.hooked():
            return False
        if torch.is_grad_enabled() and (z.requires_grad or self._tree.wants_gradients()):
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        return not self._tree.replaced() or not why_not_decoder(self.module, replaced=True)

    def _conv(
        self,
        layer: nn.Module,
        x: Tensor,
        state: State,
        active: bool,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`[T, C]` -> `[T, O]`, after ELU if `active`."""
        previous = layer.get_state(state)["previous"][0]
        channels, before = previous.shape
        steps = len(x)
        if not before:
            return self._matrices[layer](F.elu(x) if active else x, residual)
        row = _joined(previous.t(), x, 0, active)
        conv = layer.conv
        kernel, dilation = conv.kernel_size[0], conv.dilation[0]
        if dilation == 1:
            windows = row.as_strided((steps, kernel * channels), (channels, 1))
        else:
            strides = (channels, dilation * channels, 1)
            windows = row.as_strided((steps, kernel, channels), strides).flatten(1)
        found = self._matrices[layer](windows, residual)
        previous.copy_(row[-before:].t())
        return found

    def _transposed(self, layer: nn.Module, x: Tensor, state: State, active: bool) -> Tensor:
        """`[T, C]` -> `[T stride, O]`. The last rows of a further step are what it adds to the next
        call's first."""
        partial = layer.get_state(state)["partial"][0]
        conv = layer.convtr
        stride, outputs, steps = conv.stride[0], conv.out_channels, len(x)
        row = _joined(x.new_zeros(1, x.shape[1]), x, 1, active)
        windows = row.as_strided((steps + 1, 2 * x.shape[1]), (x.shape[1], 1))
        found = self._matrices[layer](windows).view(-1, outputs)
        found[:stride] += partial.t()
        rest = found[steps * stride :]
        partial.copy_((rest if conv.bias is None else rest - conv.bias).t())
        return found[: steps * stride]


def _joined(before: Tensor, x: Tensor, after: int, active: bool) -> Tensor:
    """Rows `before`, then x after ELU if `active`, then `after` rows of zeros; contiguous."""
    first, steps = len(before), len(x)
    row = x.new_empty(first + steps + after, x.shape[1])
    row[:first] = before
    if active:
        torch.ops.aten.elu.out(x, out=row[first : first + steps])
    else:
        row[first : first + steps] = x
    row[first + steps :] = 0
    return row


class PackageUpsample:
    """Stands in for the `forward` of one ConvTrUpsample1d, a transposed convolution that keeps
    channels apart."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, x: Tensor, model_state: State) -> Tensor:
        """As the module's own: `[B, C, T]` to `[B, C, T stride]`."""
        layer = self.module.convtr
        weight, stock = layer.convtr.weight, type(self.module).forward
        hooks = (layer._forward_hooks, layer._forward_pre_hooks)
        inner = (layer.convtr._forward_hooks, layer.convtr._forward_pre_hooks)
        if x.dtype != torch.float32 or weight.dtype != x.dtype or any(hooks) or any(inner):
            return stock(self.module, x, model_state)
        partial = layer.get_state(model_state)["partial"]
        stride = layer.convtr.stride[0]
        now, before = weight[:, 0].t().split(stride)  # [stride, C]
        steps = x.transpose(1, 2).contiguous()[:, :, None]  # [B, T, 1, C]
        found = steps * now
        found[:, 1:] += steps[:, :-1] * before
        found[:, 0] += partial.transpose(1, 2)
        partial.copy_((steps[:, -1] * before).transpose(1, 2))
        return found.flatten(1, 2).transpose(1, 2)


def _form(module: nn.Module) -> str:
    """Of a streaming convolution or block of the package; empty for another module."""
    name = type(module).__name__
    return {"StreamingConv1d": "conv", "StreamingConvTranspose1d": "transposed"}.get(
        name, "block" if name == "SEANetResnetBlock" else ""
    )


def _conv(module: nn.Module) -> Any:
    return module.conv if _form(module) == "conv" else module.convtr


def why_not_decoder(module: nn.Module, replaced: bool = False) -> str:
    """Why a SEANetDecoder cannot be followed; empty if it can.

    Args:
        replaced: its own forward is ours.
    """
    reason = "" if replaced else why_not(module, ())
    if reason:
        return reason
    for layer in module.model:
        inner = layer.block if _form(layer) == "block" else [layer]
        for each in inner:
            reason = _why_not_layer(each)
            if reason:
                return reason
        if _form(layer) == "block" and not _alternates(layer.block):
            return "a residual block does not alternate ELU and convolution"
    return ""


def _alternates(block: Sequence[nn.Module]) -> bool:
    kinds = [_form(each) or type(each).__name__ for each in block]
    return len(kinds) % 2 == 0 and kinds == ["ELU", "conv"] * (len(kinds) // 2)


def _why_not_layer(layer: nn.Module) -> str:
    if isinstance(layer, nn.ELU):
        return "" if layer.alpha == 1 else f"an ELU has alpha {layer.alpha}, expected 1"
    if _form(layer) not in ("conv", "transposed"):
        return f"a {type(layer).__name__} is not known here"
    conv = _conv(layer)
    if type(conv) not in (nn.Conv1d, nn.ConvTranspose1d):
        return f"a {type(conv).__name__} stands where a torch.nn convolution is expected"
    weight = conv.weight
    if type(weight) is not nn.Parameter or not weight.is_cpu or weight.dtype != torch.float32:
        return f"a weight is {str(weight.dtype)[6:]} on {weight.device}, expected float32 on a CPU"
    if conv.groups != 1:
        return f"a convolution has {conv.groups} groups, expected 1"
    if _form(layer) == "conv":
        if layer.pad_mode != "constant" or conv.stride[0] != 1:
            return "a convolution has a stride or another padding than zeros"
    elif conv.kernel_size[0] != 2 * conv.stride[0] or conv.dilation[0] != 1:
        return "a transposed convolution has a kernel that is not two strides long"
    return ""


def why_not_upsample(module: nn.Module) -> str:
    """Why a ConvTrUpsample1d cannot be followed; empty if it can."""
    reason = why_not(module, ())
    if reason:
        return reason
    conv = module.convtr.convtr
    if type(conv) is not nn.ConvTranspose1d or type(conv.weight) is not nn.Parameter:
        return f"a {type(conv).__name__} stands where a torch.nn.ConvTranspose1d is expected"
    if not conv.weight.is_cpu or conv.weight.dtype != torch.float32:
        dtype = str(conv.weight.dtype)[6:]
        return f"a weight is {dtype} on {conv.weight.device}, expected float32 on a CPU"
    apart = conv.groups == conv.in_channels == conv.out_channels and conv.bias is None
    if not apart or conv.kernel_size[0] != 2 * conv.stride[0]:
        return "it mixes channels, has a bias or a kernel that is not two strides long"
    return ""
