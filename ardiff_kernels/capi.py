"""Where an installation holds the C interface (docs/integrations/cpp.md); as a script it prints
`FOLDER` for CMake: `-DCMAKE_PREFIX_PATH=$(python -m ardiff_kernels.capi)`."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().with_name("libardiff")  # include, lib, lib/cmake/ardiff


def main() -> int:
    """Prints the folder; where it was not built, 1 and one line on stderr."""
    if not (FOLDER / "include" / "ardiff.h").exists():
        print(f"ardiff: the C interface was not built ({FOLDER} is missing)", file=sys.stderr)
        return 1
    print(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
