"""The layers of VibeVoice's codec as one chunk of a stream passes them.

Activations are `[batch, steps, channels]`. There a step's channels lie side by side, so that norms
and linear layers need no transpose, and a convolution over k steps reads k * channels numbers that
follow each other: strided and transposed convolutions are products with such windows, none of which
is copied. What a layer remembers of a stream stays in the stock cache, in its form.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import Product


def continued(cache: Any, convolution: nn.Module, x: Tensor) -> Tensor:
    """The steps that a convolution saw last and then those of x, `[batch, left + steps, channels]`;
    those that it sees last now are put into the cache.

    Args:
        cache: a VibeVoiceAcousticTokenizerConv1dPaddingCache, whose layer of this convolution
            exists.
        convolution: a CausalConv1d or CausalConvTranspose1d of the same module.
        x: `[batch, steps, channels]`.
    """
    layer = cache.layers[convolution.cache_key]
    if not layer.is_initialized:
        layer.lazy_initialization(x, convolution)
    whole = torch.cat([layer.cache.transpose(1, 2), x], 1)
    layer.cache.copy_(whole[:, whole.shape[1] - convolution.left_pad :].transpose(1, 2))
    return whole


def windows(whole: Tensor, size: int, stride: int) -> Tensor:
    """`[batch * count, size * channels]`: every `stride` steps, so many steps one after the other.

    A view of a contiguous `whole` `[1, steps, channels]`; of more samples, a copy.
    """
    batch, steps, channels = whole.shape
    count = (steps - size) // stride + 1
    view = whole.as_strided(
        (batch, count, size * channels), (steps * channels, stride * channels, 1)
    )
    return view[0] if batch == 1 else view.reshape(batch * count, size * channels)


class Convolution:
    """A CausalConv1d of one group, whose matrix has a column for each step and channel.

    Args:
        module: the stock module.
        options: of `Product`, `weights` and `packed_only`.
    """

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        self.convolution = module
        self.size, self.stride = module.conv.kernel_size[0], module.conv.stride[0]
        weight = module.conv.weight
        self.product = Product(
            lambda: weight.transpose(1, 2).flatten(1), module.conv.bias, **options
        )
        self.products = [self.product]

    def __call__(self, x: Tensor, cache: Any) -> Tensor:
        """`[batch, steps, channels]` -> `[batch, steps / stride, outputs]`."""
        whole = continued(cache, self.convolution, x)
        y = self.product(windows(whole, self.size, self.stride))
        return y.view(len(x), -1, y.shape[1])


class Transposed:
    """A CausalConvTranspose1d whose kernel has twice the steps of its stride.

    A step of the input and the one before it give `stride` steps of the output, which are the
    outputs of one matrix: a row for each step and channel of the output, a column for each step and
    channel of the input.

    Args:
        module: the stock module.
        options: of `Product`, `weights` and `packed_only`.
    """

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        self.convolution = module
        weight = module.convtr.weight  # [inputs, outputs, size]
        inputs, outputs, _ = weight.shape
        stride = module.stride

        def matrix() -> Tensor:
            halves = weight.view(inputs, outputs, 2, stride).flip(2)  # the step before comes first
            return halves.permute(3, 1, 2, 0).reshape(stride * outputs, 2 * inputs)

        self.outputs = outputs
        self.product = Product(matrix, module.convtr.bias.repeat(stride), **options)
        self.products = [self.product]

    def __call__(self, x: Tensor, cache: Any) -> Tensor:
        """`[batch, steps, channels]` -> `[batch, steps * stride, outputs]`."""
        whole = continued(cache, self.convolution, x)
        last = whole[:, whole.shape[1] - x.shape[1] - 1 :]
        if len(x) > 1:
            last = last.contiguous()
        y = self.product(windows(last, 2, 1))
        return y.view(len(x), -1, self.outputs)


class ConvNext:
    """A ConvNext1dLayer: x + scale conv(norm(x)) per channel, then x + scale ffn(norm(x)).

    The first scale is multiplied into the kernel of the convolution, which as a convolution of
    images with channels last needs no transpose.

    Args:
        module: the stock module.
        options: of `Product`, `weights` and `packed_only`.
    """

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        self.convolution = module.mixer
        self.norm, self.activation = module.norm, module.ffn.activation
        norm, ffn, conv = module.ffn_norm, module.ffn, module.mixer.conv
        expand, shrink = ffn.linear1, ffn.linear2
        with torch.inference_mode(False), torch.no_grad():
            scale, dtype = module.gamma.float(), conv.weight.dtype
            kernel = (conv.weight.float() * scale[:, None, None]).to(dtype)
            self.kernel = kernel.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            self.bias = (conv.bias.float() * scale).to(dtype)
        self.expand = Product(
            lambda: expand.weight, expand.bias, norm=(norm.weight, norm.variance_epsilon), **options
        )
        self.shrink = Product(lambda: shrink.weight, shrink.bias, scale=module.ffn_gamma, **options)
        self.products = [self.expand, self.shrink]

    def _mix(self, x: Tensor, whole: Tensor) -> Tensor:
        image = whole.transpose(1, 2).unsqueeze(2)  # [batch, channels, 1, left + steps]
        y = F.conv2d(image, self.kernel, self.bias, groups=len(self.kernel))
        return x + y.squeeze(2).transpose(1, 2)

    def __call__(self, x: Tensor, cache: Any) -> Tensor:
        """`[batch, steps, channels]` -> the same."""
        norm = self.norm
        normed = F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
        whole = continued(cache, self.convolution, normed)
        x = self._mix(x, whole)
        rows = x.reshape(-1, x.shape[2])
        hidden = self.activation(self.expand(rows))
        return self.shrink(hidden, rows).view(x.shape)
