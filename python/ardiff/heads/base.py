"""What any diffusion head is, and the arithmetic that all forms of heads share.

A head maps a noised patch x, a level and a context c to the model output. Everything that depends
on level and context only can be hoisted out of the sampling loop. A form of a head is one module of
this package with a subclass of :class:`Head`; ``mar.py`` is the one to read first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hoisting import OwnModulations

_NORMS = {"layer": F.layer_norm, "rms": F.rms_norm}


class Layer(NamedTuple):
    """A linear layer: weight `[rows, columns]`, bias `[rows]` or None."""

    weight: Tensor
    bias: Tensor | None


class Marks(NamedTuple):
    """By which names of tensors `load_head` recognises a form in a checkpoint.

    Attributes:
        own: a name that no other form has.
        input: the input projection, whose dtype is the head's.
        listed: the form and its main names, as an error lists them.
    """

    own: str
    input: str
    listed: str


class Head(nn.Module):
    """The description of a head, on which hoisting and the fused loop rest.

    Modulations (shift, scale, gate) are a linear map of SiLU(time + context); between an input and
    an output projection stand blocks h + gate MLP(norm(h) (1 + scale) + shift).

    Attributes:
        norm, mlp: the form of the blocks, as `ardiff_kernels.ops.head_step` takes them: `layer` or
            `rms`, and `plain` or `gated`.
        marks: of its checkpoints.
        width, depth, eps: of the blocks and their norms.
        hoists_ragged: samples may have levels of their own.
    """

    norm: ClassVar[str]
    mlp: ClassVar[str]
    marks: ClassVar[Marks]
    width: int
    depth: int
    eps: float
    hoists_ragged = True

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **options: Any) -> Head:
        """A head of the sizes of a checkpoint's tensors, whose values are not loaded yet.

        Raises:
            KeyError: the name of a tensor that is not there.
        """
        raise NotImplementedError

    def plain_layers(self) -> tuple[nn.Module, Iterable[nn.Module], nn.Module]:
        """Input projection, blocks and final layer; of the latter two ``f(h, y)``, y being time +
        context."""
        raise NotImplementedError

    def time_arguments(self, levels: Tensor) -> Tensor:
        """What the time embedding is a function of: levels `[T]` or `[T, B]` -> `[.., k]`."""
        return levels[..., None]

    def embed_time(self, arguments: Tensor) -> Tensor:
        """`[n, k]` -> `[n, width]`."""
        raise NotImplementedError

    def embed_context(self, c: Tensor) -> Tensor:
        """`[B, context]` -> `[B, width]`."""
        raise NotImplementedError

    def modulation_layer(self) -> Layer:
        """SiLU(y) -> (shift, 1 + scale, gate) of each block, then (shift, 1 + scale).

        The affine part of each norm is folded in: (n g + b) m + shift = n (g m) + (b m + shift),
        m = 1 + scale. The bias is never None.
        """
        raise NotImplementedError

    def loop_layers(self) -> list[Layer]:
        """Input, then two per block (gated: gate above up, then down), then final."""
        raise NotImplementedError

    def loop_calls(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """`loop_layers` as functions."""
        return [partial(F.linear, weight=w, bias=b) for w, b in self.loop_layers()]

    def forward(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """x `[B, d]`, level `[B]` or `[1]`, c `[B, context]` -> `[B, out]`."""
        return self.evaluate_at(x, level[:, None], c)

    def evaluate_at(self, x: Tensor, arguments: Tensor, c: Tensor) -> Tensor:
        """The head at these arguments of the time embedding, by its own modules."""
        y = self.embed_time(arguments) + self.embed_context(c)
        first, blocks, final = self.plain_layers()
        h = first(x)
        for block in blocks:
            h = block(h, y)
        return final(h, y)

    def hoist(self, levels: Tensor, c: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Computes once what depends on level and context; the function returned does the rest.

        Args:
            levels: `[T]`, the level of each row of the loop, or `[T, B]`, one for each sample.
            c: `[B, context]`.

        Returns:
            `f(row, x)`: equal to `head(x, levels[row], c)` to rounding. Past 128 MiB the
            modulations are computed in runs of rows, each when the loop first enters it.
        """
        sets, layers = OwnModulations(self, levels, c), self.loop_calls()
        if len(levels):
            sets.at(0)

        def step(row: int, x: Tensor) -> Tensor:
            held, place = sets.at(row)
            return evaluate(self, x, held[place].split(self.width, -1), layers)

        return step

    def hoist_rows(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
        """As :meth:`hoist`, for states at rows of their own, see
        :class:`ardiff.loop.lookahead.RowwiseModel`."""
        layers = self.loop_calls()
        sets = [OwnModulations(self, levels, c) for c in conditions]

        def call(rows: Tensor, samples: Tensor, x: Tensor) -> list[Tensor]:
            parts = [each.of(rows, samples).split(self.width, -1) for each in sets]
            return [evaluate(self, x, modulation, layers) for modulation in parts]

        return call


def evaluate(
    head: Head,
    x: Tensor,
    modulation: Sequence[Tensor],
    layers: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """The part of a head in the loop, x `[.., d]` -> `[.., out]`, by operators of PyTorch.
    `modulation`: (shift, 1 + scale, gate) of each block and (shift, 1 + scale), `[.., width]`."""
    norm = partial(_NORMS[head.norm], normalized_shape=(head.width,), eps=head.eps)
    h = layers[0](x)
    for i in range(head.depth):
        shift, scale, gate = modulation[3 * i : 3 * i + 3]
        inner = layers[2 * i + 1](torch.addcmul(shift, norm(h), scale))
        inner = swiglu(*inner.chunk(2, -1)) if head.mlp == "gated" else F.silu(inner)
        h = torch.addcmul(h, layers[2 * i + 2](inner), gate)
    return layers[-1](torch.addcmul(modulation[-2], norm(h), modulation[-1]))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def modulated_block(h: Tensor, modulation: Tensor, norm: Callable, mlp: Callable) -> Tensor:
    """h + gate MLP(norm(h) (1 + scale) + shift), modulation `[.., 3 width]`."""
    shift, scale, gate = modulation.chunk(3, -1)
    return h + gate * mlp(norm(h) * (1 + scale) + shift)


def modulated_output(h: Tensor, modulation: Tensor, norm: Callable, linear: Callable) -> Tensor:
    """The final layer, modulation `[.., 2 width]`."""
    shift, scale = modulation.chunk(2, -1)
    return linear(norm(h) * (1 + scale) + shift)


def fold_modulations(
    blocks: Sequence[tuple[nn.Linear, Tensor, Tensor | None]], last: nn.Linear
) -> Layer:
    """`Head.modulation_layer` of blocks (map to shift, scale, gate; the norm's gain and offset)."""
    weights, biases = [], []
    for layer, gain, offset in blocks:
        w_shift, w_scale, w_gate = layer.weight.chunk(3)
        bias = gain.new_zeros(3 * len(gain)) if layer.bias is None else layer.bias
        b_shift, b_scale, b_gate = bias.chunk(3)
        if offset is not None:
            w_shift = w_shift + offset[:, None] * w_scale
            b_shift = b_shift + offset * (1 + b_scale)
        weights += [w_shift, gain[:, None] * w_scale, w_gate]
        biases += [b_shift, gain * (1 + b_scale), b_gate]
    bias = last.weight.new_zeros(len(last.weight)) if last.bias is None else last.bias
    shift, scale = bias.chunk(2)
    return Layer(torch.cat([*weights, last.weight]), torch.cat([*biases, shift, 1 + scale]))


def sinusoidal_embedding(level: Tensor, size: int = 256, max_period: float = 10000.0) -> Tensor:
    """`[B]` -> `[B, size]`: cosines, then sines, at size/2 frequencies from 1 to 1/max_period."""
    half = size // 2
    index = torch.arange(half, dtype=torch.float32, device=level.device)
    angles = level.float()[:, None] * torch.exp(-math.log(max_period) / half * index)
    return torch.cat([angles.cos(), angles.sin()], 1)


def count_modules(names: Iterable[str], of: str) -> int:
    """How many modules a list `of` has by the names of its tensors: `of`.0., `of`.1., ..."""
    found = [re.match(rf"{re.escape(of)}\.(\d+)\.", name) for name in names]
    # Counted, not the largest number: one name must not ask for a billion modules.
    return len({match[1] for match in found if match})
