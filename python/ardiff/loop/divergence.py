"""Which samples of a run are not finite, and since which step; found without waiting for a device.

After each row the sum of every sample's state is written to one tensor, which is read at the end.
The sum of a state that holds NaN or infinity is not finite, and no later row makes it so.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..tables.plan import Schedule

__all__ = [
    "ALL_FINITE", "MODES", "Nonfinite", "NonfiniteWarning", "check_mode", "find", "first_rows",
    "make_sums", "report",
]  # fmt: skip

MODES = ("warn", "raise", "ignore")
_NAMED = 5  # samples named in a message


class NonfiniteWarning(RuntimeWarning):
    """Some samples are NaN or infinite. Its message names them; so does `stats.nonfinite`."""


class Nonfinite(NamedTuple):
    """The samples that are NaN or infinite, in order of id; n is 0 where all are finite.

    Elements so large that float32 cannot hold their sum count as infinite.

    Attributes:
        sample_ids: int64 `[n]`.
        patch: int64 `[n]`, the first patch that was not finite.
        step: int64 `[n]`, the row of the table, from 0, after which the state was first not finite.
        level: float32 `[n]`, the level at which that row called the model.
    """

    sample_ids: Tensor
    patch: Tensor
    step: Tensor
    level: Tensor

    @staticmethod
    def of(parts: list[Nonfinite]) -> Nonfinite:
        """Several findings, such as those of each patch, as one: the earliest of each sample."""
        found = {
            sample: row
            for part in reversed(parts)
            for sample, *row in zip(*(member.tolist() for member in part), strict=True)
        }
        ids = sorted(found)
        columns = list(zip(*(found[sample] for sample in ids), strict=True)) or [(), (), ()]
        return Nonfinite(
            torch.tensor(ids, dtype=torch.int64),
            torch.tensor(columns[0], dtype=torch.int64),
            torch.tensor(columns[1], dtype=torch.int64),
            torch.tensor(columns[2], dtype=torch.float32),
        )


ALL_FINITE = Nonfinite.of([])


def make_sums(schedule: Schedule, x: Tensor) -> Tensor:
    """What :func:`ardiff.loop.run.run` writes the sums to, for a run of `schedule` from `x`."""
    return torch.zeros(len(schedule.plan), len(x), dtype=torch.float32, device=x.device)


def first_rows(sums: Tensor) -> Tensor:
    """For each sample the first row after which its state was not finite, int64 `[B]`; -1 for none.

    `sums` float32 `[T, B]`, as :func:`ardiff.loop.run.run` writes it.
    """
    bad = ~sums.isfinite()
    if not len(bad):
        return torch.full(bad.shape[1:], -1, device=bad.device)
    return torch.where(bad[-1], bad.byte().argmax(0), -1)


def find(rows: Tensor, levels: Tensor, sample_ids: Tensor, patch: int = 0) -> Nonfinite:
    """The samples that :func:`first_rows` names; waits for the device.

    Args:
        rows: int64 `[B]`.
        levels: float32 `[T]` or `[T, B]`, of each row.
        sample_ids: int64 `[B]`.
    """
    rows, sample_ids = rows.cpu(), sample_ids.cpu()
    which = (rows >= 0).nonzero()[:, 0]
    which = which[sample_ids[which].argsort()]
    step, levels = rows[which], levels.cpu()
    level = levels[step] if levels.dim() == 1 else levels[step, which]
    return Nonfinite(sample_ids[which], torch.full_like(step, patch), step, level.float())


def report(found: Nonfinite, samples: int, mode: str, patches: bool = False) -> None:
    """Warns or raises as `mode` says, if any sample is not finite.

    Raises:
        FloatingPointError: in the mode ``raise``.
    """
    count = len(found.sample_ids)
    if mode == "ignore" or not count:
        return
    members = zip(*(member.tolist() for member in found), strict=True)
    named = [
        f"sample {sample} since step {step} (level {level:.4g})"
        + (f" of patch {patch}" if patches else "")
        for sample, patch, step, level in list(members)[:_NAMED]
    ]
    more = [f"and {count - _NAMED} more"] if count > _NAMED else []
    message = (
        f"{count} of {samples} samples are NaN or infinite: {', '.join(named + more)}. The model "
        "returned such a value there, or the solver diverged: look at the model's output at that "
        "level, take more steps or another solver. The other samples are not affected; "
        "stats.nonfinite names all"
    )
    if mode == "raise":
        raise FloatingPointError(message)
    warnings.warn(message, NonfiniteWarning, stacklevel=3)


def check_mode(mode: str) -> None:
    """ValueError unless `mode` is one of :data:`MODES`."""
    if mode not in MODES:
        raise ValueError(f"nonfinite must be one of {', '.join(MODES)}, got {mode!r}")
