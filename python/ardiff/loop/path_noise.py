"""Step noise from a Brownian path: what a row adds is the path's increment over its interval.

The exact reverse process of a Gaussian path from level a to level b is, with y = x / alpha,
s = sigma / alpha and the signal-to-noise ratio t = 1 / s^2,

    t_b y_b = t_a y_a + (t_b - t_a) x0 + W(t_b) - W(t_a),

so that its noise is that of a Brownian motion W in the time t. The normals of a row are then the
increment of W between the ratios of its level and the next row's, divided by the root of their
difference, and runs with one key and stream share a path whatever their steps. See
docs/noise_path.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ardiff_kernels import ops

from ..noise import Spans
from ..tables.ragged import RaggedTable
from ..tables.table import StepTable

NOISES = ("step", "path")
_MOST_RATIO = 2.0**32  # times that brownian_increment takes lie below


class PathNoise(NamedTuple):
    """The intervals of a schedule's iterations in the time of the path.

    Attributes:
        times: of each iteration the begin and the end, float32 `[1]` or `[B]`; None where no sample
            adds noise.
    """

    times: tuple[tuple[Tensor, Tensor] | None, ...]

    def normals(self, iteration: int, key: Tensor | Spans, stream: Tensor, d: int) -> Tensor | None:
        """The normals float32 `[B, d]` of an iteration, None where it needs none.

        Args:
            key: int64 `[1]`, or the spans of samples that share one.
            stream: int64 `[B]`.
        """
        if self.times[iteration] is None:
            return None
        start, end = self.times[iteration]
        if isinstance(key, Tensor):
            return ops.brownian_increment(key, stream, start, end, d)

        def cut(time: Tensor, rows: slice) -> Tensor:
            return time if len(time) == 1 else time[rows]

        parts = [
            ops.brownian_increment(own, stream[rows], cut(start, rows), cut(end, rows), d)
            for rows, own in key
        ]
        return torch.cat(parts)

    def at(self, rows: Tensor, key: Tensor | Spans, stream: Tensor, d: int) -> Tensor:
        """The normals float32 `[B, L, d]` of iterations that differ between samples.

        Args:
            rows: int64 `[B, L]`.
            key, stream: as of :meth:`normals`.
        """
        batch, count = rows.shape
        none = torch.zeros(1, device=stream.device)
        pairs = [(none, none) if pair is None else pair for pair in self.times]
        times = torch.stack([torch.stack([t.expand(batch) for t in pair]) for pair in pairs])
        samples = torch.arange(batch, device=rows.device)[:, None]
        start, end = times[rows, :, samples].view(-1, 2).t().contiguous()
        streams = stream.repeat_interleave(count)
        spans = [(slice(0, batch), key)] if isinstance(key, Tensor) else key
        flat = [(slice(part.start * count, part.stop * count), own) for part, own in spans]
        parts = [
            ops.brownian_increment(own, streams[part], start[part], end[part], d)
            for part, own in flat
        ]
        return torch.cat(parts).view(batch, count, d)


def check_noise_name(noise: str) -> None:
    """ValueError unless `noise` is one of `NOISES`."""
    if not isinstance(noise, str) or noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}; known: {', '.join(NOISES)}")


def path_noise(table: StepTable | RaggedTable, device: torch.device | str) -> PathNoise:
    """The path's intervals for the rows of a table, on `device`.

    Raises:
        ValueError: a table whose rows are no intervals of the path, with the reason.
    """
    if not isinstance(table, (StepTable, RaggedTable)):
        raise ValueError(
            f'noise="path" needs a StepTable or a RaggedTable, got a {type(table).__name__}'
        )
    if isinstance(table, StepTable):
        spans = _intervals(table)[None]
    else:
        each = [_intervals(one) for one in table.tables]
        whole = np.zeros((len(each), len(table), 2), np.float32)
        for i, one in enumerate(each):
            kept = one[: len(table)]
            whole[i, : len(kept)] = kept
        spans = whole[table.index.numpy()]
    noisy = (spans[..., 0] != spans[..., 1]).any(0)
    on_device = torch.from_numpy(spans).to(device).permute(1, 2, 0).contiguous()
    return PathNoise(
        tuple(tuple(on_device[k].unbind(0)) if noisy[k] else None for k in range(len(noisy)))
    )


def _intervals(table: StepTable) -> np.ndarray:
    """The signal-to-noise ratios at which each row begins and ends, float32 `[T, 2]`; 0 and 0 for a
    row that adds no noise."""
    others = sorted(set(table.op) - {"diffusion"})
    if others:
        kinds = {"uld": "kinetic rows take two normals", "accept": "what is rejected has no noise"}
        raise ValueError(
            f'noise="path" needs a solver of diffusion rows alone, such as ddpm, ddim or '
            f"dpmpp-2m-sde; {table.solver} has {others[0]} rows: {kinds[others[0]]}"
        )
    if table.alpha is None:
        raise ValueError(
            f'noise="path" needs levels that a Path knows, to have their signal-to-noise ratio; '
            f"those of {table.solver} on {table.path} are known to the table alone"
        )
    with np.errstate(divide="ignore"):
        ratio = ((table.alpha / table.sigma) ** 2).astype(np.float32)
    spans = np.stack([ratio, np.append(ratio[1:], ratio[-1:])], 1)
    noisy = table.column("x_n") != 0
    for row in np.flatnonzero(noisy):
        begin, end = spans[row]
        if row == len(table) - 1:
            raise ValueError(
                f'noise="path": the last row of {table.solver} adds noise, but the level at which '
                "it ends is not in the table; let the table end with a data prediction "
                "(denoise_last=True)"
            )
        if np.isclose(begin, end, rtol=1e-5, atol=0):
            raise ValueError(
                f'noise="path": row {row} of {table.solver} adds noise without moving to another '
                f"level than {table.level[row]:g}, and a path has no increment there; use "
                'noise="step"'
            )
        if end < begin or (begin > 0 and table.column("x_x")[row] == 0):
            what = "goes back to a noisier level" if end < begin else "drops the state it begins at"
            raise ValueError(
                f'noise="path": row {row} of {table.solver} {what}, so that its noise is no '
                'increment of a path; use noise="step"'
            )
        if not max(begin, end) < _MOST_RATIO:
            raise ValueError(
                f'noise="path": row {row} of {table.solver} ends at a signal-to-noise ratio '
                f"alpha^2 / sigma^2 of {max(begin, end):g}, where the path ends at 2^32; end the "
                "steps at a noisier level"
            )
    return np.where(noisy[:, None], spans, np.float32(0))
