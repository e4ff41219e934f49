"""What a run carries from row to row, and the ops that move it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ardiff_kernels import ops

from ..noise import Spans
from ..tables.plan import Flag, Kind, Schedule, Step


class State:
    """Position, memory (or anchor), velocity, the last model output, and a proposal's origin.

    Attributes:
        x: `[B, d]`.
        weights: guidance weights, one for each unconditional output.
        energy: float32 `[B]` of the carried state, for tables that compare energies.
        noise: `[B, d]` normals of the next row in place of the addressed ones.
        first_call: whether the model has not been called yet.
    """

    def __init__(
        self,
        x: Tensor,
        schedule: Schedule,
        compiling: bool,
        options: dict[str, Tensor | float | None],
        spans: Spans | None = None,
    ) -> None:
        self.x = x.clone(memory_format=torch.contiguous_format)
        width = x.shape[1] * (2 if schedule.second_memory else 1)
        self.memory = self.x.new_zeros(len(x), width)
        self.v = torch.zeros_like(self.x) if schedule.kinetic else None
        self.weights: list[Tensor] = []
        self.energy: Tensor | None = None
        self.noise: Tensor | None = None
        self._compiling, self._accepts = compiling, schedule.accepts
        self._spans = spans
        self._options = dict(options)
        self._out: Tensor | None = None
        self._blank: Tensor | None = None  # stands for an output before the first call
        self._mid: Tensor | None = None
        self._origin: dict[str, Tensor | None] = {}
        self._ball: Tensor | None = None

    @property
    def first_call(self) -> bool:
        return self._out is None

    def query(self, step: Step) -> Tensor:
        """Where the model is called: the state, or halfway to it from the origin."""
        if step.midpoint is False:
            return self.x
        halfway = (self._origin["x"] + self.x) / 2
        return _choose(step.midpoint, halfway, self.x)

    def take(self, outs: list[Tensor], step: Step) -> None:
        """Keeps the outputs of a call, guided at once where accept rows need them."""
        if self._accepts:
            out, spare = self._combined(outs), {}
        else:
            outs = [self._unaliased(out) for out in outs]
            out, names = outs[0], ("uncond_out", "uncond_out2")
            spare = dict(zip(names, outs[1:], strict=False))
            spare |= dict(zip(("guidance", "guidance2"), self.weights, strict=False))
        if step.midpoint is not False:
            self._mid = _choose(step.midpoint, out, self._mid)
            if step.midpoint is True:
                return
        fresh = step.calls_model
        if isinstance(step.midpoint, Tensor):
            fresh = ~step.midpoint if fresh is True else fresh & ~step.midpoint
        self._out = _choose(fresh, out, self._out)
        for name, value in spare.items():
            if name.startswith("uncond"):
                value = _choose(fresh, value, self._options.get(name))
            self._options[name] = value

    def _combined(self, outs: list[Tensor]) -> Tensor:
        """u + w (c - u), or u2 + w2 (u - u2) + w (c - u): a tensor of the run's own."""
        if len(outs) == 1:
            return outs[0] if self._compiling else outs[0].clone()
        c, u, *rest = (out.float() for out in outs)
        w = self.weights[0][:, None]
        if not rest:
            return u + w * (c - u)
        return rest[0] + self.weights[1][:, None] * (u - rest[0]) + w * (c - u)

    def _unaliased(self, out: Tensor) -> Tensor:
        """`out`, copied if it is the state itself, which the in-place ops are about to write."""
        if self._compiling:
            return out
        same = out.untyped_storage().data_ptr() == self.x.untyped_storage().data_ptr()
        return out.clone() if same else out

    def save_origin(self, which: Flag) -> None:
        now = {"x": self.x, "v": self.v, "energy": self.energy}
        for name, value in now.items():
            if value is not None:
                kept = value if self._compiling else value.clone()
                self._origin[name] = _choose(which, kept, self._origin.get(name))
        self._origin["out"] = _choose(which, self._out, self._origin.get("out"))

    def _model_out(self) -> Tensor:
        if self._out is None and self._blank is None:
            self._blank = torch.zeros_like(self.x)
        return self._blank if self._out is None else self._out

    def set_ball(self, op: str, place: tuple, step: Step) -> None:
        """Sets each sample's ball radius at a row that has a margin: |mean| + margin."""
        margin = step.ball_margin
        if not isinstance(margin, Tensor) and margin == 0:
            return
        still = {"noise": torch.zeros_like(self.x, dtype=torch.float32)}
        if op == "uld":
            still["noise2"] = still["noise"]
        mean = self._moved(op, place, still)[0]
        radius = mean.double().square().sum(1).sqrt().float() + margin
        row = place[1]
        moves = (margin > 0) & (row >= 0) if isinstance(margin, Tensor) else True
        self._ball = _choose(moves, radius, self._ball)

    def _moved(self, op: str, place: tuple, more: dict[str, Any]) -> tuple[Tensor, ...]:
        options = self._options | more
        if op == "uld":
            return ops.uld_step(self.x, self.v, self._model_out(), self.memory, *place, **options)
        return ops.diffusion_step(self.x, self._model_out(), self.memory, *place, **options)

    def _launches(
        self, place: tuple, tensors: tuple, options: dict[str, Any]
    ) -> Iterator[tuple[tuple, tuple, dict]]:
        """Place, tensors and options of each in-place launch: one, or one for each key."""
        if self._spans is None:
            yield place, tensors, options
            return
        batch, (coef, row, draw, _, stream) = self.x.shape[0], place
        for rows, key in self._spans:

            def cut(t: Any, rows: slice = rows) -> Any:
                return t[rows] if isinstance(t, Tensor) and t.shape[0] == batch else t

            where = (coef, cut(row), cut(draw), key, cut(stream))
            yield where, tuple(map(cut, tensors)), {k: cut(t) for k, t in options.items()}

    def move(self, op: str, place: tuple) -> None:
        """One `diffusion` or `uld` row."""
        given = {} if self.noise is None else {"noise": self.noise}
        if self._compiling:
            if op == "uld":
                self.x, self.v, self.memory = self._moved(op, place, given)
            else:
                self.x, self.memory, _ = self._moved(op, place, given)
            return
        tensors = (self.x, self.v, self._model_out(), self.memory)
        launches = self._launches(place, tensors, self._options | given)
        for where, (x, v, out, memory), options in launches:
            if op == "uld":
                ops.uld_step_(x, v, out, memory, *where, **options)
            else:
                ops.diffusion_step_(x, out, memory, *where, **options)

    def accept(self, place: tuple, kind: Kind) -> tuple[Tensor, Tensor]:
        """One `accept` row: the proposal stays or the origin returns. (accepted, log_alpha)."""
        origin, options = self._origin, {}
        if kind.midpoint:
            options["out_mid"] = self._mid
        if kind.ball:
            options["ball_radius"] = self._ball
        if self.v is not None:
            options |= {"v_x": origin["v"], "v_y": self.v}
        if self.energy is not None:
            options |= {"energy_x": origin["energy"], "energy_y": self.energy}
        tensors = (origin["x"], self.x, origin["out"], self._out, self.memory)
        if self._compiling:
            found = ops.mala_accept(*tensors, *place, **options)
            self.x, self._out, v, energy, accepted, log_alpha = found
            self.v = None if self.v is None else v
            self.energy = None if self.energy is None else energy
        else:
            accepted = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
            log_alpha = torch.zeros(len(self.x), device=self.x.device)
            options |= {"accepted": accepted, "log_alpha": log_alpha}
            for where, parts, each in self._launches(place, tensors, options):
                ops.mala_accept_(*parts, *where, **each)
        return accepted, log_alpha


def _choose(which: Flag, new: Any, old: Any) -> Any:
    """`new` where the flag holds, else `old`."""
    if which is True or old is None:
        return new
    if which is False:
        return old
    return torch.where(which if new.dim() == 2 else which.reshape(-1), new, old)
