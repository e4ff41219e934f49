"""What a CUDA graph does, on the CPU: ops recorded with their memory, and run again on that memory.

Python does not run at a replay, so that whatever it decided while recording stays. As in a capture,
nothing may be read back to the host, and nothing may be copied from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
)
from torch.utils._pytree import tree_leaves

READS = {"item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"}
COPIES_FROM_HOST = {"lift", "lift_fresh", "lift_fresh_copy"}


class Recorder(TorchDispatchMode):
    """Runs ops and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name} reads")
        if name in COPIES_FROM_HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name} copies")
        out = function(*args, **(kwargs or {}))
        self.tape.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        with torch.inference_mode():
            for function, args, kwargs, before in self.tape:
                now = function(*args, **kwargs)
                for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def capturing() -> bool:
    """Stands in for `ardiff.heads.hoisting.capturing`."""
    return any(isinstance(mode, Recorder) for mode in _get_current_dispatch_mode_stack())


def record(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Stands in for `ardiff.loop.cuda_graphs.record`."""
    function()
    recorder = Recorder()
    with recorder:
        result = function()
    for leaf in tree_leaves(result):  # a capture computes nothing
        if isinstance(leaf, Tensor):
            leaf.zero_()
    return recorder.replay, result
