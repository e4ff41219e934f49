"""Tables have one order of columns, that of each op's `COLUMNS`: the C++ headers follow it."""

from __future__ import annotations

import re

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
