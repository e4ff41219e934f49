"""What tests compile is kept by content: a change of anything that goes in compiles anew."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import ROOT
from tests._support import build_cache
from tests._support.build_cache import cached, with_included

FILES = {
    "csrc/cuda/op/op.cu": '#include "kernel.cuh"\n#include <cstdio>\nint op;\n',
    "csrc/cuda/op/kernel.cuh": '#if 0\n  #  include "../../math/exp.h"\n#endif\n',
    "csrc/math/exp.h": "int exp_of;\n",
    "csrc/math/other.h": "int other;\n",
}


class StandIn:
    """A tree of sources whose "compiler" puts them together in a file and counts its calls."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.flags = root, 0, ["-O1"]
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def make(self, folder: Path) -> None:
        self.calls += 1
        texts = [path.read_text() for path in self.inputs()]
        (folder / "op.o").write_text("".join([*texts, *self.flags]))

    def inputs(self) -> list[Path]:
        return with_included([self.root / "csrc/cuda/op/op.cu"])

    def build(self) -> str:
        options = {"root": self.root, "folder": self.root / "cache"}
        place = cached("op", self.inputs(), self.flags, self.make, **options)
        return (place / "op.o").read_text()


@pytest.fixture
def tree(tmp_path, monkeypatch) -> StandIn:
    monkeypatch.delenv("ARDIFF_TEST_CACHE", raising=False)
    return StandIn(tmp_path)


def test_the_same_sources_are_compiled_once(tree):
    first = tree.build()
    tree.write("csrc/math/other.h", "int changed;\n")  # which op.cu does not include
    tree.write("csrc/math/exp.h", FILES["csrc/math/exp.h"])  # a new time, the same content
    assert tree.build() == first and tree.calls == 1


@pytest.mark.parametrize("name", [name for name in FILES if "other" not in name])
def test_a_changed_source_or_header_is_compiled(tree, name):
    """A header of a header too, whatever the condition of its include."""
    tree.build()
    tree.write(name, FILES[name] + "int changed;\n")
    assert "int changed;" in tree.build() and tree.calls == 2


def test_other_flags_compile_anew_and_the_old_ones_are_found_again(tree):
    first = tree.build()
    tree.flags = ["-O2"]
    assert tree.build().endswith("-O2") and tree.calls == 2
    tree.flags = ["-O1"]
    assert tree.build() == first and tree.calls == 2


def test_the_variable_turns_it_off(tree, monkeypatch):
    tree.build()
    monkeypatch.setenv("ARDIFF_TEST_CACHE", "0")
    tree.build()
    tree.build()
    assert tree.calls == 3
    assert "`ARDIFF_TEST_CACHE`" in (ROOT / "ENVS.md").read_text()


def test_a_failed_build_leaves_nothing(tree):
    def fail(folder: Path) -> None:
        (folder / "half.o").touch()
        raise RuntimeError("no")

    options = {"root": tree.root, "folder": tree.root / "cache"}
    with pytest.raises(RuntimeError, match="no"):
        cached("op", tree.inputs(), tree.flags, fail, **options)
    assert not list((tree.root / "cache").iterdir())
    tree.build()
    assert tree.calls == 1


def test_two_that_build_at_once_both_find_a_whole_one(tree):
    """Both are held within their build until the other is in its own."""
    both = threading.Barrier(2, timeout=60)

    def make(folder: Path) -> None:
        (folder / "first").touch()
        both.wait()
        (folder / "second").touch()

    def build(_: int) -> Path:
        options = {"root": tree.root, "folder": tree.root / "cache"}
        return cached("op", tree.inputs(), tree.flags, make, **options)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(build, range(2))
    assert one == other and {path.name for path in one.iterdir()} == {"first", "second"}
    assert list((tree.root / "cache").iterdir()) == [one]


def test_few_builds_of_a_name_are_kept(tree):
    for number in range(build_cache.KEPT + 3):
        tree.flags = [f"-O{number}"]
        tree.build()
    assert len(list((tree.root / "cache").iterdir())) == build_cache.KEPT


def test_an_include_that_is_nowhere_is_named(tree):
    tree.write("csrc/math/exp.h", '#include "gone.h"\n')
    with pytest.raises(FileNotFoundError, match=r"exp\.h includes gone\.h"):
        tree.build()


def test_all_that_the_cuda_sources_include_is_found():
    """In csrc alone: torch's headers are included in angle brackets, and known by its version."""
    for source in (ROOT / "csrc/cuda").glob("*/*.cu"):
        names = {str(path.relative_to(ROOT)) for path in with_included([source])}
        assert f"csrc/torch/{source.stem}.h" in names or "csrc/torch/arg.h" in names, source
        assert all(name.startswith("csrc/") for name in names)
