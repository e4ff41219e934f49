"""What a run carries from row to row, and the ops that move it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ardiff_kernels import ops

from ..noise import Address, Spans
from ..tables.plan import Flag, Kind, Schedule, Step

TableRow = tuple[Tensor, Tensor]  # the coefficients [T, 20], and the row in them of each sample

FUNCTIONAL = {
    "diffusion": torch.ops.ardiff.diffusion_step.default,
    "uld": torch.ops.ardiff.uld_step.default,
    "accept": torch.ops.ardiff.mala_accept.default,
}


def launch(op: str, *tensors: Tensor, **options: Tensor | float | None) -> tuple[Tensor, ...]:
    """One row by the functional op of `op`, on tensors that end in coef, row, draw, key, stream.

    It goes past the op's autograd kernel, which takes 15 us, where nothing needs a gradient.
    """
    function = FUNCTIONAL[op]
    if torch.compiler.is_compiling():
        return function(*tensors, **options)
    needs = torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors, **options)
    if needs or forward_ad._current_level >= 0:
        return function(*tensors, **options)
    with torch._C._AutoDispatchBelowAutograd():
        return function(*tensors, **options)


class State:
    """Position, memory (or anchor), velocity, the last model output, and a proposal's origin.

    Args:
        x: `[B, d]`, or `[B, ...]` contiguous inside a sample. In place it is the run's own.
        has_midpoints: whether any row calls halfway to a proposal.
        in_place: whether rows are run by the in-place ops; else no tensor is ever written.
        options: of every row that is no accept row.
        spans: the samples that share a key, for in-place rows.
        memory, v: of a run that begins within a table, else zeros.

    Attributes:
        has_midpoints: as given.
        weights: guidance weights, one for each unconditional output.
        energy: float32 `[B]` of the carried state, for tables that compare energies.
        theirs: tensors that their owners may write later. What is kept of them is copied.
        origin: of the last proposal: x, v, energy and out by name; empty before the first.
    """

    def __init__(
        self,
        x: Tensor,
        schedule: Schedule,
        has_midpoints: bool,
        *,
        in_place: bool,
        options: dict[str, Tensor | float | None],
        spans: Spans | None = None,
        memory: Tensor | None = None,
        v: Tensor | None = None,
    ) -> None:
        self.x, self.memory, self.v = x, memory, v
        if memory is None:
            wide = x.shape[1] * schedule.memories
            self.memory = x.new_zeros(x.shape[0], wide, *x.shape[2:])
        if v is None and schedule.kinetic:
            self.v = torch.zeros_like(x)
        self.weights: list[Tensor] = []
        self.energy: Tensor | None = None
        self.theirs: Sequence[Tensor] = ()
        self.origin: dict[str, Tensor | None] = {}
        self._in_place, self._accepts = in_place, schedule.accepts
        self.has_midpoints = has_midpoints
        self._spans = spans
        self._options = dict(options)
        self._out: Tensor | None = None
        self._blank: Tensor | None = None  # stands for an output before the first call
        self._mid: Tensor | None = None
        self._ball: Tensor | None = None

    @property
    def first_call(self) -> bool:
        """Whether the model has not been called yet."""
        return self._out is None

    @property
    def out(self) -> Tensor:
        """The model output that belongs to the state; zeros before the first call."""
        if self._out is None and self._blank is None:
            self._blank = torch.zeros_like(self.x)
        return self._blank if self._out is None else self._out

    def query(self, step: Step) -> Tensor:
        """Where the model is called: the state, or halfway to it from the origin."""
        if step.midpoint is False:
            return self.x
        halfway = (self.origin["x"] + self.x) / 2
        return _choose(step.midpoint, halfway, self.x)

    def take(self, outs: Sequence[Tensor], step: Step) -> None:
        """Keeps the outputs of a call, guided at once where accept rows need them."""
        if len(outs) == 1 and step.calls_model is True and step.midpoint is False:
            self._out = self._own(outs[0])
            return
        if self._accepts:
            out, spare = self._combined(outs), {}
        else:
            outs = [self._own(out) for out in outs]
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

    def _combined(self, outs: Sequence[Tensor]) -> Tensor:
        """u + w (c - u), or u2 + w2 (u - u2) + w (c - u): a tensor of the run's own."""
        if len(outs) == 1:
            return self._own(outs[0])
        c, u, *rest = (out.float() for out in outs)
        w = self.weights[0][:, None]
        if not rest:
            return u + w * (c - u)
        return rest[0] + self.weights[1][:, None] * (u - rest[0]) + w * (c - u)

    def _own(self, out: Tensor) -> Tensor:
        """`out`, copied where it may be written before the rows have done with it.

        The in-place ops write the state, and accept rows the output; a row may call at a midpoint
        before it uses the output of an earlier call.
        """
        if not self._in_place:
            return self._lasting(out) if self.has_midpoints else out
        if self._accepts or self.has_midpoints:
            return out.clone()
        same = out.untyped_storage().data_ptr() == self.x.untyped_storage().data_ptr()
        return out.clone() if same else out

    def save_origin(self, which: Flag) -> None:
        kept = {"x": self._kept(self.x), "out": self._lasting(self._out)}
        if self.v is not None:
            kept["v"] = self._kept(self.v)
        if self.energy is not None:
            kept["energy"] = self._kept(self.energy)
        if which is not True:
            kept = {name: _choose(which, now, self.origin.get(name)) for name, now in kept.items()}
        self.origin = kept

    def _kept(self, value: Tensor) -> Tensor:
        """`value` as it is now, whatever the rows that follow write."""
        return value.clone() if self._in_place else self._lasting(value)

    def _lasting(self, value: Tensor) -> Tensor:
        """`value`, or a copy where its owner may write it before it is read again."""
        for t in self.theirs:
            if t is value:
                return value.clone()
        return value

    def set_ball(self, op: str, at: TableRow, address: Address, step: Step) -> None:
        """Sets each sample's ball radius at a row that has a margin: |mean| + margin."""
        margin = step.ball_margin
        still = {"noise": torch.zeros_like(self.x, dtype=torch.float32)}
        if op == "uld":
            still["noise2"] = still["noise"]
        moving = (self.x, self.v) if op == "uld" else (self.x,)
        tensors = *moving, self.out, self.memory, *at, *address
        mean = launch(op, *tensors, **(self._options | still))[0]
        radius = mean.flatten(1).double().square().sum(1).sqrt().float() + margin
        row = at[1]
        moves = (margin > 0) & (row >= 0) if isinstance(margin, Tensor) else True
        self._ball = _choose(moves, radius, self._ball)

    def _launches(
        self, at: TableRow, address: Address, tensors: tuple, options: dict[str, Any]
    ) -> Iterator[tuple[tuple, tuple, dict]]:
        """Rows with their address, tensors and options of each in-place launch: one launch, or one
        for each key."""
        if self._spans is None:
            yield (*at, *address), tensors, options
            return
        batch, (coef, row) = self.x.shape[0], at
        for rows, key in self._spans:

            def cut(t: Any, rows: slice = rows) -> Any:
                return t[rows] if isinstance(t, Tensor) and t.shape[0] == batch else t

            own = Address(cut(address.draw), key, cut(address.stream))
            where = (coef, cut(row), *own)
            yield where, tuple(map(cut, tensors)), {k: cut(t) for k, t in options.items()}

    def move(self, op: str, at: TableRow, address: Address, noise: dict[str, Tensor]) -> None:
        """One `diffusion` or `uld` row; `noise` holds given normals by the op's names."""
        if not self._in_place:
            options = self._options | noise if noise else self._options
            tensors = self.out, self.memory, *at, *address
            if op == "uld":
                self.x, self.v, self.memory = launch(op, self.x, self.v, *tensors, **options)
            else:
                self.x, self.memory, _ = launch(op, self.x, *tensors, **options)
            return
        tensors = (self.x, self.v, self.out, self.memory)
        launches = self._launches(at, address, tensors, self._options | noise)
        for where, (x, v, out, memory), options in launches:
            if op == "uld":
                ops.uld_step_(x, v, out, memory, *where, **options)
            else:
                ops.diffusion_step_(x, out, memory, *where, **options)

    def accept(self, at: TableRow, address: Address, kind: Kind) -> tuple[Tensor, Tensor]:
        """One `accept` row: the proposal stays or the origin returns. (accepted, log_alpha)."""
        origin, options = self.origin, {}
        if kind.midpoint:
            options["out_mid"] = self._mid
        if kind.ball:
            options["ball_radius"] = self._ball
        if self.v is not None:
            options |= {"v_x": origin["v"], "v_y": self.v}
        if self.energy is not None:
            options |= {"energy_x": origin["energy"], "energy_y": self.energy}
        tensors = (origin["x"], self.x, origin["out"], self._out, self.memory)
        if not self._in_place:
            x, y, out_x, out_y, memory = tensors
            out_y = out_y if out_y.dtype == out_x.dtype else out_y.to(out_x.dtype)
            found = launch("accept", x, y, out_x, out_y, memory, *at, *address, **options)
            self.x, self._out, v, energy, accepted, log_alpha = found
            self.v = None if self.v is None else v
            self.energy = None if self.energy is None else energy
        else:
            accepted = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
            log_alpha = torch.zeros(len(self.x), dtype=torch.float32, device=self.x.device)
            options |= {"accepted": accepted, "log_alpha": log_alpha}
            for where, parts, each in self._launches(at, address, tensors, options):
                ops.mala_accept_(*parts, *where, **each)
        return accepted, log_alpha


def _choose(which: Flag, new: Any, old: Any) -> Any:
    """`new` where the flag holds, else `old`."""
    if which is True or old is None:
        return new
    if which is False:
        return old
    return torch.where(which if new.dim() == 2 else which.reshape(-1), new, old)
