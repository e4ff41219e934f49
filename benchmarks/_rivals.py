"""The rivals of our layers and heads: PyTorch's own, in each dtype, eagerly and compiled.

Where ours have float32 weights the rivals' names leave the dtype out; elsewhere all say theirs:

- `eager`: the module, cast to the dtype with its inputs.
- `compile`: that under `torch.compile(fullgraph=True)` for fixed shapes; on a GPU also
  `graphed-compile`, in a CUDA graph.
- `compile-frozen`: on a CPU, the same with its weights as constants that oneDNN or MKL packs once.
- `torchao-int8`, `compile-torchao-int8`...: the bfloat16 module with torchao's int8 weights (with
  float32 inputs it was slower), where torchao is installed.
- `eager-float32` beside narrower weights shows what the narrower dtype itself brings.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import _harness
from ._harness import Row, Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Relative RMS errors of a head's evaluation.
ERRORS = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}


class Rival(NamedTuple):
    """A module as a user would call it: with tensors of `dtype`, that of its biases and norms."""

    call: Callable[..., Tensor]
    dtype: torch.dtype


@lru_cache(None)
def has_torchao() -> bool:
    """Whether torchao is installed; says so once where it is not."""
    found = importlib.util.find_spec("torchao") is not None
    if not found:
        print("no rival torchao-int8: torchao is not installed", file=sys.stderr)
    return found


def cast(module: nn.Module, dtype: str) -> nn.Module:
    """The module in a dtype; a float32 one itself, else a copy. For int8 its bfloat16 copy with
    torchao's weight-only int8 linear layers."""
    if dtype != "int8":
        return module if dtype == "float32" else copy.deepcopy(module).to(DTYPES[dtype])
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = copy.deepcopy(module).to(torch.bfloat16)
    quantize_(module, Int8WeightOnlyConfig())
    return module


def compiled(call: Callable[..., Tensor], **options) -> Callable[..., Tensor]:
    """`call` under `torch.compile` for fixed shapes.

    It has code of its own: Dynamo counts compilations by code, so that modules of one class
    together would reach its limit of eight and look through each other's.
    """

    def own(*args: Tensor) -> Tensor:
        return call(*args)

    own.__code__ = own.__code__.replace()
    return torch.compile(own, fullgraph=True, dynamic=False, **options)


def frozen(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`call` compiled with frozen weights, for use without gradients. Dynamo and Inductor look for
    the global setting when they compile, at the first call with new shapes; as an option of
    `torch.compile` it has no effect (torch 2.13)."""
    from torch._inductor import config

    run, known = compiled(call), set()

    def own(*args: Tensor) -> Tensor:
        shapes = tuple(arg.shape for arg in args)
        if shapes in known:
            return run(*args)
        with config.patch(freezing=True):
            found = run(*args)
        known.add(shapes)
        return found

    return own


def forms(device: str) -> dict[str, Callable]:
    """Ways to compile a module by rival on a device."""
    if device == "cuda":
        return {"compile": compiled, "graphed-compile": partial(compiled, mode="reduce-overhead")}
    return {"compile": compiled, "compile-frozen": frozen}


def of(module: nn.Module, weights: str, device: str) -> dict[str, Callable[[], Rival]]:
    """Rivals of our `module` with such weights, by name, each made when called.

    Args:
        module: float32, called with tensors of its dtype.
        weights: float32, bfloat16 or int8, those of ours.
        device: cpu or cuda.
    """
    found = {}
    if weights != "float32":
        found["eager-float32"] = partial(Rival, module, torch.float32)
    for dtype in ("bfloat16", "int8") if weights == "int8" else (weights,):
        found.update(_in_dtype(module, dtype, device))
    return found


def _in_dtype(
    module: nn.Module, dtype: str, device: str
) -> Iterator[tuple[str, Callable[[], Rival]]]:
    if dtype == "int8" and not has_torchao():
        return
    own = lru_cache(None)(partial(cast, module, dtype))
    outer = DTYPES.get(dtype, torch.bfloat16)
    yield name("eager", dtype), lambda: Rival(own(), outer)
    for form, compiler in forms(device).items():
        yield name(form, dtype), lambda compiler=compiler: Rival(compiler(own()), outer)


def name(form: str, dtype: str) -> str:
    """Of a rival in a dtype; only its name where that is float32."""
    if dtype == "int8":
        return "torchao-int8" if form == "eager" else f"{form}-torchao-int8"
    return form if dtype == "float32" else f"{form}-{dtype}"


def dtype_of(rival: str) -> str:
    """float32 of `eager`."""
    return next((dtype for dtype in ERRORS if rival.endswith(f"-{dtype}")), "float32")


def made(module: nn.Module, weights: str, settings: Settings) -> dict[str, Rival]:
    """The rivals that were asked for, compiled anew."""
    torch._dynamo.reset()
    known = of(module, weights, settings.device)
    return {name: make() for name, make in settings.pick(known).items()}


def correctness(
    suite: str,
    case: str,
    found: dict[str, Callable[[], Tensor]],
    exact: Tensor,
    bounds: dict[str, float] | None = None,
) -> Iterator[Row]:
    """Whether what each rival finds is near the exact result, and its relative RMS error."""
    for rival, run in found.items():
        error = _harness.relative_error(run(), exact)
        bound = (bounds or ERRORS)[dtype_of(rival)]
        yield _harness.error_row(suite, case, rival, error, torch.zeros(()), bound)
        yield Row(suite, case, rival, "error", float(error))
