"""Launch shapes of the Triton kernels: static tables, no autotuner (it needs a GPU and breaks graph
capture)."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton

_LANES = 64 if torch.version.hip else 32


class LaunchShape(NamedTuple):
    """A program's tile: `rows` samples by `cols` elements, and the warps that share it."""

    rows: int
    cols: int
    warps: int


def launch_shape(
    B: int, d: int, *, narrow: bool = False, lanes: int = 32, interpreted: bool = False
) -> LaunchShape:
    """Tile for B samples of d elements.

    The widest tile, of at least a cache line, that wastes at most an eighth of a sample; else the
    whole sample. Several samples per program when d is small. A lane gets four elements, or twice
    four of a wide float32 tile: with 16-bit tensors (`narrow`) Triton would give it eight
    neighbours of those, and with fewer than four it would move the normals, each time between lanes
    through shared memory. `lanes` is the width of a warp. The interpreter pays about 70 ms a
    program, so there a program is large.
    """
    if interpreted:
        cols = min(max(4, triton.next_power_of_2(d)), 1 << 17)
        return LaunchShape(min(triton.next_power_of_2(B), (1 << 17) // cols), cols, 1)
    for cols in (1024, 512, 256, 128, 64, 32):
        if -d % cols * 8 <= d:
            break
    else:
        cols = max(4, triton.next_power_of_2(d))
    rows = max(1, 512 // cols)
    elements_a_lane = 8 if cols == 1024 and not narrow else 4
    return LaunchShape(rows, cols, rows * cols // (elements_a_lane * lanes))


def alignment(d: int, strides: list[int]) -> int:
    """Largest of 16, 4 and 1 that divides d and every row stride; loads and stores rely on it."""
    return next(n for n in (16, 4, 1) if not any(x % n for x in (d, *strides)))


def shared(x: torch.Tensor | None) -> bool:
    """Whether a per-sample argument is one value for every sample."""
    return x is None or x.numel() == 1


def fresh(
    kinds: Sequence[tuple[Sequence[int], torch.dtype]], device: torch.device
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
    """New tensors of the given shapes and dtypes, and the same with None for the `[0]` ones."""
    tensors = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds)
    return tensors, tuple(t if t.dim() == 2 else None for t in tensors)


def launch(
    kernel: Any,
    tensors: Sequence[torch.Tensor | None],
    vectors: Sequence[torch.Tensor | None],
    *scalars: int | float | None,
    **flags: bool,
) -> None:
    """Run `kernel` over `[B, d]` tensors, of which the first that is given sets B and d.

    The kernel's arguments are: `tensors`, `vectors` (the others), the row stride of each of
    `tensors`, `scalars`, B, d, the tiles of a sample, then `flags` and the tile by name.
    """
    state = next(t for t in tensors if t is not None)
    B, d = state.shape
    if B == 0 or d == 0:
        return
    strides = [0 if t is None or B == 1 else t.stride(0) for t in tensors]
    narrow = any(t is not None and t.element_size() < 4 for t in tensors)
    interpreted = not isinstance(kernel, triton.JITFunction)
    shape = launch_shape(B, d, narrow=narrow, lanes=_LANES, interpreted=interpreted)
    tiles = triton.cdiv(d, shape.cols)
    tile = dict(BR=shape.rows, BD=shape.cols, ALIGN=alignment(d, strides))
    elsewhere = state.is_cuda and state.device.index != torch.cuda.current_device()
    with torch.cuda.device(state.device) if elsewhere else nullcontext():
        kernel[(triton.cdiv(B, shape.rows) * tiles,)](
            *tensors, *vectors, *strides, *scalars, B, d, tiles, **flags, **tile,
            num_warps=shape.warps,
        )  # fmt: skip
