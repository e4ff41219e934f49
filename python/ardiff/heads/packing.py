"""A head's weights as `head_step` reads them: packed once, and again when a parameter changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..loop.capture import read_by_capture
from .base import Head, Layer

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_LEVELS = 16  # lists of levels whose time embeddings are kept; the least recently used goes first


@dataclass(frozen=True)
class PackedHead:
    """What a token needs of a head.

    Attributes:
        head: itself, for its embeddings of time and context.
        weights, scales: as `ardiff_kernels.ops.head_step` takes them. The matrices of blocks have
            the dtype asked for, those of input and output are float32.
        modulation: the map to all modulations; float32, or bfloat16 on a GPU with other weights.
        times: time embeddings by the bytes of their levels.
    """

    head: Head
    weights: list[Tensor]
    scales: list[Tensor]
    modulation: Layer
    times: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict)

    def tensors(self) -> list[Tensor]:
        """All that the loop reads."""
        return [*self.weights, *self.scales, *self.modulation]

    def embed_time(self, arguments: Tensor, key: bytes | None) -> Tensor:
        """Embeddings `[.., width]` of arguments `[.., k]`, remembered under `key`."""
        if key in self.times:
            self.times.move_to_end(key)
            return self.times[key]
        flat = self.head.embed_time(arguments.flatten(0, -2))
        time = flat.to(torch.float32).view(*arguments.shape[:-1], self.head.width)
        if key is not None:
            self.times[key] = time
            if len(self.times) > _LEVELS:
                self.times.popitem(last=False)
        return time


@dataclass(frozen=True)
class _Kept:
    """A packed form, the state of the parameters it was made from, and where they are stored."""

    packed: PackedHead
    signature: tuple
    storages: frozenset[int]


_packed: WeakKeyDictionary[Head, dict[str, _Kept]] = WeakKeyDictionary()


def _still(head: Head, weights: str, tensors: list[Tensor]) -> bool:
    """Brings the packed form up to date; returns whether `tensors` are still the ones it uses."""
    found = pack(head, weights).tensors()
    return all(new is old for new, old in zip(found, tensors, strict=True))


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; ten times as fast as the methods of a module, which name them."""
    for held in (module._parameters, module._buffers):
        for tensor in held.values():
            if tensor is not None:
                yield tensor
    for child in module._modules.values():
        yield from tensors_of(child)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `[rows, columns]` and float32 `[rows]`: each row's largest magnitude becomes 127.

    An element errs by half a scale, absmax / 254, at most.
    """
    scale = weight.abs().amax(1) / 127
    steps = torch.where(scale > 0, scale, 1.0)[:, None]
    return (weight / steps).round().to(torch.int8), scale


def pack(head: Head, weights: str = "float32") -> PackedHead:
    """The packed form of `head`, the same object until a parameter is replaced or written to.

    If a parameter was changed in place, its new values are copied into the existing packed tensors,
    so that captured CUDA graphs see them. A parameter that was replaced by another tensor may give
    new packed tensors, and the graphs are captured anew. Changes through ``.data``, or of inference
    tensors, are not noticed, since they do not move the version counter.

    Raises:
        ValueError: an unknown name of a dtype.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    sources = list(tensors_of(head))
    signature = tuple(
        (t.data_ptr(), t.device, t.dtype, 0 if t.is_inference() else t._version) for t in sources
    )
    kept = _packed.setdefault(head, {})
    if weights not in kept or kept[weights].signature != signature:
        with torch.inference_mode(False), torch.no_grad():
            packed = _make(head, WEIGHTS[weights])
            if weights in kept:
                packed = _within(kept[weights], packed)
        kept[weights] = _Kept(packed, signature, frozenset(map(_storage, sources)))
    packed = kept[weights].packed
    read_by_capture((head, weights), partial(_still, head, weights, packed.tensors()))
    return packed


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _within(kept: _Kept, fresh: PackedHead) -> PackedHead:
    """The tensors of `kept` with the values of `fresh`, so that captured graphs see them.

    `fresh` itself if the copy would write into a tensor that is a parameter of the model (packing
    took it as it is, and the model has replaced it), or if shapes, devices or dtypes differ.
    """
    pairs = list(zip(kept.packed.tensors(), fresh.tensors(), strict=True))
    for old, new in pairs:
        alike = old.shape == new.shape and old.device == new.device and old.dtype == new.dtype
        own = old.data_ptr() == new.data_ptr() or _storage(old) not in kept.storages
        if not (alike and own):
            return fresh
    for old, new in pairs:
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)
    old = kept.packed
    return PackedHead(fresh.head, old.weights, old.scales, old.modulation)


def _make(head: Head, dtype: torch.dtype) -> PackedHead:
    packed, scales, layers = [], [], head.loop_layers()
    empty = layers[0].weight.new_empty(0, dtype=torch.float32)
    for i, (weight, bias) in enumerate(layers):
        weight, scale = weight.detach().float(), empty
        if 0 < i < len(layers) - 1:
            if dtype == torch.int8:
                weight, scale = quantize(weight)
            weight = weight.to(dtype)
        packed += [weight.contiguous(), empty if bias is None else bias.detach().float()]
        scales.append(scale)
    weight, bias = (t.detach().float() for t in head.modulation_layer())
    if weight.is_cuda and dtype != torch.float32:
        weight, bias = weight.bfloat16(), bias.bfloat16()
    modulation = Layer(weight.contiguous(), bias)
    return PackedHead(head, packed, scales if dtype == torch.int8 else [], modulation)
