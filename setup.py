"""Builds the C++ libraries with CMake and installs the Python packages.

The Python packages work without the libraries, so a library that cannot be built is one sentence
on stderr and in ardiff_kernels/_build_failure.txt, which ardiff_kernels quotes when it misses the
library, not a failed installation, unless ARDIFF_REQUIRE_BUILD=1. What an installation holds stands
in pyproject.toml, what a source distribution holds beside that in MANIFEST.in. See ENVS.md for the
variables read here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:  # for the license in pyproject.toml
    sys.exit(
        f"ardiff-kernels needs setuptools 77 or newer to be built, found {setuptools.__version__}: "
        "pip install -U setuptools"
    )
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = "80;90"


class BuildError(Exception):
    """A library cannot be built; the message is one sentence."""


def flag(name: str) -> bool | None:
    """An on/off environment variable; None when it is not set."""
    value = os.environ.get(name, "")
    return None if value == "" else value not in ("0", "OFF", "off", "false", "no")


def find_tool(name: str, hint: str) -> str:
    beside_python = shutil.which(name, path=str(Path(sys.executable).parent))
    path = beside_python or shutil.which(name)
    if path is None:
        raise BuildError(f"{name} was not found ({hint})")
    return path


def find_compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    raise BuildError("no C++ compiler was found (install g++ or set CXX)")


def torch_folder() -> Path:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch was not found in this Python (install torch 2.10 or newer first)")
    return Path(spec.origin).parent


def torch_versions(folder: Path) -> tuple[str, str | None]:
    """Version and CUDA version of the installed torch, read without importing it."""
    text = (folder / "version.py").read_text()
    version = re.search(r"__version__ = '([^']+)'", text)
    cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.MULTILINE)
    if version is None:
        raise BuildError(f"the version of torch could not be read from {folder / 'version.py'}")
    if tuple(int(n) for n in re.findall(r"\d+", version[1])[:2]) < (2, 10):
        raise BuildError(f"torch {version[1]} is too old (2.10 or newer is needed)")
    return version[1], cuda[1] if cuda else None


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME (or CUDA_PATH) where that is set, else of PATH or the usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_to_use(torch_cuda: str | None) -> str | None:
    """nvcc when the CUDA library is to be built: asked for, or both nvcc and a CUDA torch here."""
    wanted = flag("ARDIFF_BUILD_CUDA")
    if wanted is False or (wanted is None and torch_cuda is None):
        return None
    nvcc = find_nvcc()
    if nvcc is None and wanted:
        raise BuildError("ARDIFF_BUILD_CUDA=1 but nvcc was not found (set CUDA_HOME or PATH)")
    return nvcc


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", text)
    return found[1] if found else "unknown"


def run(command: list[str], what: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        raise BuildError(f"{what} failed: {(errors or ['see the output above'])[0].strip()}")


class CMakeBuild(build_ext):
    """Drives CMake; the products lie in ardiff_kernels/ of the source tree or of build_lib."""

    def in_place(self) -> bool:
        return bool(self.inplace or getattr(self, "editable_mode", False))

    def destination(self) -> Path:
        root = ROOT if self.in_place() else Path(self.build_lib).resolve()
        return root / "ardiff_kernels"

    def run(self) -> None:
        target = self.destination()
        target.mkdir(parents=True, exist_ok=True)
        # A library of an earlier build would be loaded in the place of one that fails now.
        for path in target.glob("*.so"):
            path.unlink()
        shutil.rmtree(target / "libardiff", ignore_errors=True)
        failures = []
        try:
            self.build_all(target, failures)
        except BuildError as error:
            failures.append(f"the C++ kernels were not built: {error}")
        note = target / "_build_failure.txt"
        note.unlink(missing_ok=True)
        if failures:
            note.write_text("\n".join(failures) + "\n")
            for failure in failures:
                print(f"ardiff-kernels: {failure}", file=sys.stderr)
            if flag("ARDIFF_REQUIRE_BUILD"):
                sys.exit(f"ARDIFF_REQUIRE_BUILD=1: {failures[0]}")

    def build_all(self, target: Path, failures: list[str]) -> None:
        compiler = find_compiler()
        cmake = find_tool("cmake", "pip install cmake")
        torch = torch_folder()
        torch_version, torch_cuda = torch_versions(torch)
        nvcc = None
        try:
            nvcc = nvcc_to_use(torch_cuda)
        except BuildError as error:
            failures.append(f"the CUDA kernels were not built: {error}")
        parent = ROOT / "build" if self.in_place() else Path(self.build_temp).resolve()
        folder = parent / re.sub(r"[^\w.]+", "-", f"cmake-torch-{torch_version}")
        options = {
            "CMAKE_CXX_COMPILER": compiler,
            "CMAKE_BUILD_TYPE": "Release",
            "ARDIFF_OUTPUT_DIR": target,
            "ARDIFF_TORCH_DIR": torch,
            "ARDIFF_TORCH_VERSION": torch_version,
            "ARDIFF_BUILD_CAPI": "ON",
            "CMAKE_INSTALL_LIBDIR": "lib",
            "ARDIFF_NVCC": nvcc or "",
            "ARDIFF_CUDA_VERSION": nvcc_version(nvcc) if nvcc else "",
            "ARDIFF_CUDA_ARCHS": os.environ.get("ARDIFF_CUDA_ARCHS") or DEFAULT_CUDA_ARCHS,
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(folder)]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        if not (folder / "CMakeCache.txt").exists():
            configure += self.generator()
        run(configure, "CMake's configuration")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        build = [cmake, "--build", str(folder), "-j", jobs, "--target"]
        run([*build, "_C", "_host", "ardiff"], "compiling the C++ kernels")
        prefix = str(target / "libardiff")
        run([cmake, "--install", str(folder), "--prefix", prefix], "installing the C interface")
        if nvcc:
            try:
                run([*build, "_C_cuda"], "compiling the CUDA kernels")
            except BuildError as error:
                failures.append(f"the CUDA kernels were not built: {error}")

    @staticmethod
    def generator() -> list[str]:
        try:
            return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', '')}"]
        except BuildError:
            return []

    def get_outputs(self) -> list[str]:
        return [str(path) for path in sorted(self.destination().glob("*.so"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """For every Python 3, since no library uses Python's ABI, and for this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("ardiff_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
