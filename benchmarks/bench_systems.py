"""Whole systems, from a prompt to audio or an image: `ardiff.accelerate` against the stock model.

A case is `<system>/<size>/<dtype>`, with `/int8` where our packed weights are int8. A module
`systems_<system>.py` has `build(size, dtype, seed)`, a model with random weights; `generate(model,
size, seed)`, the outputs by name of a run of its own loop; `amount(size)`, how much that makes of
`UNIT`; PARTS, paths of the methods whose time is that of a part, or `methods(model)`, themselves;
the path BACKBONE of what is called with KV caches; and RIVALS, what its users can do to a model
instead. Rivals share the parameters of the stock model, `eager`.
Correctness comes first: the outputs of whole runs on the same noise. Then what is held in memory,
the time per second of audio or per image, the speedups, and the time of each part before and after.

    python -m ardiff bench systems --case vibevoice/0.5b/bfloat16
"""

from __future__ import annotations

import copy
import gc
import importlib
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ardiff
from ardiff.integrations.systems.shares import measure

from . import _harness, _rivals
from ._harness import Row, Settings

SUITE = "systems"
SYSTEMS = {
    "vibevoice": ("0.5b/bfloat16", "0.5b/float32", "1.5b/bfloat16", "1.5b/bfloat16/int8"),
    "pocket": ("100m/float32", "100m/bfloat16", "100m/float32/int8"),
    "pocket_package": ("english/float32", "english/float32/int8"),
    "mar": ("mar-b/float32", "mar-b/bfloat16", "mar-b/bfloat16/int8"),
    "nextstep": ("small/float32", "small/bfloat16", "small/bfloat16/int8"),
}
CASES = tuple(f"{system}/{case}" for system, cases in SYSTEMS.items() for case in cases)
# Of outputs over a whole run, relative RMS. Float32: against the stock model. Else against the
# model with the same parameters in float32: as a share of the stock model's own error in bfloat16,
# and for int8 weights as it is.
ERROR, OVER_STOCK, INT8_ERROR = 1e-3, 1.5, 0.3
INT8_RIVALS = ("quantize",)


class Case(NamedTuple):
    system: str
    size: str
    dtype: str  # of the model: float32 or bfloat16
    weights: str  # of ours, packed: that or int8

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"benchmarks.systems_{self.system}")


def parse(case: str) -> Case:
    """System, size and dtypes of a case.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    dtypes = [*parts[2:], parts[2]][:2] if 3 <= len(parts) <= 4 else []
    if dtypes and parts[0] in SYSTEMS and dtypes[0] in _rivals.DTYPES:
        own = Case(parts[0], parts[1], *dtypes)
        if dtypes[1] in ("int8", dtypes[0]) and own.size in own.module.SIZES:
            return own
    raise ValueError(
        f"case {case!r}: expected <system>/<size>/<dtype> with a system of {', '.join(SYSTEMS)}, a "
        f"dtype of {', '.join(_rivals.DTYPES)}, and /int8 behind it for int8 weights; such as "
        f"{CASES[0]}"
    )


def twin(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Another model on the same parameters, or on copies of them in a dtype."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        own = parameter
        if dtype is not None:
            own = nn.Parameter(parameter.to(dtype), requires_grad=False)
        memo[id(parameter)] = own
    return copy.deepcopy(model, memo)


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, memory, times, speedups, and the parts' times."""
    own = parse(case)
    module = own.module
    torch._dynamo.reset()
    stock = module.build(own.size, own.dtype, settings.seed)
    plain, exact = _outputs(own, stock, settings)
    runs = {name: make() for name, make in _rivals_of(own, stock, settings).items()}
    ours = twin(stock)
    report = ardiff.accelerate(ours, weights=own.weights)
    models = {_harness.OURS: ours, **runs}
    calls = {
        name: partial(module.generate, model, own.size, settings.seed)
        for name, model in models.items()
    }
    yield from _correctness(case, own, plain, exact, calls)
    yield from _memory(case, own, stock, ours, report, settings)
    yield from _times(case, own, models, calls, settings)


def _rivals_of(
    own: Case, stock: nn.Module, settings: Settings
) -> dict[str, Callable[[], nn.Module]]:
    """What a user can run instead, each on the parameters of `stock`."""

    def prepared(prepare: Callable[[nn.Module], Any]) -> nn.Module:
        model = twin(stock)
        prepare(model)
        return model

    known: dict[str, Callable[[], nn.Module]] = {"eager": lambda: twin(stock)}
    for name, prepare in own.module.RIVALS.items():
        known[name] = partial(prepared, prepare)
    return settings.pick({_rivals.name(name, own.dtype): make for name, make in known.items()})


def _outputs(
    own: Case, stock: nn.Module, settings: Settings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The stock model's, and those of its parameters in float32; before ours is made, since both
    twins of a large model beside each other may not fit."""
    plain = own.module.generate(stock, own.size, settings.seed)
    if own.dtype == "float32":
        return plain, plain
    reference = twin(stock, torch.float32)
    exact = own.module.generate(reference, own.size, settings.seed)
    del reference
    gc.collect()
    return plain, exact


def _correctness(
    case: str, own: Case, plain: dict[str, Tensor], exact: dict[str, Tensor],
    calls: dict[str, Callable[[], dict[str, Tensor]]],
) -> Iterator[Row]:  # fmt: skip
    """Each output of ours and of the rivals on the same noise."""
    allowed = dict.fromkeys(plain, ERROR)
    if exact is not plain:
        for output, value in plain.items():
            error = float(_harness.relative_error(value, exact[output]))
            yield Row(SUITE, case, "stock", f"error-{output}", error)
            allowed[output] = OVER_STOCK * error
    for name, call in calls.items():
        for output, value in call().items():
            error = _harness.relative_error(value, exact[output])
            int8 = _harness.without_dtype(name) in INT8_RIVALS
            int8 |= own.weights == "int8" and name == _harness.OURS
            bound = INT8_ERROR if int8 else allowed[output]
            yield _harness.error_row(SUITE, case, name, error, torch.zeros(()), bound)
            yield Row(SUITE, case, name, f"error-{output}", float(error))


def _memory(
    case: str, own: Case, stock: nn.Module, ours: nn.Module, report: Any, settings: Settings
) -> Iterator[Row]:
    """What the model and its caches hold, and what ours holds beside it."""

    def row(name: str, metric: str, count: int) -> Row:
        return Row(SUITE, case, name, metric, count / 2**20, "MiB")

    weights = {p.data_ptr(): p.numel() * p.element_size() for p in stock.parameters()}
    yield row("stock", "weights", sum(weights.values()))
    yield row(_harness.OURS, "beside-weights", report.memory_bytes)
    for name, model in (("stock", stock), (_harness.OURS, ours)):
        caches = _caches(own.module, model, own.size, settings.seed)
        if caches:
            yield row(name, "kv-cache", sum(map(_cache_bytes, caches)))


def _caches(module: ModuleType, model: nn.Module, size: str, seed: int) -> list[Any]:
    """transformers' KV caches with which a run calls the module's `BACKBONE`."""
    backbone, seen = model.get_submodule(module.BACKBONE), {}

    def look(_: nn.Module, args: tuple, options: dict[str, Any]) -> None:
        cache = options.get("past_key_values")
        if cache is not None:
            seen[id(cache)] = cache

    hook = backbone.register_forward_pre_hook(look, with_kwargs=True)
    try:
        module.generate(model, size, seed)
    finally:
        hook.remove()
    return list(seen.values())


def _cache_bytes(cache: Any) -> int:
    """Of the buffers that keys and values lie in, where a layer has some."""
    total = 0
    for layer in cache.layers:
        own = getattr(layer, "memory_bytes", None)
        if own is None:
            held = [t for t in (layer.keys, layer.values) if t is not None]
            own = sum(t.numel() * t.element_size() for t in held)
        total += own
    return total


def _times(
    case: str, own: Case, models: dict[str, nn.Module], calls: dict[str, Callable],
    settings: Settings,
) -> Iterator[Row]:  # fmt: skip
    amount, unit = own.module.amount(own.size), f"s / {own.module.UNIT}"
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in models}

    def timed(name: str) -> None:
        parts[name].append(measure(calls[name], _methods(own.module, models[name]), "cpu"))

    seconds = _harness.interleave({name: partial(timed, name) for name in models}, settings)
    for name, values in seconds.items():
        scaled = [value / amount for value in values]
        yield _harness.spread_row(SUITE, case, name, "time", scaled, unit)
    for name in models:
        if name != _harness.OURS:
            yield _harness.speedup_row(SUITE, case, name, seconds[name], seconds[_harness.OURS])
    for name in (_rivals.name("eager", own.dtype), _harness.OURS):
        kept = parts.get(name, [])[-settings.rounds :]
        for part in dict.fromkeys(part for one in kept for part in one):
            values = [one.get(part, 0.0) / amount for one in kept]
            yield _harness.spread_row(SUITE, case, name, f"time-{part}", values, unit)
            shares = [100 * one.get(part, 0.0) / sum(one.values()) for one in kept]
            yield Row(SUITE, case, name, f"share-{part}", statistics.median(shares), "%")


def _methods(module: ModuleType, model: nn.Module) -> list[tuple[str, Any, str]]:
    """Part, owner and name of each method whose time is that of a part."""
    if hasattr(module, "methods"):
        return module.methods(model)
    found = []
    for part, paths in module.PARTS.items():
        for path in paths:
            owner, _, name = path.rpartition(".")
            found.append((part, model.get_submodule(owner), name))
    return found
