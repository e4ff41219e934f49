"""What is looked at once when the package is imported: that ARDIFF_BACKEND and ARDIFF_CPU_ISA name
what can serve here, and that some kernels do."""

from __future__ import annotations

import os
import warnings

from . import testing
from .dispatch import backends, cpu, library, load

_DEVICES = ("cpu", "cuda")
ONLY_REFERENCE = (
    "no compiled kernels can serve here, so that every op runs in plain PyTorch (the backend "
    "`reference`), tens to hundreds of times slower on a CPU"
)
REMEDY = (
    "To get the C++ kernels install a wheel that holds them, or g++ and then ardiff-kernels again "
    "from its sources with ARDIFF_REQUIRE_BUILD=1 (ENVS.md), which makes a failed build an error"
)


def start() -> None:
    """Register the backends.

    Raises:
        ValueError: ARDIFF_BACKEND is no backend.
        RuntimeError: ARDIFF_BACKEND, or ARDIFF_CPU_ISA, cannot serve here; the message says what
            can.
    """
    _check_cpu_isa()
    try:
        backends.initialise()
    except (RuntimeError, ValueError) as error:
        usable = ", ".join(usable_backends())
        raise type(error)(
            f"ARDIFF_BACKEND: {error}; set one that can serve here ({usable}) or unset it"
        ) from None
    if os.environ.get("ARDIFF_BACKEND") != "reference" and only_reference():
        warnings.warn(
            f"ardiff_kernels: {ONLY_REFERENCE} ({load.CPU.reason}). {REMEDY}; "
            "ARDIFF_BACKEND=reference takes it as it is, without this warning.",
            RuntimeWarning,
            stacklevel=3,
        )


def usable_backends() -> list[str]:
    """The backends that can serve some op on some device here."""
    return [
        name
        for name in backends.BACKENDS
        if any(not backends.unusable(op, name, d) for op in library.CHECKS for d in _DEVICES)
    ]


def only_reference() -> bool:
    """Whether, with no backend forced, every op would run on `reference` on every device here."""
    chosen = {backends.default_backend(op, d) for op in library.CHECKS for d in _DEVICES}
    return chosen <= {"reference", None}


def _check_cpu_isa() -> None:
    if load.CPU.loaded and cpu.current_isa() == "unavailable":
        raise RuntimeError(
            f'ARDIFF_CPU_ISA is "{os.environ.get("ARDIFF_CPU_ISA")}", but this CPU can run '
            f"{', '.join(testing.cpu_isas())}; set one of these or unset it"
        )
