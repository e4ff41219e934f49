"""Wraps a diffusion head for the sampling loop: everything that depends on condition and level
alone is computed before the loop, so that each model call is a single `head_step` op."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff_kernels import ops
from ardiff_kernels.ops.packed_linear.limits import pytorch_is_faster

from ..batch_invariant import is_batch_invariant
from ..loop.capture import capturing
from .base import Head, evaluate
from .edm import EDMHead
from .hoisting import BUDGET, Modulations
from .packing import WEIGHTS, PackedHead, pack, tensors_of, unknown

# Of a launch of all steps: above, it reads the weights once for each 8 rows.
MOST_ROWS = 64  # tokens times conditions, times rows looked ahead
_log = logging.getLogger(__name__)


class FusedHead:
    """A head as `ardiff.loop.run.run` takes it, whose steps call the op `head_step`.

    It computes the outputs of all conditions of guidance in one call, on the same rows of x.

    Args:
        head: a `Head`, or an `EDMHead` around one.
        weights: `float32`, `bfloat16` or `int8`, those of the blocks; sums are float32. They are
            packed at the first use, and again when a parameter changes.
        batch_invariant: a sample's bits depend on no other sample, nor on its place; None: within
            `ardiff.batch_invariant.batch_invariant`.
        budget: bytes of modulations held at a time.

    Raises:
        TypeError, ValueError: another head, unknown weights, a budget below 1.

    Example:
        >>> import ardiff, torch
        >>> from ardiff.heads.fused import FusedHead
        >>> from ardiff.heads.mar import DiffusionHead
        >>> head = DiffusionHead(dim=4, context=16, width=32, depth=2).eval()
        >>> ardiff.sample(
        ...     FusedHead(head), (3, 4), path="vp-cosine", prediction="epsilon", solver="ddim",
        ...     steps=4, condition=torch.randn(3, 16),
        ... ).shape
        torch.Size([3, 4])
    """

    hoists_ragged = True

    def __init__(
        self,
        head: Head | EDMHead,
        weights: str = "float32",
        *,
        batch_invariant: bool | None = None,
        budget: int = BUDGET,
    ) -> None:
        reason = unknown(head)
        if reason:
            raise TypeError(f"FusedHead: {reason}")
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        if budget < 1:
            raise ValueError(f"budget must be a positive number of bytes, got {budget}")
        self.model, self.weights, self.budget = head, weights, budget
        self.batch_invariant = batch_invariant
        self._held: PackedHead | None = None

    def _kind(self) -> tuple:
        return id(self.model), self.weights, self.batch_invariant, self.budget

    def __eq__(self, other: object) -> bool:
        """Of one model with equal options: captured loops are told apart by it."""
        return isinstance(other, FusedHead) and self._kind() == other._kind()

    def __hash__(self) -> int:
        return hash(self._kind())

    def __call__(self, x: Tensor, level: Tensor, condition: Any) -> Tensor:
        """The plain head."""
        return self.model(x, level, condition)

    def hoist(self, levels: Tensor, c: Tensor) -> Callable[[int, Tensor], Tensor]:
        """As `Head.hoist`."""
        if torch.compiler.is_compiling():
            return self.model.hoist(levels, c)
        call = self.hoist_guided(levels, [c])
        return lambda row, x: call(row, x)[0]

    def hoist_guided(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[int, Tensor], Sequence[Tensor]]:
        """As `hoist`, for several conditions: ``f(row, x)`` gives an output for each.

        An output may be overwritten by the next call.
        """
        if torch.compiler.is_compiling():
            calls = [self.model.hoist(levels, c) for c in conditions]
            return lambda row, x: [call(row, x) for call in calls]
        sets = self.modulations(levels, conditions)
        call = _loop(sets, conditions)
        if isinstance(self.model, EDMHead):
            return EDMHead.around(call, levels, len(conditions), sets.invariant)
        return lambda row, x: call(row, x).unbind(0)

    def hoist_rows(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]:
        """As `Head.hoist_rows`: all states and conditions are one `head_step`."""
        sets = self.modulations(levels, conditions)
        evaluation = _evaluation(sets, len(conditions))

        def call(rows: Tensor, samples: Tensor, x: Tensor) -> Sequence[Tensor]:
            return evaluation(sets.of(rows, samples)[None], 0, x).unbind(0)

        if isinstance(self.model, EDMHead):
            return EDMHead.around_rows(call, levels, sets.invariant)
        return call

    def _inner(self) -> Head:
        return self.model.head if isinstance(self.model, EDMHead) else self.model

    def hold(self) -> None:
        """Reads the parameters, and then no more until the next call or :meth:`follow`: for the
        tokens of one generation, where the caller sees to it that they stay the same.

        To read them at each token, as is done otherwise, takes longer than a step."""
        self._held = pack(self._inner(), self.weights)

    def follow(self) -> None:
        """Reads the parameters at each loop again."""
        self._held = None

    @property
    def memory_bytes(self) -> int:
        """What the packed form holds beside the parameters."""
        head = self._inner()
        own = {t.untyped_storage().data_ptr() for t in tensors_of(head)}
        held = {t.untyped_storage().data_ptr(): t for t in pack(head, self.weights).tensors()}
        return sum(t.numel() * t.element_size() for at, t in held.items() if at not in own)

    def modulations(self, levels: Tensor, conditions: Sequence[Tensor]) -> Modulations:
        """All that the loop's part of the head needs at these levels beside x."""
        invariant = self.batch_invariant
        invariant = is_batch_invariant() if invariant is None else invariant
        head = self.model
        if isinstance(head, EDMHead):
            head, levels = head.head, head.noise_level(levels)
        held = self._held
        packed = pack(head, self.weights) if held is None or capturing() else held
        return Modulations(packed, levels, conditions, budget=self.budget, invariant=invariant)


def fused(head: Any, weights: str = "float32", **options: Any) -> Any:
    """`FusedHead` of `head`, or `head` if it is one; for a head it does not know the head itself,
    said once in the log."""
    if isinstance(head, FusedHead):
        return head
    reason = unknown(head)
    if not reason:
        return FusedHead(head, weights, **options)
    _tell(reason)
    return head


@lru_cache(maxsize=64)
def _tell(reason: str) -> None:
    _log.warning("%s; its plain module runs in the loop, in its own dtype", reason)


def _loop(sets: Modulations, conditions: Sequence[Tensor]) -> Callable[[int, Tensor], Tensor]:
    """``f(row, x) -> [conditions, N, out]``."""
    evaluation = _evaluation(sets, len(conditions))
    return lambda row, x: evaluation(*sets.at(row), x)


def _evaluation(sets: Modulations, count: int) -> Callable[[Tensor, int, Tensor], Tensor]:
    """``f(modulations [S, count N, M], place, x) -> [count, N, out]``: the head at a set."""
    packed = sets.packed
    head = packed.head
    options = {
        "norm": head.norm, "mlp": head.mlp, "depth": head.depth, "eps": head.eps, "ways": count,
        "batch_invariant": sets.invariant,
    }  # fmt: skip
    layers = [
        partial(_linear, weight=weight, bias=bias if len(bias) else None)
        for weight, bias in zip(packed.plain[:-1:2], packed.plain[1:-1:2], strict=True)
    ]

    def call(held: Tensor, place: int, x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float32 else x.float()
        if not sets.invariant and plain_is_faster(packed, count * len(x)):
            modulation = held[place].view(count, -1, held.shape[2])
            x = x.expand(count, *x.shape)
            return evaluate(head, x, modulation.split(head.width, -1), layers)
        return ops.head_step(x, held, place, packed.weights, packed.scales, **options)

    return call


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the dtype of the weight, the rest in float32."""
    y = F.linear(x.to(weight.dtype), weight).float()
    return y if bias is None else y + bias


def plain_is_faster(packed: PackedHead, rows: int) -> bool:
    """Whether PyTorch's own products beat `head_step` at this many rows, tokens times
    conditions."""
    return bool(packed.plain) and pytorch_is_faster(packed.plain[2].dtype, rows)
