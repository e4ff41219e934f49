"""What `ardiff.accelerate` returns: what it replaced, what it left and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .shares import REST, measure
from .swaps import Swap

REPORT = "_ardiff_report"  # the attribute of a model that holds its report


class Report:
    """The parts of an accelerated model; ``print(report)`` shows them as a table.

    Attributes:
        model: the model.
        system: its name, such as ``VibeVoice``.
        swaps: one for each part that was replaced or left.
        head: what stands in for the head's loop, with ``sample_ids`` where the system has them;
            None where the head was left.
        seconds: by part, of the last :meth:`profile`; None before it.
    """

    def __init__(
        self, model: Any, system: str, swaps: Sequence[Swap], head: Any, options: dict[str, Any]
    ) -> None:
        self.model, self.system, self.swaps, self.head = model, system, list(swaps), head
        self.options = options
        self.seconds: dict[str, float] | None = None

    @property
    def replaced(self) -> list[str]:
        """Names of the parts of which something was replaced."""
        return sorted({swap.part for swap in self.swaps if swap.after})

    @property
    def memory_bytes(self) -> int:
        """What the replacements hold beside the model, KV caches not counted."""
        return sum(swap.memory_bytes for swap in self.swaps)

    def profile(self, run: Callable[[], Any]) -> Report:
        """Calls `run`, which is to use the model, and keeps how long each part took."""
        parts = [(s.part, module, "forward") for s in self.swaps for module in s.modules]
        parts += [(s.part, owner, name) for s in self.swaps for owner, name in s.methods]
        self.seconds = measure(run, parts, _device(self.model))
        return self

    def restore(self) -> None:
        """Gives the model its own methods back."""
        for swap in reversed(self.swaps):
            swap.restore()
        vars(self.model).pop(REPORT, None)

    def __str__(self) -> str:
        whole = sum(self.seconds.values()) if self.seconds else 0.0
        rows = [("part", "before", "after", "share of time")]
        shown = set()
        for swap in self.swaps:
            share = "not measured"
            if self.seconds is not None:
                share = f"{self.seconds.get(swap.part, 0.0) / whole:.0%}"
            after = swap.after or f"left: {swap.reason}"
            rows.append((swap.part, swap.before, after, "" if swap.part in shown else share))
            shown.add(swap.part)
        if self.seconds is not None:
            rows.append((REST, "", "", f"{self.seconds.get(REST, 0.0) / whole:.0%}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        size = f"{self.memory_bytes / 2**20:,.0f} MiB beside the model"
        return "\n".join([f"{self.system} ({type(self.model).__name__}): {size}", *lines])

    __repr__ = __str__


def _device(model: Any) -> Any:
    module = model if isinstance(model, nn.Module) else None
    if module is None:
        return "cpu"
    return next((p.device for p in module.parameters()), "cpu")
