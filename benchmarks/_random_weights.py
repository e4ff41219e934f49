"""Random weights for models of billions of parameters, in seconds: a model is made without memory,
and every tensor is a piece of one block of uniform numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

BLOCK = 2**24 + 43  # numbers; a prime, so that the rows of a tensor differ whatever its width
GAIN = math.sqrt(3)  # uniform in +-GAIN / sqrt(fan_in) keeps the variance
LAYER_SCALE = 0.3
BIAS = 0.1


def made(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """What `make` returns while `dtype` is torch's default, for inference."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def materialised(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int) -> nn.Module:
    """A model of transformers made without memory, then with weights as of :func:`fill`. Tied
    weights are tied, and buffers and scalars are as the model makes them.

    Args:
        make: makes the model on the device of the context in which it is called.
        dtype: of its parameters.
        seed: of its weights.
    """
    with torch.device("meta"):
        model = made(make, dtype)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not own or any(parameter.dim() == 0 for parameter in own):
            model._init_weights(module)
    return fill(model, seed)


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> nn.Module:
    """Random weights: matrices and kernels that keep the variance of their inputs, small biases,
    norms of weight 1, layer scales (vectors whose name ends in ``gamma``) of `LAYER_SCALE`."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.empty(BLOCK).uniform_(-1, 1, generator=generator)
    blocks = {torch.float32: block}
    starts = (1_000_003 * i % BLOCK for i in itertools.count())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            own = blocks.setdefault(parameter.dtype, block.to(parameter.dtype))
            if parameter.dim() > 1:
                _copy(parameter, own, next(starts), GAIN / math.sqrt(_fan_in(module, parameter)))
            elif parameter.dim() == 1 and name.endswith("bias"):
                _copy(parameter, own, next(starts), BIAS)
            elif parameter.dim() == 1:
                parameter.fill_(LAYER_SCALE if name.endswith("gamma") else 1.0)
    return model


def _fan_in(module: nn.Module, parameter: Tensor) -> int:
    if isinstance(module, nn.ConvTranspose1d):
        return module.in_channels * module.kernel_size[0] // module.stride[0]
    return parameter[0].numel()


def _copy(parameter: Tensor, block: Tensor, start: int, scale: float) -> None:
    """`scale` times the numbers of the block from `start` on, which begins again at its end."""
    flat, done = parameter.view(-1), 0
    while done < flat.numel():
        piece = block[start : start + flat.numel() - done]
        torch.mul(piece, scale, out=flat[done : done + len(piece)])
        done, start = done + len(piece), 0
