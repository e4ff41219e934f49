"""The CUDA kernels run on the host: compiled by the C++ compiler, the same sources walk all blocks
and threads in a loop (csrc/cuda/launch.cuh). So their indexing, options and arithmetic are tested
where there is no GPU: bit for bit against the C++ CPU library, within rounding of the float64
reference."""

import dataclasses
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops, testing
from ardiff_kernels.dispatch import autograd as _autograd
from ardiff_kernels.dispatch import load
from tests import ROOT
from tests._support import build_cache, gradient_calls

NAMESPACE = "ardiff_cuda_on_host"
OPS = (
    *("philox_normal", "brownian_increment", "diffusion_step", "uld_step"),
    *("diffusion_step_backward", "uld_step_backward"),
)
FLAGS = [
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", "-DTORCH_STABLE_ONLY"),
    "-DTORCH_TARGET_VERSION=0x020A000000000000",
    *(f"-DARDIFF_CUDA_NAMESPACE={NAMESPACE}", "-DARDIFF_CUDA_KEY=CPU"),
]
SHAPES = [(1, 1), (3, 5), (1, 16), (7, 33), (5, 64), (2, 1023), (1, 4100), (300, 8)]
BOUNDS = {"uld_step": testing.uld_bounds, "diffusion_step": testing.diffusion_bounds}
ids = dict(ids=str)


@pytest.fixture(scope="module")
def cxx() -> str:
    return build_cache.find_compiler() or pytest.skip("no C++ compiler was found")


@pytest.fixture(scope="module")
def on_host(cxx):
    """The ops of the CUDA sources, on CPU tensors, under a namespace of their own."""

    def compile_one(op: str) -> Path:
        source = ROOT / f"csrc/cuda/{op}/{op}.cu"
        return build_cache.host_library(cxx, f"{op}_on_host", source, FLAGS)

    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(compile_one, OPS))
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for op in OPS:
        for name in (op, f"{op}_"):
            if not hasattr(torch.ops.ardiff, name):
                continue
            schema = str(getattr(torch.ops.ardiff, name).default._schema)
            definitions.define(schema.removeprefix("ardiff::"))
    for library in libraries:
        torch.ops.load_library(str(library))
    yield getattr(torch.ops, NAMESPACE)
    definitions._destroy()


def packed(call: testing.Call) -> testing.Call:
    """Contiguous copies: where d is a multiple of four, the kernels then access whole units."""
    return dataclasses.replace(
        call,
        args={name: t.clone().contiguous() for name, t in call.args.items()},
        options={
            name: t.clone().contiguous() if isinstance(t, Tensor) else t
            for name, t in call.options.items()
        },
    )


def assert_alike(on_host, call: testing.Call) -> None:
    for variant in (call, packed(call)):
        got = getattr(on_host, call.op)(*variant.args.values(), **variant.options)
        for mine, exact, bound in zip(got, call.oracle(), BOUNDS[call.op](call), strict=True):
            if mine.dtype == torch.bfloat16:  # 8 bits: the store rounds by half a unit of the last
                bound = bound + 2.0**-8 * (exact.abs() + bound)
            testing.assert_within(mine, exact, bound.clamp(min=1e-30))
        if not load.CPU.loaded:
            continue
        with ardiff_kernels.backend("cpu"):
            for mine, cpu in zip(got, variant.functional(), strict=True):
                assert torch.equal(mine.nan_to_num(7.0), cpu.nan_to_num(7.0))
        state = {name: variant.args[name].clone() for name in call.state}
        z_model = torch.empty(call.args[call.state[0]].shape, dtype=torch.bfloat16)
        in_place = getattr(on_host, f"{call.op}_")
        in_place(*{**variant.args, **state}.values(), **variant.options, z_model=z_model)
        for mine, functional in zip(state.values(), got, strict=False):
            assert torch.equal(mine.nan_to_num(7.0), functional.nan_to_num(7.0))
        assert torch.equal(z_model.nan_to_num(7.0), got[0].bfloat16().nan_to_num(7.0))


def assert_backward_alike(on_host, call: testing.Call) -> None:
    """The gradients of all inputs: bit for bit those of the CPU library, else the reference's."""
    grads = gradient_calls.upstream(call)
    formula = _autograd.FORMULAS[call.op]
    with ardiff_kernels.backend("cpu" if load.CPU.loaded else "reference"):
        for used in (grads, [grads[0], None, None]):
            for variant in (call, packed(call)):
                given = {"x0_clamp": None, **variant.args, **variant.options}
                saved = {
                    name: given[name] for name in _autograd.saved_names(call.op) if name in given
                }
                arguments = {**saved, **formula.constants(given)}
                got = getattr(on_host, f"{call.op}_backward")(*used, **arguments)
                want = getattr(torch.ops.ardiff, f"{call.op}_backward")(*used, **arguments)
                for mine, cpu in zip(got, want, strict=True):
                    assert mine.shape == cpu.shape and mine.dtype == cpu.dtype
                    if load.CPU.loaded:
                        assert torch.equal(mine, cpu)
                    else:
                        assert torch.allclose(mine, cpu, 1e-2, 1e-4)


def deep(value):
    """`[B, 24 k]` as `[B, 2 k, 3, 4]`, the same rows."""
    wide = isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] % 24 == 0
    return value.unflatten(1, (-1, 3, 4)) if wide else value


@pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call])
@pytest.mark.parametrize("more", [{}, {"learned_range": True, "memories": 2}], **ids)
def test_rows_of_several_dimensions(on_host, make, more):
    call = make(3, 24, **(more if make is testing.diffusion_call else {}))
    op = getattr(on_host, call.op)
    for variant in (call, packed(call)):
        flat = op(*variant.args.values())
        for one, other in zip(flat, op(*map(deep, variant.args.values())), strict=True):
            assert other.dim() == 4 and torch.equal(other, deep(one))


@pytest.mark.parametrize("name", gradient_calls.SMALL | gradient_calls.LARGER)
def test_gradients(on_host, name):
    assert_backward_alike(on_host, {**gradient_calls.SMALL, **gradient_calls.LARGER}[name]())


def finish_some(call: testing.Call) -> testing.Call:
    call.args["row"][::3] = -1
    call.args["row"][1::5] = len(call.args["coef"])
    return call


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("guidance", ["none", "two-way", "three-way"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], **ids)
def test_uld_step(on_host, shape, guidance, dtype):
    call = finish_some(testing.uld_call(*shape, dtype))
    if guidance != "none":
        call.options |= testing.guidance_options(call, guidance == "three-way")
        call.options["noise_scale"] = torch.linspace(0, 2, shape[0])
    assert_alike(on_host, call)


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("learned_range", [False, True])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], **ids)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_diffusion_step(on_host, shape, learned_range, state, dtype):
    call = testing.diffusion_call(
        *shape, dtype, state_dtype=state, learned_range=learned_range
    )  # fmt: skip
    finish_some(call)
    if learned_range:
        call.options |= testing.guidance_options(call, dtype == torch.float32)
        call.options["x0_clamp"] = 0.75
    assert_alike(on_host, call)


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], **ids)
@pytest.mark.parametrize("memories", [2, 3])
def test_more_memories(on_host, shape, state, memories):
    call = testing.diffusion_call(*shape, state_dtype=state, memories=memories)
    assert_alike(on_host, finish_some(call))


@pytest.mark.parametrize("shape", SHAPES, **ids)
@pytest.mark.parametrize("guidance", ["none", "two-way", "three-way"])
@pytest.mark.parametrize("memories", [1, 3])
def test_unconditional_prediction(on_host, shape, guidance, memories):
    kind = dict(memories=memories, unconditional=True)
    call = finish_some(testing.diffusion_call(*shape, torch.bfloat16, **kind))
    call.options["x0_clamp"] = 0.75
    if guidance != "none":
        call.options |= testing.guidance_options(call, guidance == "three-way")
    assert_alike(on_host, call)


@pytest.mark.parametrize("op", ["uld_step", "diffusion_step"])
def test_given_noise_and_one_row_for_all(on_host, op):
    call = (testing.uld_call if op == "uld_step" else testing.diffusion_call)(4, 24)
    call.options["noise"] = testing.random_rows(60, 4, 24)
    if op == "uld_step":
        call.options["noise2"] = testing.random_rows(61, 4, 24)
    for name in ("row", "draw"):
        call.args[name] = torch.tensor([1], dtype=torch.int32)
    assert_alike(on_host, call)


@pytest.mark.parametrize("shape", [(0, 5), *SHAPES], **ids)
@pytest.mark.parametrize("counter", [0, 5, 2**32 - 1])
def test_philox_normal(on_host, shape, counter):
    rows, n = shape
    key = torch.tensor([-0x29A31F5CD00DBEE1])
    stream = torch.arange(rows) * 2**43 - 7
    got = on_host.philox_normal(key, counter, stream, n)
    wide = torch.full((rows, n + 3), -9.0)
    on_host.philox_normal_(wide[:, :n], key, counter, stream)
    assert torch.equal(wide[:, :n], got) and (wide[:, n:] == -9.0).all()
    if load.CPU.loaded:
        with ardiff_kernels.backend("cpu"):
            assert torch.equal(got, torch.ops.ardiff.philox_normal(key, counter, stream, n))


@pytest.mark.parametrize("shape", [(0, 5), *SHAPES], **ids)
@pytest.mark.parametrize("shared", [False, True])
def test_brownian_increment(on_host, shape, shared):
    rows, d = shape
    key, stream = torch.tensor([-0x29A31F5CD00DBEE1]), torch.arange(rows) * 2**43 - 7
    generator = torch.Generator().manual_seed(rows)
    start = torch.exp2(60 * torch.rand(rows, generator=generator) - 30)
    end = torch.exp2(60 * torch.rand(1 if shared else rows, generator=generator) - 30)
    got = on_host.brownian_increment(key, stream, start, end, d)
    wide = torch.full((rows, d + 3), -9.0)
    on_host.brownian_increment_(wide[:, :d], key, stream, start, end)
    assert torch.equal(wide[:, :d], got) and (wide[:, d:] == -9.0).all()
    if load.CPU.loaded:
        with ardiff_kernels.backend("cpu"):
            assert torch.equal(got, ops.brownian_increment(key, stream, start, end, d))


def test_bad_input_reads_as_on_the_cpu(on_host):
    call = testing.uld_call(4, 8)
    call.args["v"] = call.args["v"][:, :7]
    with pytest.raises(RuntimeError, match=r"v must have the shape of z \[4, 8\], got \[4, 7\]"):
        on_host.uld_step(*call.args.values())


def test_every_element_has_one_thread(cxx, tmp_path):
    """An exhaustive walk over small shapes, and 64-bit places by their closed form."""
    program = tmp_path / "layout"
    source = str(ROOT / "tests/kernels/cuda_layout.cpp")
    subprocess.run([cxx, "-std=c++17", "-O1", source, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
