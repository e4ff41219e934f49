"""A head's weights as `head_step` reads them: packed once, and again when a parameter changes.

Some packed tensors are the head's own parameters, which need no packing; others are made from
them. So that a loop never mixes old and new weights, the parameters that packed tensors
were *made* from are compared with what they were before each run, by their bits: writes through
``.data`` (LoRA merges, `EMAModel.copy_to` of diffusers) leave no other trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch

from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.packed_linear.limits import pytorch_is_faster
from ardiff_kernels.ops.packed_linear.packing import is_whole, quantize_rows
from ardiff_kernels.ops.packed_linear.packing import pack as pack_matrix

from ..loop.capture import capturing, read_by_capture
from .base import Head, Layer
from .edm import EDMHead

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_LEVELS = 16  # lists of levels whose time embeddings are kept; the least recently used goes first


@dataclass(frozen=True)
class PackedHead:
    """What a token needs of a head.

    Attributes:
        head: itself, for its embeddings of time and context.
        weights, scales: as `ardiff_kernels.ops.head_step` takes them, on a CPU packed where they
            can be. The matrices of blocks have the dtype asked for, those of input and output are
            float32.
        modulation: the map to all modulations; float32, or bfloat16 with other weights; packed on a
            CPU.
        plain: the matrices and biases as PyTorch's own products take them, then the matrix of the
            modulations, where these products are faster for many rows; else none.
        times: time embeddings by the bytes of their levels.
    """

    head: Head
    weights: list[Tensor]
    scales: list[Tensor]
    modulation: Layer
    plain: list[Tensor] = field(default_factory=list)
    times: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict)

    def tensors(self) -> list[Tensor]:
        """All that the loop reads."""
        return [*self.weights, *self.scales, *self.modulation, *self.plain]

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
    """A packed form without its head, which could not be freed if its own entry held it.

    Attributes:
        parts: all of a `PackedHead` but the head.
        places: where the parameters and buffers were when it was made.
        made_from: the indices of those that no packed tensor is.
        sums: of the bits of those, see :func:`bit_sums`; None if a capture forbade to read them.
        storages: of all parameters and buffers.
    """

    parts: tuple[list[Tensor], list[Tensor], Layer, list[Tensor], OrderedDict[bytes, Tensor]]
    places: tuple
    made_from: tuple[int, ...]
    sums: Tensor | None
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


def unknown(head: Any) -> str:
    """Why `head` is none that the op `head_step` can evaluate; empty if it is one."""
    inner = head.head if isinstance(head, EDMHead) else head
    name = type(inner).__name__
    if not isinstance(inner, Head):
        return f"{name} is no ardiff.heads.base.Head, as those of MAR, VibeVoice and Pocket-TTS are"
    if hooked(inner):
        return f"a {name} has forward hooks, which only its own modules call"
    homes = {kind.__module__ for kind in type(inner).__mro__} | {__package__}
    for path, module in inner.named_modules():
        home = type(module).__module__
        known = home in homes or home.startswith(("torch.nn.modules.", f"{__package__}."))
        if not known or "forward" in vars(module):
            other = type(module).__name__ if not known else "another forward"
            return f"{path or 'the module'} of a {name} was replaced by {other}"
    dtypes = {p.dtype for p in inner.parameters()} - set(WEIGHTS.values()) - {torch.float16}
    if dtypes:
        return f"the parameters of {name} are {str(dtypes.pop())[6:]}"
    return ""


def hooked(module: nn.Module) -> bool:
    """Whether a forward hook would see the calls of a module within."""
    return hooked_everywhere() or any(
        m._forward_hooks or m._forward_pre_hooks for m in module.modules()
    )


def hooked_everywhere() -> bool:
    """Whether forward hooks see the calls of all modules."""
    return bool(
        modules_of_torch._global_forward_hooks or modules_of_torch._global_forward_pre_hooks
    )


def version(t: Tensor) -> tuple[int, int]:
    """Changes when PyTorch writes to a tensor or another takes its place; a write through ``.data``
    leaves no trace in it."""
    return t.data_ptr(), 0 if t.is_inference() else t._version


def pack(head: Head, weights: str = "float32") -> PackedHead:
    """The packed form of `head`, with the same tensors until a parameter that they were made from
    is replaced or written to, in whatever way.

    If a parameter was changed in place, its new values are copied into the existing packed tensors,
    so that captured CUDA graphs see them. A parameter that was replaced by another tensor may give
    new packed tensors, and the graphs are captured anew.

    Telling this costs a read of those parameters and, on a GPU, a wait for it. Of MAR-B in float32
    they are 143 MB on a CPU, where its blocks are packed too: 12 ms, where 100 steps at 4 rows take
    370 ms (2-core AMD EPYC with AVX-512).

    Raises:
        TypeError: hooks or modules that `head_step` would not call; see :func:`unknown`.
        ValueError: an unknown name of a dtype.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    reason = unknown(head)
    if reason:
        raise TypeError(f"{reason}; remove it, or run the plain head")
    sources = list(tensors_of(head))
    places = tuple((t.data_ptr(), t.shape, t.device, t.dtype) for t in sources)
    entries = _packed.setdefault(head, {})
    kept = entries.get(weights)
    with torch.inference_mode(False), torch.no_grad():
        if kept is None or not _same(kept, places, sources):
            packed = _make(head, WEIGHTS[weights])
            if kept is not None:
                packed = _within(kept, packed)
            own = {t.data_ptr() for t in packed.tensors()}
            made_from = tuple(i for i, place in enumerate(places) if place[0] not in own)
            sums = None if capturing() else bit_sums([sources[i] for i in made_from])
            parts = (
                packed.weights, packed.scales, packed.modulation, packed.plain, packed.times
            )  # fmt: skip
            storages = frozenset(map(_storage, sources))
            entries[weights] = kept = _Kept(parts, places, made_from, sums, storages)
    packed = PackedHead(head, *kept.parts)
    read_by_capture((head, weights), partial(_still, head, weights, packed.tensors()))
    return packed


def _same(kept: _Kept, places: tuple, sources: Sequence[Tensor]) -> bool:
    """Whether the parameters are where they were, with the bits that they had."""
    if kept.places != places or capturing():  # nothing can be read while a graph is captured
        return kept.places == places
    return kept.sums is not None and torch.equal(
        kept.sums, bit_sums([sources[i] for i in kept.made_from])
    )


def bit_sums(tensors: Sequence[Tensor]) -> Tensor:
    """Sums of the bits of each tensor's rows, int64 `[rows of all tensors]`.

    A row is read as integers of 64 bits, which are added with random odd factors modulo 2^64. One
    integer that changes always changes its row's sum, since an odd factor has an inverse; several
    that change leave the sum as it was with probability 2^-63 or so.
    """
    sums = []
    for t in tensors:
        rows = t.detach().flatten(1) if t.dim() > 1 else t.detach().reshape(1, t.numel())
        if rows.shape[1] % 8 or rows.storage_offset() % 8 or not rows.is_contiguous():
            rows = F.pad(rows.contiguous(), (0, -rows.shape[1] % 8))
        bits = rows.view(torch.int64)
        factors = _odd_factors(bits.shape[1], bits.device)
        # PyTorch has no product of integer matrices on a GPU; on a CPU it reads the memory once.
        sums.append(torch.mv(bits, factors) if bits.is_cpu else (bits * factors).sum(1))
    return torch.cat(sums) if sums else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=64)
def _odd_factors(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    with torch.inference_mode(False):
        drawn = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
        return (drawn | 1).to(device)


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _within(kept: _Kept, fresh: PackedHead) -> PackedHead:
    """The tensors of `kept` with the values of `fresh`, so that captured graphs see them.

    `fresh` itself if the copy would write into a tensor that is a parameter of the model (packing
    took it as it is, and the model has replaced it), or if shapes, devices or dtypes differ.
    """
    old = PackedHead(fresh.head, *kept.parts)
    pairs = list(zip(old.tensors(), fresh.tensors(), strict=True))
    for held, new in pairs:
        alike = held.shape == new.shape and held.device == new.device and held.dtype == new.dtype
        own = held.data_ptr() == new.data_ptr() or _storage(held) not in kept.storages
        if not (alike and own):
            return fresh
    for held, new in pairs:
        if held.data_ptr() != new.data_ptr():
            held.copy_(new)
    return PackedHead(fresh.head, old.weights, old.scales, old.modulation, old.plain)


def _make(head: Head, dtype: torch.dtype) -> PackedHead:
    weights, scales, layers = [], [], head.loop_layers()
    empty = layers[0].weight.new_empty(0, dtype=torch.float32)
    for i, (weight, bias) in enumerate(layers):
        weight, scale = weight.detach().float(), empty
        if 0 < i < len(layers) - 1:
            if dtype == torch.int8:
                weight, scale = quantize_rows(weight)
            weight = weight.to(dtype)
        weights += [weight.contiguous(), empty if bias is None else bias.detach().float()]
        scales.append(scale)
    weight, bias = (t.detach().float() for t in head.modulation_layer())
    kernels = weight.is_cpu and not backends.unusable("head_step", "cpu", "cpu")
    if dtype != torch.float32 and (weight.is_cuda or kernels):
        weight = weight.bfloat16()
        bias = bias if kernels else bias.bfloat16()
    plain: list[Tensor] = []
    if kernels:
        plain = [*weights, weight] if pytorch_is_faster(dtype) else []
        weights = [pack_matrix(t) if t.dim() == 2 and is_whole(t) else t for t in weights]
        weight = pack_matrix(weight)
    modulation = Layer(weight.contiguous(), bias)
    return PackedHead(head, weights, scales if dtype == torch.int8 else [], modulation, plain)
