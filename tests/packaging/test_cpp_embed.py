"""The C interface: built without torch, installed, found by CMake, and equal to the Python ops.

A difference of one bit from `ardiff_kernels.ops` fails these tests; so does an argument out of
range that is not refused, or refused after something was written.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ardiff_kernels
import tests._support.c_interface as c
from ardiff_kernels import host, ops, testing
from ardiff_kernels.dispatch import load
from ardiff_kernels.ops._shared.tables import TABLE_WIDTH
from ardiff_kernels.ops.uld_step import COLUMNS
from tests import ROOT
from tests._support import build_cache

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
COMPILER = build_cache.find_compiler()
OK, INVALID = 0, 1

pytestmark = pytest.mark.skipif(
    not COMPILER and "CI" not in os.environ, reason="no C++ compiler was found"
)


def run(*command: str | Path, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PATH": PATH, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def configure(source: Path, build: Path, status: int = 0, **options: object):
    flags = [f"-D{name}={value}" for name, value in options.items()]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=PATH) else []
    return run("cmake", *generator, "-S", source, "-B", build, *flags, status=status)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """Where libardiff is installed; configured without any hint of torch or Python, and at -O1,
    which takes a third of the time: the kernels of -O3 are tested as those of `_C.so`."""
    options = {"ARDIFF_KERNEL_OPTIMIZATION": "-O1"}

    def make(folder: Path) -> None:
        build = tmp_path_factory.mktemp("cpp") / "build"
        configure(ROOT, build, **options)
        run("cmake", "--build", build, "-j", "2")
        run("cmake", "--install", build, "--prefix", folder / "prefix")

    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    inputs = [ROOT / "CMakeLists.txt", ROOT / "ardiff_kernels/__init__.py", *files]
    versions = [run(*command, "--version").stdout for command in ([COMPILER], ["cmake"])]
    return build_cache.cached("cpp-embed", inputs, [versions, options], make) / "prefix"


@pytest.fixture(scope="module")
def example(prefix, tmp_path_factory) -> Path:
    build = tmp_path_factory.mktemp("example")
    configure(ROOT / "examples" / "cpp_embed", build, CMAKE_PREFIX_PATH=prefix)
    run("cmake", "--build", build)
    return build / "cpp_embed"


@pytest.fixture(scope="module")
def library(prefix) -> ctypes.CDLL:
    (path,) = prefix.glob("lib*/libardiff.so")
    return c.load(path)


@pytest.fixture
def exact():
    """The Python ops on the backend whose bits the library has."""
    assert load.CPU.loaded, load.CPU.reason
    with ardiff_kernels.backend("cpu"):
        yield


def python_example() -> torch.Tensor:
    """examples/cpp_embed/main.cpp in Python."""
    made = host.uld_coefficients(2.0, 0.05)
    coef = torch.zeros(1, TABLE_WIDTH)
    values = {
        "z_z": 1.0, "z_v": made["z_from_v"], "z_o": -made["z_from_grad"], "z_1": made["z_1"],
        "z_2": made["z_2"], "v_v": made["v_from_v"], "v_o": -made["v_from_grad"],
        "v_1": made["v_1"],
    }  # fmt: skip
    for name, value in values.items():
        coef[0, COLUMNS.index(name)] = value
    stream, key = torch.arange(1000) * 2**20, torch.tensor([7])
    z = ops.philox_normal(key, 1, stream, 16)
    v, anchor, row = torch.zeros_like(z), torch.zeros_like(z), torch.tensor([0], dtype=torch.int32)
    for draw in range(200):
        place = (coef, row, torch.tensor([draw], dtype=torch.int32), key, stream)
        ops.uld_step_(z, v, (1 - z) * 4, anchor, *place)
    return z


def test_the_example_makes_the_samples_of_the_python_op(example, tmp_path, exact):
    out = tmp_path / "samples.bin"
    printed = run(example, out).stdout
    assert printed.startswith("ardiff 0.1.0, ")
    mean, deviation = (float(part.split()[1]) for part in printed.split(": ")[1].split(", "))
    assert abs(mean - 1) < 0.03 and abs(deviation - 0.5) < 0.03
    drawn = torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.float32).view(1000, 16)
    assert torch.equal(drawn, python_example())
    assert abs(float(drawn.mean()) - mean) < 1e-4
    scalar = tmp_path / "scalar.bin"
    assert ", scalar: " in run(example, scalar, ARDIFF_CPU_ISA="scalar").stdout
    assert scalar.read_bytes() == out.read_bytes()


def test_an_unknown_instruction_set_is_one_sentence(example, tmp_path):
    failed = run(example, tmp_path / "out.bin", status=1, ARDIFF_CPU_ISA="sse9")
    assert failed.stderr.startswith('ardiff: ARDIFF_CPU_ISA is "sse9", but this CPU can run scalar')


def test_the_library_stands_alone(prefix, library):
    """No torch, no Python, no symbol that is not ours; the version is that of the package."""
    (path,) = prefix.glob("lib*/libardiff.so")
    needed = run("readelf", "-d", path).stdout
    assert "libardiff.so.2]" in needed
    assert not [word for word in ("torch", "python", "gomp") if word in needed.lower()]
    symbols = run("nm", "-D", "--defined-only", path).stdout.split()[2::3]
    ours = {name for name in symbols if not name.startswith("_ZNSt")}
    assert "ardiff_uld_step" in ours
    assert all(name.startswith("ardiff_") for name in ours)
    assert library.ardiff_version().decode() == ardiff_kernels.__version__
    assert library.ardiff_abi_version() == 2


def test_the_header_is_c99_and_cxx(prefix, tmp_path):
    source = tmp_path / "use.c"
    source.write_text(
        "#include <ardiff.h>\nardiff_step_args make(void) { return ARDIFF_STEP_ARGS_INIT; }\n"
    )
    for options in (["-x", "c", "-std=c99"], ["-x", "c++", "-std=c++11"]):
        strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-missing-field-initializers"]
        include = f"-I{prefix / 'include'}"
        run(COMPILER, *options, *strict, include, "-fsyntax-only", source)


def test_cmake_refuses_other_versions_and_a_build_for_torch_without_torch(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(p NONE)\n"
        f'set(CMAKE_PREFIX_PATH "{prefix}")\nset(CMAKE_SIZEOF_VOID_P 8)\n'
        "find_package(ardiff 0.2 CONFIG REQUIRED)\n"
    )
    refused = configure(tmp_path, tmp_path / "build", status=1)
    assert "ardiffConfig.cmake, version: 0.1.0" in refused.stderr
    refused = configure(ROOT, tmp_path / "torch", status=1, ARDIFF_BUILD_TORCH="ON")
    assert "ARDIFF_BUILD_TORCH needs ARDIFF_TORCH_DIR" in refused.stderr


def place(rows: int, length: int = 4) -> list[torch.Tensor]:
    coef = torch.randn(length, TABLE_WIDTH)
    coef[torch.rand_like(coef) < 0.3] = 0.0
    row = torch.randint(-1, length + 1, (rows,), dtype=torch.int32)
    draw = torch.randint(0, 2**20, (1,), dtype=torch.int32)
    return [coef, row, draw, torch.tensor([-5]), torch.randint(-(2**60), 2**60, (rows,))]


def options_of(case: int, rows: int, width: int, d: int, dtype) -> dict:
    options: dict = {}
    if case >= 1:
        options = {"uncond_out": torch.randn(rows, width).to(dtype), "guidance": torch.randn(rows)}
    if case >= 2:
        options["uncond_out2"] = torch.randn(rows, width).to(dtype)
        options |= {"guidance2": torch.randn(1), "noise_scale": torch.rand(rows)}
    if case >= 3:
        options["noise"] = torch.randn(rows, d)
    return options


SHAPES = [(1, 1), (7, 16), (33, 5), (3, 1030)]


@pytest.mark.parametrize("isa", testing.cpu_isas())
@pytest.mark.parametrize("case", range(4))
def test_steps_have_the_bits_of_the_python_ops(library, exact, case, isa):
    """All options, strided states, one to three memories, one thread and three, each instruction
    set."""
    assert library.ardiff_set_cpu_isa(isa.encode()) == 0
    assert library.ardiff_cpu_isa().decode() == isa
    torch.manual_seed(case)
    dtype = [torch.float32, torch.float16, torch.bfloat16, torch.float32][case]
    for rows, d in [*SHAPES, (64, 1024)]:
        where = place(rows)
        given = options_of(case, rows, d, d, dtype)
        if case >= 3:
            given["noise2"] = torch.randn(rows, d)
        out = torch.randn(rows, d).to(dtype)
        state = [torch.randn(rows, d + 3)[:, :d] for _ in range(3)]
        wanted = ops.uld_step(*state[:2], out, state[2], *where, **given)
        copy = torch.full((rows, d), torch.nan, dtype=torch.bfloat16)
        args = c.step_args(state[0], out, *where, threads=case, z_model=copy, **given)
        assert library.ardiff_uld_step(*map(c.matrix, state), args) == OK
        for name, found, expected in zip("zva", state, wanted, strict=True):
            assert torch.equal(found, expected), (rows, d, name)
        assert torch.equal(copy, wanted[0].bfloat16())

        kind = torch.bfloat16 if case == 2 else torch.float32
        width, memory_columns = (2 * d if case == 1 else d), [1, 1, 2, 3][case] * d
        given = options_of(case, rows, width, d, dtype)
        x, memory = torch.randn(rows, d).to(kind), torch.randn(rows, memory_columns).to(kind)
        out, x0 = torch.randn(rows, width).to(dtype), torch.full((rows, d), torch.nan).to(kind)
        clamp = 0.7 if case == 3 else None
        wanted = ops.diffusion_step(x, out, memory, *where, x0_clamp=clamp, **given)
        args = c.step_args(x, out, *where, threads=case, x0_clamp=clamp, **given)
        state = (c.matrix(x), c.matrix(memory), memory_columns, c.matrix(x0))
        assert library.ardiff_diffusion_step(*state, args) == OK
        for name, found, expected in zip("xm0", (x, memory, x0), wanted, strict=True):
            assert torch.equal(found, expected), (rows, d, name)
    library.ardiff_set_cpu_isa(b"")


def test_normals_and_coefficients(library, exact):
    key, stream = torch.tensor([2**62 + 5]), torch.tensor([0, -1, 2**40])
    out = torch.full((3, 530), torch.nan)
    status = library.ardiff_philox_normal(
        c.matrix(out), 3, 530, int(key), 2**32 - 1, stream.data_ptr()
    )
    assert status == OK and torch.equal(out, ops.philox_normal(key, 2**32 - 1, stream, 530))
    start, end = torch.tensor([0.5]), torch.tensor([0.0, 0.75, 3e6])
    address = int(key), stream.data_ptr()
    status = library.ardiff_brownian_increment(
        c.matrix(out), 3, 530, *address, c.each(start), c.each(end)
    )
    wanted = ops.brownian_increment(key, stream, start, end, 530)
    assert status == OK and torch.equal(out, wanted)
    for gamma, tau in ((2.0, 0.3), (1e-6, 1e-3), (40.0, 3.0)):
        found = c.UldCoefs()
        assert library.ardiff_uld_coefficients(gamma, tau, found) == OK
        wanted = host.uld_coefficients(gamma, tau)
        for name in c.UldCoefs.NAMES:
            assert getattr(found, name) == pytest.approx(wanted[name], rel=1e-15)
    high, low = ctypes.c_float(), ctypes.c_float()
    library.ardiff_split(1 - 1e-9, high, low)
    assert high.value == 1.0 and low.value == pytest.approx(-1e-9, rel=1e-6)


def spoil(name, value):
    def change(args):
        target, *path = name.split(".")
        for part in path:
            args, target = getattr(args, target), part
        setattr(args, target, value)

    return change


BAD_ARGS = {
    "args.struct_size is 8": spoil("struct_size", 8),
    "args.struct_size is 100000": spoil("struct_size", 100000),
    "rows must not be negative, got -1": spoil("rows", -1),
    "columns must lie in [1, 8589934592], got 0": spoil("columns", 0),
    "coef must be a table [coef_rows, 20] with coef_rows >= 1, got 0 rows": spoil("coef_rows", 0),
    "coef must be a table [coef_rows, 20] with coef_rows >= 1, got 4 rows at": spoil("coef", None),
    "row.data must not be NULL": spoil("row.data", None),
    "row must have count 1 or 3, got 2": spoil("row.count", 2),
    "draw must have count 1 or 3, got 0": spoil("draw.count", 0),
    "stream must not be NULL": spoil("stream", None),
    "model_out.data must not be NULL": spoil("model_out.data", None),
    "model_out must be float32 or float16 or bfloat16, got dtype 3": spoil("model_out.dtype", 3),
    "model_columns must be 5": spoil("model_columns", 4),
    "threads must not be negative, got -2": spoil("threads", -2),
    "uncond_out and guidance go together": spoil("guidance.data", None),
    "uncond_out must be float32, got dtype 1": spoil("uncond_out.dtype", 1),
    "noise and noise2 go together": spoil("noise2.data", None),
    "z_model must be bfloat16, got dtype 0": spoil("z_model.dtype", 0),
    "noise must be aligned to its elements of 4 bytes": lambda args: setattr(
        args.noise, "data", args.noise.data + 2
    ),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sizes in messages are those of x86-64")
@pytest.mark.parametrize("message", BAD_ARGS)
def test_bad_arguments_are_refused_before_anything_is_written(library, message):
    torch.manual_seed(0)
    rows, d = 3, 5
    z, v, anchor = before = [torch.randn(rows, d) for _ in range(3)]
    given = {
        "uncond_out": torch.randn(rows, d), "guidance": torch.randn(1),
        "noise": torch.randn(rows, d), "noise2": torch.randn(rows, d),
        "z_model": torch.zeros(rows, d, dtype=torch.bfloat16),
    }  # fmt: skip
    state, where, out = [t.clone() for t in before], place(rows), torch.randn(rows, d)
    args = c.step_args(state[0], out, *where, **given)
    BAD_ARGS[message](args)
    assert library.ardiff_uld_step(*map(c.matrix, state), args) == INVALID
    found = library.ardiff_last_error().decode()
    assert found.startswith("uld_step: ") and message in found
    assert all(map(torch.equal, state, before))


def test_bad_states_are_refused(library):
    x, out, where = torch.zeros(3, 5), torch.zeros(3, 5), place(3)
    args = c.step_args(x, out, *where)
    good, none = c.matrix(x), c.Matrix()
    other, third = torch.zeros(3, 5), torch.zeros(3, 5)
    overlapping = c.Matrix(other.data_ptr(), 4, 0)
    half = c.Matrix(other.data_ptr(), 5, 1)

    def refused(message: str, call: str, *arguments) -> None:
        assert getattr(library, call)(*arguments) == INVALID
        assert message in library.ardiff_last_error().decode()

    uld, diffusion = "ardiff_uld_step", "ardiff_diffusion_step"
    refused("uld_step: args must not be NULL", uld, good, good, good, None)
    refused("v.data must not be NULL", uld, good, none, c.matrix(third), args)
    refused("z and v are both written", uld, good, good, c.matrix(third), args)
    refused("at least 5, got 4", uld, good, overlapping, c.matrix(third), args)
    refused("v must be float32, got dtype 1", uld, good, half, c.matrix(third), args)
    refused("memory_columns must be 5", diffusion, good, c.matrix(other), 6, none, args)
    refused("x must be float32 or bfloat16", diffusion, half, half, 5, none, args)
    args.x0_clamp = -1.0
    refused("x0_clamp must be positive", diffusion, good, c.matrix(other), 5, none, args)
    args = c.step_args(x, out, *where, noise2=torch.zeros(3, 5))
    refused("noise2 must be absent", diffusion, good, c.matrix(other), 5, none, args)
    normal, stream = "ardiff_philox_normal", where[4].data_ptr()
    refused("counter must lie in [0, 4294967295]", normal, good, 3, 5, 0, 2**32, stream)
    refused("stream must not be NULL", normal, good, 3, 5, 0, 1, None)
    increment, one, two = "ardiff_brownian_increment", torch.ones(1), torch.ones(2)
    negative = -one
    address = good, 3, 5, 0, stream
    refused("end must have count 1 or 3, got 2", increment, *address, c.each(one),
            c.each(two))  # fmt: skip
    refused("start.data must not be NULL", increment, *address, c.each(None), c.each(one))
    refused(
        "times must lie in [0, 2^32), got -1", increment, *address, c.each(one), c.each(negative)
    )
    refused("must be positive and finite, got gamma 0", "ardiff_uld_coefficients", 0.0, 1.0,
            c.UldCoefs())  # fmt: skip
    assert not x.any()
