"""What a source distribution holds, and what the wheel that is built from it alone holds: every
module, the libraries, the shipped model, the license and the command `ardiff`."""

from __future__ import annotations

import configparser
import email
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import ardiff
import ardiff_kernels
from ardiff_kernels import testing
from tests import ROOT
from tests._support import build_cache

SOURCES = {"ardiff": "python/ardiff", "ardiff_kernels": "ardiff_kernels"}
LIBRARIES = ("_C.so", "_host.so", "libardiff/lib/libardiff.so.2")
NAME = f"ardiff_kernels-{ardiff_kernels.__version__}"
# The AVX-512 kernels are compiled for AVX2, their vectors split in two, so that every x86 runs
# them; without optimisation, which takes a third of the time.
CMAKE_ARGS = (
    "-DARDIFF_SPLIT_AVX512=ON -DARDIFF_KERNEL_OPTIMIZATION=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O0"
)


def ignored() -> list[str]:
    """The names that git ignores; no other file or folder of the repository has such a name."""
    lines = (ROOT / ".gitignore").read_text().split()
    return [".git", *(Path(line).name for line in lines)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository: making a source distribution writes into its folder."""
    folder = tmp_path_factory.mktemp("checkout") / "copy"
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*ignored()))


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    """Made where a library of an earlier build lies, and the note of another that failed."""
    folder = tmp_path_factory.mktemp("sdist")
    built = [checkout / "ardiff_kernels" / name for name in ("_C.so", "_build_failure.txt")]
    for path in built:
        path.write_text("of an earlier build")
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder], checkout)
    for path in [*built, *checkout.glob("*.egg-info/*")]:
        path.unlink()
    return folder / f"{NAME}.tar.gz"


def test_the_source_distribution_holds_every_file(checkout, sdist, tmp_path):
    """So that it builds and tests what the repository does; and nothing that was built."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    found = files(tmp_path / NAME)
    made = {name for name in found if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert found - made == files(checkout)
    assert {"csrc/cpu/isa.cpp", "csrc/capi/ardiff.h", "LICENSE", ".ci/run"} <= found


@pytest.fixture(scope="module")
def wheel(checkout, sdist) -> Path:
    """Built from the source distribution alone, without network, and kept by the content of what
    goes into it."""
    compiler = build_cache.find_compiler()
    if not compiler and "CI" not in os.environ:
        pytest.skip("no C++ compiler was found")

    def make(folder: Path) -> None:
        options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
        variables = {"ARDIFF_REQUIRE_BUILD": "1", "ARDIFF_BUILD_CUDA": "0", "MAX_JOBS": "2"}
        command = [sys.executable, "-m", "pip", "wheel", "-q", *options, "-w", folder, sdist]
        run(command, folder, CMAKE_ARGS=CMAKE_ARGS, **variables)

    apart = {"benchmarks", "docs", "examples", "requirements", "tests"}
    paths = [checkout / name for name in files(checkout) if Path(name).parts[0] not in apart]
    facts = [build_cache.compiler_version(compiler), sys.version, CMAKE_ARGS]
    (path,) = build_cache.cached("wheel", paths, facts, make, root=checkout).glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """As pip unpacks it."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed) -> Message:
    return email.message_from_string((installed / f"{NAME}.dist-info/METADATA").read_text())


@pytest.mark.parametrize("package", SOURCES)
def test_every_file_of_a_package_is_installed(checkout, installed, package):
    """So a new package, or a new kind of file in one, cannot be left out."""
    expected = files(checkout / SOURCES[package])
    assert {"__init__.py", "py.typed"} <= expected and len(expected) > 20
    found = {name for name in files(installed / package) if not name.startswith("libardiff/")}
    libraries = {"_C.so", "_host.so"} if package == "ardiff_kernels" else set()
    assert found == expected | libraries


def test_the_shipped_model_is_installed(installed):
    folder = installed / "ardiff/models/pretrained/sun-shadow"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}


def test_the_command_is_installed(installed):
    found = configparser.ConfigParser()
    found.read(installed / f"{NAME}.dist-info/entry_points.txt")
    assert dict(found["console_scripts"]) == {"ardiff": "ardiff.commands._parser:main"}
    module, _, name = found["console_scripts"]["ardiff"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_metadata_and_the_license(installed, metadata):
    assert metadata["Version"] == ardiff.__version__ == ardiff_kernels.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"] and metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_payload().startswith("# ardiff\n")
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= {
        *metadata.get_all("Classifier")
    }
    (name,) = metadata.get_all("License-File")
    text = (installed / f"{NAME}.dist-info/licenses" / name).read_text()
    assert text == (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text


def test_the_tag_is_true(wheel, installed):
    """For every Python 3 on this platform: compiled, and no library uses Python's ABI."""
    tag = f"py3-none-{platform.system().lower()}_{platform.machine()}"
    assert wheel.name == f"{NAME}-{tag}.whl"
    facts = email.message_from_string((installed / f"{NAME}.dist-info/WHEEL").read_text())
    assert (facts["Tag"], facts["Root-Is-Purelib"]) == (tag, "false")
    for name in LIBRARIES:
        symbols = run(["nm", "-D", installed / "ardiff_kernels" / name], installed).split()
        assert {"ardiff_host_philox", "ardiff_cpu_isa"} & set(symbols)
        assert not [symbol for symbol in symbols if symbol.startswith(("Py", "_Py"))]


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_folder_of_the_builder_is_in_a_library(installed, library):
    found = run(["readelf", "-d", installed / "ardiff_kernels" / library], installed)
    assert "NEEDED" in found and "RUNPATH" not in found and "RPATH" not in found


SCRIPT = """
import ardiff, ardiff_kernels
from ardiff.commands._parser import main
print(ardiff.__file__, ardiff_kernels.__file__)
print("status", main(["doctor"]), main(["bench", "ops"]), main(["comfyui", "comfy"]))
"""


def test_the_wheel_works_alone(installed, tmp_path):
    """Away from the repository; the benchmarks need it, and say so."""
    (tmp_path / "comfy/custom_nodes").mkdir(parents=True)
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{installed / 'ardiff'}/__init__.py {installed}/ardiff_kernels/__init__.py"
    assert "library      _C.so: loaded" in lines and "* cpu   cpu        all ops: usable" in lines
    assert any(line.startswith("build        compiler ") for line in lines)
    assert lines[-1] == "status 0 2 0"
    assert "`make build` in a checkout" in done.stderr and "Traceback" not in done.stderr
    node = tmp_path / "comfy/custom_nodes/ardiff_sampler/__init__.py"
    assert "NODE_CLASS_MAPPINGS" in node.read_text()


def test_a_program_in_cxx_is_built_with_the_wheel(checkout, installed, tmp_path):
    """By the header and the CMake package in it, at the folder that a command prints."""
    where = [sys.executable, "-m", "ardiff_kernels.capi"]
    printed = run(where, tmp_path, PYTHONPATH=str(installed))
    prefix = Path(printed.strip())
    assert prefix == installed / "ardiff_kernels/libardiff"
    header = (prefix / "include/ardiff.h").read_text()
    assert header == (checkout / "csrc/capi/ardiff.h").read_text()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    configure = ["cmake", "-S", checkout / "examples/cpp_embed", "-B", "build"]
    run([*configure, f"-DCMAKE_PREFIX_PATH={prefix}"], tmp_path, PATH=path)
    run(["cmake", "--build", "build"], tmp_path, PATH=path)
    said = run(["build/cpp_embed", "samples.bin"], tmp_path)
    assert said.startswith(f"ardiff {ardiff_kernels.__version__}, ")
    assert abs(float(said.split("mean ")[1].split(",")[0]) - 1) < 0.03


@pytest.mark.skipif(platform.machine() != "x86_64", reason="vector kernels are for x86")
@pytest.mark.skipif("avx2" not in testing.cpu_isas(), reason="needs AVX2")
def test_sixteen_lanes_split_over_avx2(installed):
    """The AVX-512 source, its vectors split in two by the compiler, gives scalar's bits: Philox
    words, normals and steps."""
    script = ROOT / "tests/_support/isa_agreement.py"
    output = run([sys.executable, script, "scalar", "avx512"], installed, PYTHONPATH=str(installed))
    assert int(output.split()[0]) > 300
