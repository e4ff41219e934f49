"""Tables have one order of columns, that of each op's `COLUMNS`: the C++ headers follow it."""

from __future__ import annotations

import re
from pathlib import Path

from ardiff_kernels.ops._shared import columns

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "csrc").is_dir())


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
    assert int(width) == columns.WIDTH


def test_columns_are_not_counted_by_hand():
    """No coefficient is read by a number in C++, CUDA and the sanitizers' tests."""
    by_number = re.compile(r"\b(?:c|coef|row)\[\d+\]")
    files = [*(ROOT / "csrc").rglob("*"), *(ROOT / "tests").rglob("*.h")]
    readers = [path for path in files if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    found = {}
    for path in readers:
        text = path.read_text()
        if "columns.h" in text or "kColumns" in text or "_row(" in text or "coef" in text:
            found[path.name] = by_number.findall(text)
    assert len(found) > 10
    assert not {name: hits for name, hits in found.items() if hits}
