r"""StepTable: a sampler as a table of coefficients, one row per call of a step op.

How to read a row. Each row names its op, and its 20 numbers are that op's columns, drawn below. A
column is a weight: the letter before the underscore is what is made, the one after it is what is
multiplied. So x_0 is the weight of x0 in the new x. A column that is 0 drops its term. All of a row
is read from the old values. `out` is what the model returned, at this row if it calls the model,
else at the last row that did; n, n1 and n2 are fresh standard normals, one per element.

A ``diffusion`` row moves a state x, with a memory beside it of the same shape::

    p_x p_o | x_x x_x_lo x_0 x_m x_d x_n | m_x m_x_lo m_0 | lv_min lv_max | s_x s_m s_2
    \_____/   \________________________/   \____________/   \___________/   \_________/
    x0 =      new x =                      new memory =     n's log-        new memory2 =
     p_x x     x_x x                        m_x x           variance if      s_x x
    +p_o out  +x_0 x0                      +m_0 x0          the model       +s_m memory
              +x_m memory                                   learned it      +s_2 memory2
              +x_d (x - memory)                             (below)
              +x_n n

    x_3 t_2 | x_u m_u
    \_____/   \_____/
    memory3   unconditional prediction (both below)

x0 is the data prediction, p_x and p_o what turns `out` into it. Solvers of second order keep the
last x0 as memory (m_0 = 1); Langevin rows keep the centre of their kernel there, the anchor, by
m_x, and pull towards it by x_d. Where m_x and m_0 are 0 the memory stays, and where s_x, s_m and
s_2 are 0 memory2 stays. DDPM, say, is p_x, p_o, x_x, x_0 and x_n.

- *Second memory.* Where any row of a table has s_x, s_m or s_2, its memory is `[B, 2 d]`: memory,
  then memory2, say the last x0 and the one before (s_m = 1 shifts). x_d then multiplies
  x - memory2, so that a weight w on memory2 is x_d = -w together with w more on x_x.
- *Third memory.* Where any row has x_3 or t_2, the memory is `[B, 3 d]`: new x has x_3 memory3
  besides, and the new memory3 is t_2 memory2; where t_2 is 0 memory3 stays. That is what a method
  of third order needs: three predictions besides the present one.
- *Unconditional prediction.* x_u and m_u are weights, in the new x and in the new memory, of the
  data prediction p_x x + p_o uncond_out of the model without its condition (the ``-cfg-pp`` solvers
  step along its noise); without guidance it is x0.
- *Learned range.* Where any row has lv_min or lv_max, a model may return `[B, 2 d]`, whose second
  half r in [-1, 1] places the log of the noise's variance between the two (Nichol & Dhariwal 2021);
  with a model that returns `[B, d]` the standard deviation is x_n.

A ``uld`` row moves a position z and a velocity v, with an anchor beside them; D = z - anchor, but 0
on a row that sets the anchor::

    z_z z_z_lo z_d z_v z_o z_1 z_2 | v_z v_d v_v v_o v_1 | a_z a_z_lo | 6 unused
    \____________________________/   \_________________/   \________/
    new z =                          new v =               new anchor =
     z_z z                            v_z z                 a_z z, or the anchor
    +z_d D                           +v_d D                 where a_z is 0
    +z_v v                           +v_v v
    +z_o out                         +v_o out
    +z_1 n1 +z_2 n2                  +v_1 n1

n1 is the same normal in both, which makes the noises of z and v correlated. The score is already
worked into the weights of z and `out`: no x0 is formed.

An ``accept`` row compares a proposal y, the state, with its origin x, and keeps one of the two::

    g_z g_d g_o | s_z s_o | c_g c_d c_v | r2 R2 | 10 unused
    \_________/   \_____/   \_________/   \___/
    gradient      score     log of the    balls about x and about 0 (squared radii, 0: none)
    G(z) =        S(z) =    acceptance    that y must lie in
     g_z z         s_z z    ratio =
    +g_d D        +s_o out   c_g (|G(x)|^2 - |G(y)|^2)
    +g_o out                +c_d (y - x).(G(x) + G(y))
                            +c_v (|v_x|^2 - |v_y|^2) / 2
                            + what the trapezoidal rule misses, by S midway or by energies

G is the gradient of g = -log of the target, D the distance from the anchor. Two marks of rows serve
proposals::

    row  op         marks          does
    i    diffusion  saves_origin   keeps x, v and out as the origin; then moves to the proposal
    i+1  accept     midpoint       optional: calls the model halfway, and does nothing else
    i+2  accept                    calls the model at the proposal if no row has; keeps it, or goes
                                   back to x and its output and turns v round

A Hamiltonian proposal has several ``uld`` rows before its accept row.

Columns that end in ``_lo`` are the rest of the column before, which is near 1 and would lose its
digits in float32. In :attr:`StepTable.coefficients` they are 0; :meth:`StepTable.coef` splits.
``print(table)`` shows the columns that are not 0::

    ddpm on ou, sample: 3 rows, 3 model calls, init_scale 1
    0 diffusion 3.6892 call: p_o 1, x_x 0.0019251, x_0 0.9622, x_n 0.27216
    1 diffusion 0.038481 call: p_o 1, x_x 5.1961e-05, x_0 0.99995, x_n 0.0019999
    2 diffusion 2e-06 call: p_o 1, x_0 1
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from .columns import COLUMNS, WIDTH
from .convert import converted
from .paths import PATHS, Path, check_prediction, data_coefficients, get_path
from .table_file import read_fields, write_table

SECOND_MEMORY, THIRD_MEMORY = ("s_x", "s_m", "s_2"), ("x_3", "t_2")
UNCONDITIONAL = ("x_u", "m_u")
NOISE = ("x_n", "z_1", "z_2", "v_1")
LEARNED_RANGE = ("lv_min", "lv_max")


class DeviceTable(NamedTuple):
    """A table's tensors on one device, as the run loop reads them (see :meth:`StepTable.to`).

    Attributes:
        coef: float32 `[T, 20]`, pair columns split into (hi, lo).
        level: float32 `[T]`, the level at which the model is called.
        row: int32 `[T]`, 0 to T - 1.
        op, calls_model, saves_origin, midpoint, ball_margin: as in :class:`StepTable`.
        init_scale: standard deviation of the initial state.
        memories, unconditional, learned_range, energy: as in :class:`StepTable`.
    """

    coef: torch.Tensor
    level: torch.Tensor
    row: torch.Tensor
    op: tuple[str, ...]
    calls_model: tuple[bool, ...]
    saves_origin: tuple[bool, ...]
    midpoint: tuple[bool, ...]
    ball_margin: tuple[float, ...]
    init_scale: float
    memories: int
    unconditional: bool
    learned_range: bool
    energy: bool


@dataclass(frozen=True, eq=False)
class StepTable:
    """The rows of a sampler, in float64.

    Attributes:
        coefficients: float64 `[T, 20]` in the columns of each row's op (:data:`COLUMNS`). A column
            that has a `_lo` partner holds the full double, the partner 0.
        level: float64 `[T]`, the level at which each row's model call is made.
        calls_model: bool `[T]`; a row without a call has a zero coefficient on the output.
        op: `T` names, each ``diffusion``, ``uld`` or ``accept``.
        init_scale: standard deviation of the initial state.
        path, prediction, solver: the names it was made from.
        saves_origin: bool `[T]`; before such a row state, velocity and output are kept as the
            origin of a proposal, with which the next ``accept`` row compares.
        midpoint: bool `[T]`; such a row, of op ``accept``, runs no op: its model call is halfway
            between origin and proposal, and the accept row that follows uses the output.
        ball_margin: float64 `[T]`; where positive, the accept rows that follow reject proposals
            with |y| above |m| + margin, m what the row would give without noise.
        energy: the accept rows compare energies, which the run must be given.
        alpha, sigma: float64 `[T]`, the path's coefficients of data and noise at each row's level;
            None where no Path knows the levels.

    Raises:
        ValueError: for NaN or inf, wrong shapes, an unknown op, a non-positive `init_scale`, or
            learned-range variance beside rows of other ops.

    Example:
        >>> import ardiff
        >>> table = ardiff.solver("ddim", path="vp-linear", prediction="epsilon", steps=4)
        >>> len(table), table.calls, table.coefficients.shape
        (4, 4, (4, 20))
    """

    coefficients: np.ndarray
    level: np.ndarray
    calls_model: np.ndarray
    op: tuple[str, ...]
    init_scale: float
    path: str
    prediction: str
    solver: str
    saves_origin: np.ndarray | None = None
    midpoint: np.ndarray | None = None
    ball_margin: np.ndarray | None = None
    energy: bool = False
    alpha: np.ndarray | None = None
    sigma: np.ndarray | None = None
    _cache: dict = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        coefficients = np.array(self.coefficients, dtype=np.float64)
        level = np.array(self.level, dtype=np.float64)
        calls_model = np.array(self.calls_model, dtype=bool)
        op = tuple(self.op)
        if coefficients.ndim != 2 or coefficients.shape[1] != WIDTH or len(coefficients) < 1:
            raise ValueError(
                f"a StepTable needs coefficients [T, {WIDTH}] with T >= 1, got shape "
                f"{list(coefficients.shape)}"
            )
        rows = len(coefficients)
        if level.shape != (rows,) or calls_model.shape != (rows,) or len(op) != rows:
            raise ValueError(
                f"a StepTable of {rows} rows needs {rows} levels, calls_model and ops, got "
                f"{list(level.shape)}, {list(calls_model.shape)} and {len(op)}"
            )
        unknown = sorted(set(op) - set(COLUMNS))
        if unknown:
            known = ", ".join(COLUMNS)
            raise ValueError(f"unknown op {unknown[0]!r} in a StepTable; known: {known}")
        with np.errstate(over="ignore"):
            bad = np.argwhere(~np.isfinite(coefficients.astype(np.float32)))
        if len(bad):
            row, column = map(int, bad[0])
            names = COLUMNS[op[row]]
            name = names[column] if column < len(names) else "spare"
            raise ValueError(
                f"StepTable row {row}, column {name} is {coefficients[row, column]}: coefficients "
                "must be finite in float32"
            )
        if not np.all(np.isfinite(level)):
            raise ValueError(f"StepTable row {int(np.argmin(np.isfinite(level)))} has no level")
        if not (np.isfinite(self.init_scale) and self.init_scale > 0):
            raise ValueError(f"init_scale must be positive and finite, got {self.init_scale}")
        check_prediction(self.prediction)
        flags = {}
        for name, kind in (("saves_origin", bool), ("midpoint", bool), ("ball_margin", float)):
            given = getattr(self, name)
            flags[name] = np.zeros(rows, kind) if given is None else np.array(given, dtype=kind)
            if flags[name].shape != (rows,):
                raise ValueError(
                    f"a StepTable of {rows} rows needs {rows} of {name}, got "
                    f"{list(flags[name].shape)}"
                )
        _check_proposals(op, flags["saves_origin"], flags["midpoint"], calls_model)
        if (self.alpha is None) != (self.sigma is None):
            raise ValueError("alpha and sigma of a StepTable go together: pass both or neither")
        for name in ("alpha", "sigma"):
            given = getattr(self, name)
            if given is not None:
                flags[name] = np.array(given, dtype=np.float64)
                if flags[name].shape != (rows,) or not np.all(np.isfinite(flags[name])):
                    raise ValueError(f"a StepTable of {rows} rows needs {rows} finite {name}")
        for name, array in flags.items():
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for array in (coefficients, level, calls_model):
            array.setflags(write=False)
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "calls_model", calls_model)
        object.__setattr__(self, "op", op)
        if self.learned_range and set(op) != {"diffusion"}:
            raise ValueError(
                "lv_min and lv_max (learned-range variance) need a table of diffusion rows alone, "
                f"got {', '.join(sorted(set(op)))}"
            )
        self._cache[torch.device("cpu")] = self._on_host()

    def __len__(self) -> int:
        return len(self.op)

    def __str__(self) -> str:
        """A line per row: op, level, whether it calls the model, marks, columns that are not 0."""
        names, counts = f"{self.solver} on {self.path}, {self.prediction}", f"{len(self)} rows"
        counts += f", {self.calls} model calls, init_scale {self.init_scale:g}"
        lines = [f"{names}: {counts}"]
        for row, op in enumerate(self.op):
            marks = [name for name in ("saves_origin", "midpoint", "ball_margin")]
            marks = [name for name in marks if getattr(self, name)[row]]
            marks = ["call" if self.calls_model[row] else "no call", *marks]
            weights = zip(COLUMNS[op], self.coefficients[row], strict=False)
            weights = ", ".join(f"{name} {value:.5g}" for name, value in weights if value)
            lines.append(f"{row} {op} {self.level[row]:.5g} {', '.join(marks)}: {weights}".rstrip())
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table as a readable JSON file, whole or not at all; name it ``.table.json``.

        :meth:`load` gives the same table, to the bit. See :mod:`ardiff.tables.table_file`.

        Raises:
            ValueError: a number in a column that its op does not have, or too many rows.
            OSError: the file cannot be written.

        Example:
            >>> import ardiff, tempfile
            >>> table = ardiff.solver("dpmpp-2m", path="flow", prediction="flow", steps=8)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     table.save(f"{folder}/mine.table.json")
            ...     loaded = ardiff.StepTable.load(f"{folder}/mine.table.json")
            >>> str(loaded) == str(table)
            True
        """
        write_table(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike) -> StepTable:
        """The table that :meth:`save` wrote.

        Raises:
            ValueError: not a table file, one that is damaged or of a newer version, or values that
                no table has; the message names the file and the place.
            OSError: the file is not there or cannot be read.
        """
        fields = read_fields(path)
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def of(cls, table: StepTable | str | os.PathLike) -> StepTable:
        """`table` itself, or the one in the file of that name, as :meth:`load`.

        Raises:
            TypeError: neither.
        """
        if isinstance(table, (str, os.PathLike)):
            return cls.load(table)
        if not isinstance(table, StepTable):
            kind = type(table).__name__
            raise TypeError(f"table must be a StepTable or the name of a table file, got {kind}")
        return table

    @classmethod
    def alone(cls, table: StepTable | str | os.PathLike, **others: object) -> StepTable:
        """`table` as of :meth:`of`, which leaves no other choice of a solver.

        Raises:
            TypeError: one of `others` is not None.
        """
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise TypeError(f"a table fixes the solver: do not pass {', '.join(given)} beside it")
        return cls.of(table)

    def on(self, path: str | Path | None = None, prediction: str | None = None) -> StepTable:
        """This table for models on another path or of another prediction type; None keeps it.

        The samples are the same, for what a model knows of the data depends on x / alpha and
        sigma / alpha alone: one learned table serves models of every kind. It is the table that the
        solver makes there, unless that steps in coordinates of its path, as ``euler-ancestral`` on
        ``flow``. A table moved from ``edm`` counts as ending at the data.

        Raises:
            ValueError: rows of other ops or without a model call, a memory that holds states, a
                start at alpha = 0, an end before the data, or a level that the path does not cover.

        Example:
            >>> import ardiff
            >>> table = ardiff.solver("dpmpp-2m", path="edm", prediction="sample", steps=4)
            >>> table.on("flow", "flow").level.round(4).tolist()
            [0.9756, 0.5957, 0.0515, 0.002]
        """
        return converted(self, path, prediction)

    def check_model(self, path: str | Path, prediction: str) -> None:
        """Raises ValueError unless this table is for a model on `path` of type `prediction`."""
        path = get_path(path)
        same = prediction == self.prediction
        if same and self.alpha is not None:
            try:
                found = path.alpha(self.level), path.sigma(self.level)
            except ValueError:  # levels that the path does not have
                same = False
            else:
                same = np.allclose(found, (self.alpha, self.sigma), rtol=1e-5, atol=1e-9)
        elif same:
            same = path.name == self.path
        if not same:
            raise ValueError(
                f"the table {self.solver} is for a {self.prediction} model on path {self.path}, "
                f"and this model is {prediction} on path {path.name}: table.on(path, prediction) "
                "converts tables"
            )

    @property
    def calls(self) -> int:
        """Model calls of one run (twice as many with guidance)."""
        return int(self.calls_model.sum())

    @functools.cached_property
    def memories(self) -> int:
        """1, 2 or 3: the run carries a memory `[B, memories d]`."""
        if any(self.column(name).any() for name in THIRD_MEMORY):
            return 3
        return 2 if any(self.column(name).any() for name in SECOND_MEMORY) else 1

    @functools.cached_property
    def unconditional(self) -> bool:
        """Whether a row reads the unconditional data prediction, which guidance gives."""
        return any(self.column(name).any() for name in UNCONDITIONAL)

    @functools.cached_property
    def learned_range(self) -> bool:
        """Whether a model may learn the variance and return `[B, 2 d]`, see `diffusion_step`; one
        that returns `[B, d]` has the variance x_n^2."""
        return any(self.column(name).any() for name in LEARNED_RANGE)

    @functools.cached_property
    def draws(self) -> bool:
        """Whether a row adds noise or decides by chance."""
        return any(self.column(name).any() for name in NOISE) or "accept" in self.op

    @property
    def accept_rows(self) -> np.ndarray:
        """Indices of the rows that accept or reject a proposal, int64."""
        return np.array(
            [i for i, op in enumerate(self.op) if op == "accept" and not self.midpoint[i]], np.int64
        )

    @property
    def stage(self) -> np.ndarray:
        """Stage of each of :attr:`accept_rows`, counted from 0: a stage is a level."""
        levels = self.level[self.accept_rows]
        return np.cumsum(np.diff(levels, prepend=levels[:1]) != 0)

    def column(self, name: str) -> np.ndarray:
        """One named column, float64 `[T]`; 0 in rows whose op has no such column."""
        if not any(name in columns for columns in COLUMNS.values()):
            raise ValueError(
                f"unknown column {name!r}; known: {', '.join(sum(COLUMNS.values(), ()))}"
            )
        places = [COLUMNS[op].index(name) if name in COLUMNS[op] else -1 for op in self.op]
        rows = zip(self.coefficients, places, strict=True)
        return np.array([row[place] if place >= 0 else 0.0 for row, place in rows])

    def coef(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The table as the ops read it: float32 `[T, 20]`, pair columns split into (hi, lo)."""
        full = self.coefficients
        packed = full.astype(np.float32)
        for row, op in enumerate(self.op):
            columns = COLUMNS[op]
            for low, name in enumerate(columns):
                if name.endswith("_lo"):
                    high = columns.index(name.removesuffix("_lo"))
                    value = full[row, high] + full[row, low]
                    packed[row, high] = value
                    packed[row, low] = value - np.float64(packed[row, high])
        return torch.from_numpy(packed).to(device)

    def to(self, device: torch.device | str) -> DeviceTable:
        """The table's tensors on `device`; made once for each device."""
        device = torch.device(device)
        if device not in self._cache:
            host = self._cache[torch.device("cpu")]
            with torch.inference_mode(False):
                moved = [t.to(device) if torch.is_tensor(t) else t for t in host]
            self._cache[device] = DeviceTable(*moved)
        return self._cache[device]

    def _on_host(self) -> DeviceTable:
        """Made with the table, not at its first run, which torch.compile may be tracing."""
        with torch.inference_mode(False):
            return DeviceTable(
                self.coef(),
                torch.tensor(self.level, dtype=torch.float32),
                torch.arange(len(self), dtype=torch.int32),
                self.op,
                tuple(self.calls_model.tolist()),
                tuple(self.saves_origin.tolist()),
                tuple(self.midpoint.tolist()),
                tuple(self.ball_margin.tolist()),
                float(self.init_scale),
                self.memories,
                self.unconditional,
                self.learned_range,
                self.energy,
            )


def _check_proposals(op, saves_origin, midpoint, calls_model) -> None:
    open_proposal = False
    for row, name in enumerate(op):
        if saves_origin[row]:
            open_proposal = True
        if midpoint[row] and not (name == "accept" and calls_model[row]):
            raise ValueError(f"StepTable row {row} is a midpoint: its op must be accept, and call")
        if name == "accept" and not open_proposal:
            raise ValueError(f"StepTable row {row} accepts, but no row before it saves the origin")
        if name == "accept" and not midpoint[row]:
            open_proposal = False


class TableBuilder:
    """Collects the rows of one table; columns not named are 0.

    A solver adds its rows and ends with :meth:`finish`, which adds what every table has: the last
    data prediction, the initial state's scale and the names.

    Args:
        path: a Path or the name of one. A table whose levels no Path knows gives a name of its own,
            and `init_scale` to :meth:`finish`.
        prediction: one of :data:`ardiff.tables.paths.PREDICTIONS`.
        name: of the solver.

    Attributes:
        path: the Path of the levels.
        prediction: as given.
    """

    def __init__(self, path: str | Path, prediction: str, name: str) -> None:
        self._path, self.prediction, self._name = path, prediction, name
        self._coefficients: list[np.ndarray] = []
        self._level: list[float] = []
        self._calls: list[bool] = []
        self._op: list[str] = []
        self._flags: dict[str, list] = {"saves_origin": [], "midpoint": [], "ball_margin": []}

    def add(
        self,
        op: str,
        level: float,
        *,
        calls_model: bool = True,
        saves_origin: bool = False,
        midpoint: bool = False,
        ball_margin: float = 0.0,
        **columns: float,
    ) -> None:
        """Append a row of `op` whose model call is at `level`."""
        row = np.zeros(WIDTH)
        for name, value in columns.items():
            row[COLUMNS[op].index(name)] = value
        self._coefficients.append(row)
        self._level.append(float(level))
        self._calls.append(calls_model)
        self._op.append(op)
        flags = {"saves_origin": saves_origin, "midpoint": midpoint, "ball_margin": ball_margin}
        for name, value in flags.items():
            self._flags[name].append(value)

    @property
    def path(self) -> Path:
        return get_path(self._path)

    def data_prediction(self, level: float) -> tuple[float, float]:
        """(p_x, p_o) of a model called at `level`: x0 = p_x x + p_o out.

        Raises:
            ValueError: for an `epsilon` or `score` model at alpha = 0.
        """
        alpha, sigma = float(self.path.alpha(level)), float(self.path.sigma(level))
        return data_coefficients(self.prediction, alpha, sigma)

    def finish(
        self,
        denoise_last: float | None = None,
        *,
        op: str = "diffusion",
        calls_model: bool = True,
        init_scale: float | None = None,
        energy: bool = False,
    ) -> StepTable:
        """The finished table.

        Args:
            denoise_last: the level of a last row, which makes the state the data prediction; None
                for no such row.
            op: of that row, ``diffusion`` or ``uld``.
            calls_model: whether that row calls the model, or has the output of the row before.
            init_scale: standard deviation of the initial state, by default the path's at the first
                level.
            energy: as in :class:`StepTable`.
        """
        if denoise_last is not None:
            p_x, p_o = self.data_prediction(denoise_last)
            last = {"z_z": p_x, "z_o": p_o} if op == "uld" else {"p_x": p_x, "p_o": p_o, "x_0": 1.0}
            self.add(op, denoise_last, calls_model=calls_model, **last)
        if init_scale is None:
            init_scale = self.path.init_scale(self._level[0])
        alpha, sigma = self._path_coefficients()
        return StepTable(
            np.stack(self._coefficients),
            np.array(self._level),
            np.array(self._calls),
            tuple(self._op),
            init_scale,
            self._path if isinstance(self._path, str) else self._path.name,
            self.prediction,
            self._name,
            energy=energy,
            alpha=alpha,
            sigma=sigma,
            **{name: np.array(values) for name, values in self._flags.items()},
        )

    def _path_coefficients(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        if isinstance(self._path, str) and self._path not in PATHS:
            return None, None
        return self.path.alpha(np.array(self._level)), self.path.sigma(np.array(self._level))
