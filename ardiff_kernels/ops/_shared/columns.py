"""The columns of the coefficient tables as C++ enumerations, from each op's `COLUMNS`.

`python -m ardiff_kernels.ops._shared.columns` prints `csrc/math/columns.h`; run it into that file
after a change of a `COLUMNS`. A test compares the two.
"""

from __future__ import annotations

from ..diffusion_step import COLUMNS as DIFFUSION
from ..lookahead_draft import COLUMNS as LOOKAHEAD
from ..mala_accept import COLUMNS as MALA_ACCEPT
from ..uld_step import COLUMNS as ULD
from .tables import TABLE_WIDTH

TABLES = {
    "UldColumn": ("uld_step", ULD),
    "DiffusionColumn": ("diffusion_step", DIFFUSION),
    "MalaAcceptColumn": ("mala_accept", MALA_ACCEPT),
    "LookaheadColumn": ("the plan of lookahead_draft and lookahead_verify", LOOKAHEAD),
}


def header() -> str:
    """The text of `csrc/math/columns.h`."""
    lines = [
        "// The columns of the ops' coefficient tables. Written by",
        "// `python -m ardiff_kernels.ops._shared.columns` from the COLUMNS of",
        "// ardiff_kernels/ops/<op>/__init__.py: change them there.",
        "#pragma once",
        "",
        "namespace ardiff {",
        "",
        "/// Of every table; those that an op does not name are not read.",
        f"constexpr int kColumns = {TABLE_WIDTH};",
    ]
    for name, (op, columns) in TABLES.items():
        lines += ["", f"/// Of {op}.", f"struct {name} {{", "  enum {"]
        lines += [f"    {column}," for column in columns]
        lines += ["  };", "};"]
    return "\n".join([*lines, "", "}  // namespace ardiff", ""])


if __name__ == "__main__":
    print(header(), end="")
