"""Linear layers of a model as one packed product that follows their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ardiff_kernels import PackedWeight, ops, pack_linear

from ...heads.packing import WEIGHTS, bit_sums, version


class Place:
    """Where a module hangs in its parent, so that one that takes its place later is found."""

    __slots__ = ("_held", "name")

    def __init__(self, parent: nn.Module, name: str) -> None:
        self._held, self.name = parent._modules, name

    def get(self) -> nn.Module:
        return self._held[self.name]


class PackedLinears:
    """Linear layers of one input, packed below each other (`ardiff_kernels.pack_linear`).

    Args:
        places: of the layers, in the order of their rows in the result.
        weights: float32, bfloat16 or int8; None for the layers' own dtype.

    Attributes:
        memory_bytes: of the packed form.
    """

    def __init__(self, places: Sequence[Place], weights: str | None) -> None:
        self.places, self._weights = list(places), weights
        self._seen: tuple = ()
        self._sums: Tensor | None = None
        self._packed: PackedWeight | None = None
        self._bias: Tensor | None = None
        self.refresh()

    @property
    def layers(self) -> list[nn.Module]:
        return [place.get() for place in self.places]

    @property
    def memory_bytes(self) -> int:
        held = (self._packed.weight, self._packed.scale, self._bias)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def unfit(self) -> str:
        """Why the layers that hang in the places now cannot be packed; empty if they can."""
        for place in self.places:
            layer = place.get()
            if type(layer) is not nn.Linear:
                return f"{place.name} is a {type(layer).__name__}, not a torch.nn.Linear"
            if type(layer.weight) not in (nn.Parameter, Tensor) or layer.weight.is_meta:
                return f"the weight of {place.name} is quantised or offloaded"
        return ""

    def refresh(self, read: bool = False) -> None:
        """Packs anew what was replaced or written to.

        Args:
            read: compare the bits of the weights too, which finds writes through ``.data``; takes
                one read of them.
        """
        layers = self.layers
        own = [layer.weight for layer in layers]
        own += [layer.bias for layer in layers if layer.bias is not None]
        seen = tuple(map(version, own))
        same = seen == self._seen
        if same and not read:
            return
        sums = bit_sums([t.detach() for t in own])
        if same and torch.equal(sums, self._sums):
            return
        with torch.inference_mode(False), torch.no_grad():
            matrices = [layer.weight.detach() for layer in layers]
            dtype = WEIGHTS[self._weights] if self._weights else matrices[0].dtype
            self._packed, self._bias = pack_linear(matrices, dtype), None
            if any(layer.bias is not None for layer in layers):
                parts = [
                    m.new_zeros(len(m)) if layer.bias is None else layer.bias.detach()
                    for layer, m in zip(layers, matrices, strict=True)
                ]
                self._bias = torch.cat(parts).float()
        self._seen, self._sums = seen, sums

    def __call__(self, x: Tensor, **options) -> Tensor:
        """`packed_linear` of `[N, K]` with the layers' biases and its further options."""
        packed = self._packed
        return ops.packed_linear(
            x, packed.weight, packed.rows, scale=packed.scale, bias=self._bias, **options
        )


class Floats:
    """A small tensor of a model in float32, read anew where it was replaced or written to."""

    def __init__(self) -> None:
        self._seen: tuple[int, int] | None = None
        self._held: Tensor | None = None

    def forget(self) -> None:
        """Reads it anew at the next use."""
        self._seen = None

    def of(self, t: Tensor) -> Tensor:
        seen = version(t)
        if seen != self._seen:
            with torch.inference_mode(False), torch.no_grad():
                self._held, self._seen = t.detach().float().clone(), seen
        return self._held
