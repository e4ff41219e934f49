"""Launch shapes of the Triton kernels: static tables, no autotuner (it needs a GPU and breaks graph
capture)."""

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

    The widest tile that wastes at most an eighth of a sample; several samples a program when d is
    small. A lane gets four elements, or twice four of a wide float32 tile: with 16-bit tensors
    (`narrow`) Triton would give it eight neighbours of those, and with fewer than four it would
    move the normals, each time between lanes through shared memory. `lanes` is the width of a warp.
    The interpreter pays about 70 ms a program, so there a program is large.
    """
    if interpreted:
        cols = min(max(16, triton.next_power_of_2(d)), 1 << 17)
        return LaunchShape(min(triton.next_power_of_2(B), (1 << 17) // cols), cols, 1)
    for cols in (1024, 512, 256, 128, 64, 32, 16):
        if -d % cols * 8 <= d:
            break
    else:
        cols = min(max(16, triton.next_power_of_2(d)), 1024)
    rows = max(1, 512 // cols)
    elements_a_lane = 8 if cols == 1024 and not narrow else 4
    return LaunchShape(rows, cols, rows * cols // (elements_a_lane * lanes))


def shared(x: torch.Tensor | None) -> bool:
    """Whether a per-sample argument is one value for every sample."""
    return x is None or x.numel() == 1


def row_stride(x: torch.Tensor | None) -> int:
    """Row stride of a `[B, d]` tensor, in elements; 0 for an absent one."""
    return 0 if x is None else x.stride(0)


def launch(kernel: Any, state: torch.Tensor, *args: Any, narrow: bool, **flags: Any) -> None:
    """Run `kernel` over the `[B, d]` tensor `state`; `args` follow B, d and the tile count."""
    B, d = state.shape
    if B == 0 or d == 0:
        return
    interpreted = not isinstance(kernel, triton.JITFunction)
    rows, cols, warps = launch_shape(B, d, narrow=narrow, lanes=_LANES, interpreted=interpreted)
    nd = triton.cdiv(d, cols)
    elsewhere = state.is_cuda and state.device.index != torch.cuda.current_device()
    with torch.cuda.device(state.device) if elsewhere else nullcontext():
        kernel[(triton.cdiv(B, rows) * nd,)](
            *args, B, d, nd, **flags, BR=rows, BD=cols, num_warps=warps
        )
