"""How the C++ CPU library computes here: its instruction set, and its products of bfloat16 and int8
data."""

from __future__ import annotations

import ctypes

from . import load

ISAS = ("scalar", "avx2", "avx512")
DOTS = ("common", "avx512_bf16", "amx", "emulated_avx512_bf16", "emulated_amx")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(load.CPU.path))


def current_isa() -> str:
    """The instruction set in use; `unavailable` where ARDIFF_CPU_ISA names none that this CPU has;
    empty if the library is not built."""
    if not load.CPU.loaded:
        return ""
    function = _library().ardiff_cpu_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def set_isa(name: str) -> bool:
    """Choose an instruction set for all later calls, the best one by an empty name."""
    return _library().ardiff_set_cpu_isa(name.encode()) == 0


def current_dots() -> str:
    """Of `DOTS`, what is in use; `unavailable` and empty as for :func:`current_isa`."""
    if not load.CPU.loaded:
        return ""
    function = _library().ardiff_cpu_dots
    function.restype = ctypes.c_char_p
    return function().decode()


def set_dots(name: str) -> bool:
    """Choose one of `DOTS` for all later calls, the best one by an empty name."""
    return _library().ardiff_set_cpu_dots(name.encode()) == 0
