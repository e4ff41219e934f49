"""Inputs, oracles and tolerances for testing the ops, here and in projects that embed them.

Inputs lie on torch's default device (`with torch.device("cuda"): ...`) and have the same values on
every device.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .dispatch import backends, cpu, load
from .ops.diffusion_step import COLUMNS as DIFFUSION_COLUMNS
from .ops.uld_step import COLUMNS as ULD_COLUMNS

NORMAL_TOLERANCE = 2e-6
_dots = [""]  # chosen by `cpu_dots`, the innermost last; empty: the best
ULPS = 2.0


def usable_backends(op: str, device: str = "cpu") -> list[str]:
    """Names of the backends that can serve `op` on `device` here."""
    return [name for name in backends.BACKENDS if not backends.unusable(op, name, device)]


def cpu_isas() -> list[str]:
    """Instruction sets of the C++ CPU backend that this CPU can run; empty if it is not built."""
    if not load.CPU.loaded:
        return []
    with contextlib.ExitStack() as stack:
        stack.callback(cpu.set_isa, cpu.current_isa())
        return [name for name in cpu.ISAS if cpu.set_isa(name)]


@contextlib.contextmanager
def cpu_isa(name: str) -> Iterator[None]:
    """Run the C++ CPU backend on one instruction set: scalar, avx2 or avx512."""
    before = cpu.current_isa()
    if not cpu.set_isa(name):
        raise RuntimeError(f"this CPU cannot run {name!r}: expected one of {cpu_isas()}")
    try:
        yield
    finally:
        cpu.set_isa(before)


def cpu_dots_here() -> list[str]:
    """The ways in which the C++ CPU backend can multiply bfloat16 and int8 data here; empty if it
    is not built."""
    if not load.CPU.loaded:
        return []
    with contextlib.ExitStack() as stack:
        stack.callback(cpu.set_dots, _dots[-1])
        return [name for name in cpu.DOTS if cpu.set_dots(name)]


@contextlib.contextmanager
def cpu_dots(name: str) -> Iterator[None]:
    """Have the C++ CPU backend multiply bfloat16 and int8 data in one way, where an op has a
    choice: `common`, with the bits that every instruction set gives; `avx512_bf16`, by the CPU's
    dot products; `amx`, by its tiles; or by an emulation of these, `emulated_avx512_bf16` and
    `emulated_amx`, which any CPU can run."""
    if not cpu.set_dots(name):
        raise RuntimeError(f"this CPU cannot run {name!r}: expected one of {cpu_dots_here()}")
    _dots.append(name)
    try:
        yield
    finally:
        _dots.pop()
        cpu.set_dots(_dots[-1])


def cpu_philox_words(key: int, counter: int, stream: int, count: int) -> Tensor:
    """Philox words of quads 0 to count - 1, as the C++ CPU backend has them: int64 `[count, 4]`."""
    function = ctypes.CDLL(str(load.CPU.path)).ardiff_philox_words
    function.argtypes = [ctypes.c_int64, ctypes.c_uint32, ctypes.c_int64, ctypes.c_int64]
    function.argtypes += [ctypes.c_void_p]
    out = torch.empty(count, 4, dtype=torch.int32)
    function(key, counter, stream, count, out.data_ptr())
    return out.long() & 0xFFFFFFFF


# Of each op, the tensors that its oracle takes in float64.
STATE = {
    "diffusion_step": ("x", "memory"),
    "uld_step": ("z", "v", "anchor"),
    "mala_accept": ("x", "y", "anchor"),
    "kv_attention": ("q",),
    "head_step": ("x",),
    "head_loop": ("x", "memory", "v"),
    "packed_linear": ("x",),
}


@dataclass
class Call:
    """A call of an op: its arguments by name, `args` positional, `options` keyword-only."""

    op: str
    args: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> tuple[str, ...]:
        return STATE[self.op]

    def functional(self, namespace: Any = torch.ops.ardiff, **more: Any) -> Any:
        """Results of the op in a library namespace; `more` are further options."""
        function = getattr(namespace, self.op).default
        return function(*self.args.values(), **self.options, **more)

    def in_place(self, namespace: Any = torch.ops.ardiff, **extra: Tensor) -> tuple[Tensor, ...]:
        """Results of the in-place twin: clones of the arguments that it writes, in their order.
        `extra` are options of the twin alone, which are not cloned."""
        function = getattr(namespace, f"{self.op}_").default
        written = [a.name for a in function._schema.arguments if a.alias_info is not None]
        given = {**self.args, **self.options}
        given |= {name: given[name].clone() for name in written if given.get(name) is not None}
        function(*(given[name] for name in self.args), **_without(given, self.args), **extra)
        return tuple(given[name] for name in written if given.get(name) is not None)

    def oracle(self) -> Any:
        """The float64 reference on the identical inputs and the same noise words."""
        wide = [name for name in self.state if {**self.args, **self.options}.get(name) is not None]
        call = self.changed(**{name: {**self.args, **self.options}[name].double() for name in wide})
        return backends.reference_function(self.op)(*call.args.values(), **call.options)

    def changed(self, **new: Any) -> Call:
        """The call with arguments or options replaced, or options added."""
        args = {name: new.get(name, value) for name, value in self.args.items()}
        return replace(self, args=args, options={**self.options, **_without(new, self.args)})


def _without(given: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in names}


def bits(t: Tensor) -> Tensor:
    """The tensor as integers, so that NaN equals itself."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    return t.contiguous().view(kinds[t.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def random_rows(seed: int, rows: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normals `[rows, d]` in a NaN-padded buffer, so that a read outside the row shows."""
    generator = torch.Generator("cpu").manual_seed(seed)
    buffer = torch.full((rows, d + 3), math.nan, dtype=dtype)
    buffer[:, :d] = torch.randn(rows, d, generator=generator, device="cpu", dtype=torch.float32).to(
        dtype
    )
    return buffer[:, :d]


def table(columns: tuple[str, ...], rows: list[dict[str, float]]) -> Tensor:
    """float32 `[T, 20]` from rows of named coefficients; a `*_lo` column takes its pair's rest."""
    packed = torch.zeros(len(rows), 20, dtype=torch.float32)
    for i, row in enumerate(rows):
        for name, value in row.items():
            packed[i, columns.index(name)] = value
            if f"{name}_lo" in columns:
                rest = value - packed[i, columns.index(name)].item()
                packed[i, columns.index(f"{name}_lo")] = rest
    return packed


def _address(rows: int, length: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)

    def integers(limit: int) -> Tensor:
        return torch.randint(0, limit, (rows,), generator=generator, device="cpu")

    address = {
        "row": integers(length).int(),
        "draw": integers(1000).int(),
        "key": torch.tensor([0x29A3_1F5C_D00D_BEE1 + seed]),
        "stream": integers(2**63 - 1),
    }
    return {name: t.to(torch.get_default_device()) for name, t in address.items()}


ULD_ROWS = [
    dict(z_z=1.0123456789, z_d=-0.11, z_v=0.09, z_o=0.07, z_1=0.05, z_2=0.04)
    | dict(v_z=0.08, v_d=-0.4, v_v=0.7, v_o=-0.2, v_1=0.6),
    dict(z_z=0.9, z_o=0.1, z_2=0.12, v_1=1.0, a_z=1.234567891),
    dict(z_z=0.99, z_v=0.1, v_v=0.8, v_o=-0.1),
]
DIFFUSION_ROWS = [
    dict(p_x=0.3, p_o=-0.6, x_x=0.987654321, x_0=0.08, x_m=-0.05, x_d=-0.07, x_n=0.11, m_0=1.0)
    | dict(s_m=1.0),
    dict(p_x=1.1, p_o=-0.2, x_x=0.9, x_d=-0.1, x_n=0.2),
    dict(p_o=1.0, x_x=0.95, x_0=0.1, x_d=0.06, x_n=0.05, m_x=1.234567891, lv_min=-4.0, lv_max=-2.0)
    | dict(s_x=0.9, s_m=-0.06, s_2=0.1),
]
# What these rows have besides with a third memory, and with the unconditional prediction.
THIRD_MEMORY = [dict(x_3=-0.06, t_2=1.0), dict(x_3=0.08), dict(t_2=-0.9)]
UNCONDITIONAL = [dict(x_u=-0.09, m_u=0.4), dict(x_u=0.05), dict(m_u=-0.3)]


def uld_call(rows: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Call:
    """A random `uld_step` call with a start row, a kinetic row and a noiseless row."""
    address = _address(rows, len(ULD_ROWS), seed)
    state = {name: random_rows(seed + i, rows, d) for i, name in enumerate(("z", "v"))}
    model = {
        "model_out": random_rows(seed + 2, rows, d, dtype),
        "anchor": random_rows(seed + 3, rows, d),
    }
    coef = table(ULD_COLUMNS, ULD_ROWS)
    return Call("uld_step", {**state, **model, "coef": coef, **address})


def diffusion_call(
    rows: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    state_dtype: torch.dtype = torch.float32,
    learned_range: bool = False,
    memories: int = 1,
    unconditional: bool = False,
) -> Call:
    """A random `diffusion_step` call with multistep, anchored and learned-range rows; with the
    columns of the unconditional prediction if `unconditional`."""
    address = _address(rows, len(DIFFUSION_ROWS), seed)
    width = 2 * d if learned_range else d
    state = {
        "x": random_rows(seed, rows, d, state_dtype),
        "model_out": random_rows(seed + 1, rows, width, dtype),
        "memory": random_rows(seed + 2, rows, memories * d, state_dtype),
    }
    kinds = [DIFFUSION_ROWS, *[THIRD_MEMORY] * (memories == 3), *[UNCONDITIONAL] * unconditional]
    coef = table(DIFFUSION_COLUMNS, [dict(ChainMap(*row)) for row in zip(*kinds, strict=True)])
    return Call("diffusion_step", {**state, "coef": coef, **address})


def guidance_options(call: Call, three_way: bool, seed: int = 50) -> dict[str, Tensor]:
    """Unconditional outputs and per-sample guidance scales for a call."""
    out = call.args["model_out"]
    rows, width = out.shape
    options = {
        "uncond_out": random_rows(seed, rows, width, out.dtype),
        "guidance": torch.linspace(0.0, 3.0, rows, dtype=torch.float32),
    }
    if three_way:
        options["uncond_out2"] = random_rows(seed + 1, rows, width, out.dtype)
        options["guidance2"] = torch.linspace(1.5, 0.5, rows, dtype=torch.float32)
    return options


def ulp(largest: Tensor) -> Tensor:
    """Spacing of float32 numbers at the magnitude of `largest`, as float64."""
    _, exponent = torch.frexp(largest.double().clamp(min=2.0**-126))
    return torch.ldexp(torch.ones_like(largest, dtype=torch.float64), exponent - 24)


def _output_magnitude(call: Call, d: int) -> Tensor:
    """Bound on every number rounded on the way to the guided model output, float64 `[B, d]`.

    Guidance rounds the differences c - u, of up to |c| + |u|, before it scales them.
    """
    options = call.options
    out = call.args["model_out"][:, :d].double().abs()
    if "uncond_out" not in options:
        return out
    u1 = options["uncond_out"][:, :d].double().abs()
    largest = u1 + options["guidance"].double().abs().unsqueeze(-1) * (out + u1)
    if "uncond_out2" in options:
        u2 = options["uncond_out2"][:, :d].double().abs()
        largest = largest + u2 + options["guidance2"].double().abs().unsqueeze(-1) * (u1 + u2)
    return largest


def _columns(call: Call) -> dict[str, Tensor]:
    """Coefficients of each sample's row, float64 `[B, 1]` by name."""
    columns = ULD_COLUMNS if call.op == "uld_step" else DIFFUSION_COLUMNS
    coef = call.args["coef"]
    rows = coef.double()[call.args["row"].long().clamp(0, len(coef) - 1)]
    return {name: rows[:, i : i + 1] for i, name in enumerate(columns)}


def _ulps_of_largest(terms: list[Tensor]) -> Tensor:
    return ULPS * ulp(torch.stack(torch.broadcast_tensors(*terms)).abs().amax(0))


def _noise_scale(call: Call) -> Tensor | float:
    scale = call.options.get("noise_scale")
    return 1.0 if scale is None else scale.double().abs().unsqueeze(-1)


def uld_bounds(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Tolerances on z, v and anchor of `uld_step`, float64 `[B, d]`.

    z: 2 ulp of its largest term and 2e-6 times its noise coefficients. v: 1e-6 and the same for
    its noise. anchor: 2 ulp.
    """
    c, args = _columns(call), call.args
    z, v, anchor = (args[name].double().abs() for name in call.state)
    out = _output_magnitude(call, z.shape[1])
    terms = [c["z_z"] * z, c["z_d"] * z, c["z_d"] * anchor, c["z_v"] * v, c["z_o"] * out]
    noise = NORMAL_TOLERANCE * _noise_scale(call)
    z_bound = _ulps_of_largest(terms) + noise * (c["z_1"].abs() + c["z_2"].abs())
    v_bound = (1e-6 + noise * c["v_1"].abs()).expand_as(z)
    return z_bound, v_bound, _ulps_of_largest([anchor, c["a_z"] * z])


def diffusion_bounds(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Tolerances on x, memory and x0 of `diffusion_step`, float64 `[B, d]`.

    2 ulp of the largest term, the terms of x0 included where x0 enters, 2 ulp of the largest x0u
    where it enters, and 2e-6 times the noise coefficient. All parts of a memory.
    """
    c = _columns(call)
    x = call.args["x"].double().abs()
    d = x.shape[1]
    memory, *more = call.args["memory"].double().abs().split(d, 1)
    origin = more[0] if more else memory
    data = [c["p_x"] * x, c["p_o"] * _output_magnitude(call, d)]
    uncond = call.options.get("uncond_out")
    data_u = data if uncond is None else [data[0], c["p_o"] * uncond[:, :d].double().abs()]
    largest_u = data_u[0].abs() + data_u[1].abs()
    scale = c["x_n"].abs()
    model_out = call.args["model_out"]
    if model_out.shape[1] == 2 * d:
        share = 0.5 * (model_out[:, d:].double() + 1)
        scale = torch.exp(0.5 * (c["lv_min"] + share * (c["lv_max"] - c["lv_min"])))
    terms = [c["x_x"] * x, c["x_m"] * memory, c["x_d"] * x, c["x_d"] * origin]
    terms += [c["x_3"] * t for t in more[1:]]
    x_bound = _ulps_of_largest(terms + [c["x_0"] * t for t in data])
    x_bound = x_bound + _ulps_of_largest([c["x_u"] * largest_u])
    x_bound = x_bound + NORMAL_TOLERANCE * _noise_scale(call) * scale
    terms = [memory, c["m_x"] * x, *(c["m_0"] * t for t in data)]
    bounds = [_ulps_of_largest(terms) + _ulps_of_largest([c["m_u"] * largest_u])]
    if more:
        terms = [origin, c["s_x"] * x, c["s_m"] * memory, c["s_2"] * origin]
        bounds.append(_ulps_of_largest(terms))
    if len(more) == 2:
        bounds.append(_ulps_of_largest([more[1], c["t_2"] * origin]))
    return x_bound, torch.cat(bounds, 1), _ulps_of_largest(data)


def assert_within(got: Tensor, expected: Tensor, bound: Tensor | float) -> None:
    """Raise AssertionError unless `got` is finite and within `bound` of `expected` everywhere."""
    if not torch.isfinite(got).all():
        raise AssertionError("the result holds NaN or inf")
    error = (got.double() - expected.double()).abs()
    worst = (error / bound).max().item() if error.numel() else 0.0
    if worst > 1.0:
        raise AssertionError(f"the error is {worst:.2f} times the bound")
