"""Tables have one order of columns, that of each op's `COLUMNS`: C++, Triton and references follow
it."""

from __future__ import annotations

import re

import pytest

from ardiff_kernels.ops._shared import columns
from tests import ROOT

SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}


def test_the_header_is_what_its_generator_prints():
    found = (ROOT / "csrc/math/columns.h").read_text()
    command = "python -m ardiff_kernels.ops._shared.columns > csrc/math/columns.h"
    assert found == columns.header(), f"run {command}"


def test_the_c_interface_names_the_same_columns():
    text = (ROOT / "csrc/capi/ardiff.h").read_text()
    names = re.search(r"enum ardiff_uld_column \{(.*?)\}", text, re.DOTALL)[1]
    expected = [f"ARDIFF_{name.upper()}" for name in columns.ULD]
    assert re.findall(r"\w+", names) == expected
    (width,) = re.findall(r"#define ARDIFF_COEF_COLUMNS (\d+)", text)
    assert int(width) == columns.TABLE_WIDTH


def test_no_column_is_a_number():
    """Where C++ or CUDA code reads a table, and in the sanitizers' tests, columns have names."""
    files = [*(ROOT / "csrc").rglob("*"), *(ROOT / "tests").rglob("*.h")]
    texts = {path: path.read_text() for path in files if path.suffix in SUFFIXES}
    readers = {path.name: text for path, text in texts.items() if "Column" in text}
    assert len(readers) > 10
    numbers = {name: re.findall(r"\b(?:c|coef)\[\d+\]", text) for name, text in readers.items()}
    assert not {name: found for name, found in numbers.items() if found}


# In Python: an offset from the pointer to a row, a column of a table, some of its columns unpacked,
# and the width of a row.
NUMBERS = re.compile(
    r"\bc \+ \d+|\bcoef\w*\[[^\]\n]*, *-?\d*:?-?\d+[^\]\n]*\]|\.unbind\(1\)\[|\* 16\b"
)


def test_no_column_is_a_number_in_python():
    """Nor where a reference or a Triton kernel reads a table, or a test of kernels writes one."""
    folders = [ROOT / "ardiff_kernels/ops", ROOT / "tests/kernels", ROOT / "tests/_support"]
    texts = {path: path.read_text() for folder in folders for path in folder.rglob("*.py")}
    readers = {path: text for path, text in texts.items() if "COLUMN" in text}
    assert len(readers) > 10
    numbers = {str(path.relative_to(ROOT)): NUMBERS.findall(text) for path, text in readers.items()}
    assert not {name: found for name, found in numbers.items() if found}


@pytest.mark.parametrize(
    "line",
    [
        "z_1 = tl.load(c + 5)",
        "z_z, z_z_lo = c.unbind(1)[:14]",
        "coef[3, 7] = 0.0",
        "coef[:, 12:] = 0.0",
        "c = coef_ptr + row.to(tl.int64) * 16",
    ],
)
def test_a_number_is_found(line):
    assert NUMBERS.search(line)


def test_the_noise_has_one_counter_word():
    """Purposes and the word that holds them have names in the kernels too."""
    for path in (ROOT / "ardiff_kernels/ops").rglob("triton*.py"):
        assert not re.search(r"draw.*<< *\d", path.read_text()), path
