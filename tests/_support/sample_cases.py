"""Samples whose bits are recorded: `ardiff.sample` and `ardiff.loop.run.run` with every solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ardiff
from ardiff.loop.run import run
from ardiff.noise import initial_state
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.paths import PATHS, PREDICTIONS
from tests._support.exact import ExactModel, numbers, used_columns

GRID = {"ratio_max": 39.5, "ratio_min": 0.0021}  # asked for here alone, see rounded_tables
PLACES = (("ou", "score"), ("vp-cosine", "v_prediction"), ("edm", "epsilon"), ("flow", "flow"))
# A solver's place in this order says on which path its cases run, so that new ones go to the end.
_FIRST = (
    *("ddim", "ddpm", "ddpm-ei", "dpmpp-2m", "dpmpp-2m-sde", "flow-euler", "flow-sde", "heun"),
    *("rtk-baoab", "rtk-harmonic", "rtk-harmonic-mala", "rtk-hmc", "rtk-hybrid", "rtk-mala"),
    *("rtk-mala-projected", "rtk-obabo", "rtk-ubu", "rtk-ula", "rtk-uld", "unipc"),
)
_LAST = ("dpum",)
ORDER = (*_FIRST, *(solver for solver in SOLVERS if solver not in _FIRST + _LAST), *_LAST)
DIM = 21
SHAPE = (3, DIM)
KEY = torch.tensor([-3])


class Case(NamedTuple):
    """What is drawn, and where its bits are the same.

    Attributes:
        draw: returns the tensors whose bits count.
        backend: of `ardiff_kernels`; on `cpu` all instruction sets give the same bits.
        depends: what else the bits depend on, "" for nothing: see :mod:`tests._support.exact`.
        needs: a package that is needed.
    """

    draw: Callable[[], tuple[Tensor, ...]]
    backend: str = "cpu"
    depends: str = ""
    needs: str = ""


def table_of(solver: str, path: str, prediction: str, steps: int = 14, **options: Any):
    """A table on the grid of this module."""
    if "dim" in solver_options(solver):
        options.setdefault("dim", DIM)
    where = {"path": path, "prediction": prediction, "steps": steps}
    return ardiff.solver(solver, **where, **(GRID | options))


def sampled(
    solver: str,
    path: str,
    prediction: str,
    *,
    shape: tuple[int, ...] = SHAPE,
    steps: Any = 14,
    energy: bool = False,
    asked: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """`ardiff.sample` with a solver by name: `asked` are its arguments, `options` the solver's."""
    model = ExactModel(path, prediction)
    if energy:
        asked = {"energy_fn": model.energy, **(asked or {})}
    x = ardiff.sample(
        model, shape, path, prediction, solver, steps, **{"seed": 11, **(asked or {})},
        **(GRID | options),
    )  # fmt: skip
    return (x,)


def ran(
    solver: str,
    place: tuple[str, str],
    *,
    steps: int | tuple[int, ...] = 14,
    index: Sequence[int] | None = None,
    energy: bool = False,
    key: Any = KEY,
    draws_noise: bool = False,
    table: ardiff.StepTable | None = None,
    **given: Any,
) -> tuple[Tensor, ...]:
    """`ardiff.loop.run.run`: the state, and every decision and its log-ratio.

    Sample i runs the table of ``steps[index[i]]`` steps, where there is an index, or that of the
    solver ``solver.split("+")[index[i]]``; or `table` is given.
    """
    options = {name: given.pop(name) for name in ("accept",) if name in given}
    if table is not None:
        pass
    elif index is None:
        table = table_of(solver, *place, steps=steps, **options)
    elif "+" in solver:
        table = ardiff.RaggedTable([table_of(s, *place, steps) for s in solver.split("+")], index)
    else:
        table = ardiff.RaggedTable([table_of(solver, *place, n, **options) for n in steps], index)
    model, decisions, stream = ExactModel(*place), [], torch.arange(3) * 2**20 + 5
    if energy:
        given["energy_fn"] = model.energy
    if draws_noise:
        given["noise"] = numbers(len(table), *SHAPE, seed=8)
    x = initial_state(table, key, stream, DIM)
    x = run(table, model, x, key=key, stream=stream, decisions=decisions, **given)
    return x, *(d.accepted for d in decisions), *(_finite(d.log_alpha) for d in decisions)


def _finite(log_alpha: Tensor) -> Tensor:
    """NaN is of samples that were not there, -inf of proposals outside their ball."""
    return log_alpha.nan_to_num(nan=9.0, neginf=-1e9)


def of_tables() -> Iterator[tuple[str, Case]]:
    """Every solver on every path with every prediction."""
    for solver in SOLVERS:
        for path in PATHS:
            for prediction in PREDICTIONS:
                draw = partial(sampled, solver, path, prediction)
                yield f"sample/{solver}/{path}/{prediction}", Case(draw)


def _place(i: int) -> tuple[str, str]:
    return PLACES[i % len(PLACES)]


ADJUSTED = tuple(s for s in SOLVERS if "accept" in solver_options(s))
PLAIN = tuple(s for s in SOLVERS if not s.startswith("rtk-") and s != "dpum") + (
    "rtk-harmonic", "rtk-hybrid", "rtk-ula",
)  # fmt: skip
GUIDED = {"condition": 0.5, "uncond": -0.25, "guidance": torch.tensor([1.5, 0.0, 2.25])}
THREE_WAY = {**GUIDED, "uncond2": 0.125, "guidance2": torch.tensor([0.75])}
CONDITION = numbers(3, 1, seed=3)
ARGUMENTS = {
    "guided": {"condition": CONDITION, "uncond": 0.25, "guidance": 1.75},
    "guided-each": GUIDED,
    "three-way": {**GUIDED, "uncond2": CONDITION, "guidance2": 0.75},
    "temperature": {"temperature": torch.tensor([0.5, 1.0, 0.0])},
    "addressed": {"sample_ids": [5, 2**43 - 1, 7], "patch": 9, "seed": -(2**63) + 5},
    "guided-cool": {**GUIDED, "temperature": 0.75, "seed": 2**62},
}


def of_arguments() -> Iterator[tuple[str, Case]]:
    """Every solver guided, cooled, ragged, with ids of its own; a path and prediction each."""
    for i, solver in enumerate(ORDER):
        for j, (name, asked) in enumerate(ARGUMENTS.items()):
            yield (
                f"sample/{solver}/{name}",
                Case(partial(sampled, solver, *_place(i + j), asked=asked)),
            )
        for j, (name, steps) in enumerate(
            {"ragged": [14, 12, 18], "ragged-same": [13] * 3}.items()
        ):
            draw = partial(sampled, solver, *_place(i + j), steps=steps)
            yield f"sample/{solver}/{name}", Case(draw)
        draw = partial(
            sampled, solver, *_place(i), steps=torch.tensor([12, 16, 12]), asked=THREE_WAY
        )
        yield f"sample/{solver}/ragged-three-way", Case(draw)
        draw = partial(sampled, solver, *_place(i + 1), shape=(2, 3, 29))
        yield f"sample/{solver}/channels", Case(draw)
        if solver in PLAIN:
            draw = partial(sampled, solver, *_place(i), asked={"x0_clamp": 0.5})
            yield f"sample/{solver}/x0-clamp", Case(draw)
            draw = partial(sampled, solver, *_place(i + 1), asked={"dtype": torch.bfloat16})
            yield f"sample/{solver}/bfloat16", Case(draw)
        if solver in ADJUSTED:
            for j, low in enumerate((0.3, 0.8)):
                asked = {"adapt": "sample", "target_acceptance": low}
                draw = partial(sampled, solver, *_place(i + j), steps=40, asked=asked)
                yield f"sample/{solver}/adapt-{low}", Case(draw)


OPTIONS = {
    "ddim": [{"eta": 1.0}, {"eta": 0.5}],
    "dpmpp-2m-sde": [{"eta": 0.5}, {"eta": 0.0}, {"solver_type": "heun"}],
    "flow-sde": [{"grid": "uniform"}],
    "flow-euler": [{"grid": "uniform"}],
    "heun": [{"grid": "karras", "rho": 5.5}],
    "ddpm": [{"steps": 1}, {"grid": "karras", "rho": 5.5}],
    "rtk-hmc": [{"refresh": "persistent", "inner": 2, "steps": 30}, {"leapfrog": 3, "steps": 30}],
    "rtk-mala-projected": [{"ball_radius": 4.0, "step_radius": 1.5}],
    "rtk-harmonic-mala": [{"gamma": 0.0}, {"window_low": 0.05, "window_high": 3.0}],
}
SHARED = [
    {"stages": 3, "inner": 3, "tau": 0.35, "steps": 60},
    {"warm_start": "gaussian-factor", "stages": 2, "inner": 9, "steps": 60},
]


def of_options() -> Iterator[tuple[str, Case]]:
    """The solvers' own options, grids, and tables that do not end with a data prediction."""
    for i, solver in enumerate(ORDER):
        own, place = solver_options(solver), _place(i)
        found = [{"denoise_last": False}, *OPTIONS.get(solver, [])]
        found += [o for o in SHARED if set(o) - {"steps"} <= set(own)]
        for given in found:
            name = ",".join(f"{key}={value}" for key, value in given.items())
            yield f"sample/{solver}/{name}", Case(partial(sampled, solver, *place, **given))


def of_decisions() -> Iterator[tuple[str, Case]]:
    """Accept rows by each rule, decisions included; guided, ragged and by energies."""
    guided = {**GUIDED, "guidance": torch.tensor([1.5, 0.5, 2.0])}
    for i, solver in enumerate(ADJUSTED):
        for j, accept in enumerate(("trapezoid", "simpson", "energy")):
            options = {"accept": accept, "energy": accept == "energy"}
            for k in range(2):
                place = _place(i + j + 2 * k)
                draw = partial(ran, solver, place, steps=40, **options)
                yield f"run/{solver}/{accept}/{place[0]}", Case(draw)
            draw = partial(ran, solver, place, steps=40, **options, **guided)
            yield f"run/{solver}/{accept}/guided", Case(draw)
            draw = partial(ran, solver, place, steps=(40, 24), index=[0, 1, 0], **options)
            yield f"run/{solver}/{accept}/ragged", Case(draw)


def of_keys() -> Iterator[tuple[str, Case]]:
    """Samples with keys of their own, also ragged and guided; noise that is given."""
    keys = [(slice(0, 1), torch.tensor([4])), (slice(1, 3), torch.tensor([-9]))]
    scale = torch.tensor([0.5, 1.0, 1.25])
    three_way = {**THREE_WAY, "noise_scale": scale}
    for i, solver in enumerate(ORDER):
        place = _place(i)
        yield f"run/{solver}/keys", Case(partial(ran, solver, place, key=keys))
        draw = partial(ran, solver, place, steps=(12, 18), index=[1, 0, 1], key=keys, **three_way)
        yield f"run/{solver}/keys-ragged-three-way", Case(draw)
        if solver in PLAIN:
            draw = partial(ran, solver, place, draws_noise=True, noise_scale=scale)
            yield f"run/{solver}/noise-given", Case(draw)
    mixed = "rtk-mala+rtk-uld+ddpm"
    for name, key in (("keys", keys), ("key", KEY)):
        draw = partial(ran, mixed, ("edm", "epsilon"), index=[1, 0, 2], key=key)
        yield f"run/{mixed}/{name}", Case(draw)


def adapted(solver: str, place: tuple[str, str]) -> tuple[Tensor, ...]:
    """A table whose tau a pilot has adapted, and samples by it."""
    model = ExactModel(*place)
    options = {"path": place[0], "prediction": place[1], "steps": 20, **GRID}
    table = ardiff.adapted_solver(solver, model, DIM, passes=3, pilot_ids=range(8), **options)
    return torch.tensor(used_columns(table)), ardiff.sample(model, SHAPE, table=table, seed=0)


def of_adapted() -> Iterator[tuple[str, Case]]:
    for i, solver in enumerate(ADJUSTED):
        yield f"adapted/{solver}", Case(partial(adapted, solver, _place(i)))


def of_backends() -> Iterator[tuple[str, Case]]:
    """Every solver by the reference, and by Triton, where few and small programs have to do."""
    for i, solver in enumerate(ORDER):
        three_way = {**THREE_WAY, "guidance": torch.tensor([1.5, 0.5]), "temperature": 0.75}
        for name, asked in {"plain": {}, "three-way": three_way}.items():
            draw = partial(sampled, solver, *_place(i), shape=(2, 5), steps=7, asked=asked)
            yield f"reference/{solver}/{name}", Case(draw, "reference")
        draw = partial(sampled, solver, *_place(i), shape=(2, 5), steps=7)
        yield f"triton/{solver}", Case(draw, "triton")


def sample_cases() -> dict[str, Case]:
    """All of the above by name."""
    makers = (
        of_tables, of_arguments, of_options, of_decisions, of_keys, of_adapted, of_backends,
    )  # fmt: skip
    return {name: case for maker in makers for name, case in maker()}
