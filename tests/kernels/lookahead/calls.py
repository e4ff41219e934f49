"""Random calls of `lookahead_draft` and `lookahead_verify` and their oracle, for the tests of the
Triton kernels and of the GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ardiff_kernels import ops, testing
from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.diffusion_step import COLUMNS as DIFFUSION
from ardiff_kernels.ops.lookahead_draft import COLUMNS as PLAN
from ardiff_kernels.ops.lookahead_verify import Verified
from ardiff_kernels.ops.uld_step import COLUMNS as ULD

SECOND = ("s_x", "s_m", "s_2")


class Case(NamedTuple):
    """What a call is of: `rule` is None (by law) or a tolerance."""

    batch: int
    d: int
    rows: int = 5
    velocity: bool = False
    second: bool = False
    known: bool = True
    noise: bool = False
    scale: bool = False
    clamp: float | None = None
    dtype: torch.dtype = torch.float32
    rule: float | None = None


class LookaheadCall:
    """Arguments of both ops for one window of each sample. Of the table with a velocity two rows of
    three are of `uld_step`; one of four calls no model. All are coupled: of the others the float64
    reference does not give the drafted bits."""

    def __init__(self, case: Case, length: int = 8, seed: int = 0) -> None:
        self.case = case
        B, d, L = case.batch, case.d, case.rows
        self._generator = torch.Generator("cpu").manual_seed(seed)
        rows = [self._row(i) for i in range(length)]
        kinetic = [case.velocity and i % 3 != 1 for i in range(length)]
        self.coef = torch.cat(
            [
                testing.table(ULD if uld else DIFFUSION, [row])
                for row, uld in zip(rows, kinetic, strict=True)
            ]
        )
        self.plan = testing.table(PLAN, [self._plan(i) for i in range(length)])
        width = 2 * d if case.second else d
        self.x, self.memory = (testing.random_rows(seed + i, B, n) for i, n in ((0, d), (1, width)))
        self.v = testing.random_rows(seed + 2, B, d) if case.velocity else None
        row = self._integers(0, length, B)
        row[::7], row[3::7] = -1, length
        stream = self._integers(0, 2**62, B, torch.int64)
        count, draw = self._integers(1, L + 2, B), self._integers(0, 999, B)
        count[5::7] = 0
        self.address = row, count, draw, torch.tensor([seed + 77]), stream
        self.options: dict[str, Any] = {"x0_clamp": case.clamp}
        if case.velocity:
            self.options["op"] = torch.tensor(kinetic, dtype=torch.int32)
        if case.known:
            self.options |= {
                "known_x": 0.5 * self._normals(B, L + 1, d)[:, :L],
                "known_0": 0.5 * self._normals(B, L, d),
                "gain": self._normals(B, L).abs(),
                "known_row": row - self._integers(0, 3, B),
                "known_count": self._integers(0, L + 2, B),
            }
        if case.noise:
            self.options["noise"] = self._normals(B, L, d)
        if case.scale:
            self.options["noise_scale"] = torch.linspace(0.5, 1.5, B)
        self.options = {k: v for k, v in self.options.items() if v is not None}

    def _normals(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device="cpu")

    def _integers(self, low: int, high: int, n: int, dtype: torch.dtype = torch.int32) -> Tensor:
        found = torch.randint(low, high, (n,), generator=self._generator, device="cpu")
        return found.to(dtype)

    def _row(self, i: int) -> dict[str, float]:
        if self.case.velocity and i % 3 != 1:
            return testing.ULD_ROWS[i % 2]
        row = testing.DIFFUSION_ROWS[i % len(testing.DIFFUSION_ROWS)]
        dropped = ("lv_min", "lv_max", *(() if self.case.second else SECOND))
        row = {name: value for name, value in row.items() if name not in dropped}
        return {**row, "x_n": 2 * row["x_n"]}

    def _plan(self, i: int) -> dict[str, float]:
        plan = dict(p_x=0.9, p_o=-0.4, o_0=-2.5, r_x=0.8, r_0=0.15, g_0=0.5, g_s=1.1, g_max=1.4)
        return plan | dict(couples=1.0, unit=0.7, calls=float(i % 4 != 3))

    def on(self, device: str) -> LookaheadCall:
        """The same call with its tensors on a device."""
        moved = object.__new__(LookaheadCall)
        for name, value in vars(self).items():
            setattr(moved, name, _moved(value, device))
        return moved

    def take(self, index: Tensor) -> LookaheadCall:
        """The same call for some of the samples, in that order."""
        taken = self.on("cpu")
        taken.case = self.case._replace(batch=len(index))
        taken.x, taken.memory = self.x[index], self.memory[index]
        taken.v = None if self.v is None else self.v[index]
        row, count, draw, key, stream = self.address
        taken.address = row[index], count[index], draw[index], key, stream[index]
        taken.options = {
            k: v if k in ("op", "x0_clamp") else v[index] for k, v in self.options.items()
        }
        return taken

    def draft(self, function=ops.lookahead_draft) -> tuple[Tensor, Tensor, Tensor]:
        args = self.x, self.memory, self.coef, self.plan, *self.address, self.case.rows
        return function(*args, v=self.v, **self.options)

    def outs(self, states: Tensor, drafts: Tensor) -> Tensor:
        """Outputs whose data predictions lie so near the guesses that by law some rows stay, not
        all; with a tolerance those of the first two rows on them, but for rounding."""
        row, L = self.address[0], self.case.rows
        at = (row.cpu()[:, None] + torch.arange(L)).clamp(0, len(self.plan) - 1).long()
        p = self.plan.cpu()[at]
        apart = 6 / drafts.shape[2] ** 0.5 * self._normals(*drafts.shape)
        if self.case.rule is not None:
            apart[:, :2] = 0
        x0 = drafts.cpu() + apart
        out = (x0 - p[..., :1] * states[:, :L].cpu()) / p[..., 1:2]
        return out.to(drafts.device, self.case.dtype)

    def verify(
        self, drafted: tuple[Tensor, Tensor, Tensor], outs: Tensor, function=ops.lookahead_verify
    ) -> Verified:
        states, velocities, drafts = drafted
        args = states, drafts, outs, self.memory, self.coef, self.plan, *self.address
        given = {} if self.v is None else {"velocities": velocities}
        return function(*args, **given, **self.options, tolerance=self.case.rule)

    def oracle_draft(self) -> tuple[Tensor, Tensor, Tensor]:
        """The float64 reference."""
        wide = self.on("cpu")
        wide.x, wide.memory = wide.x.double(), wide.memory.double()
        wide.v = None if wide.v is None else wide.v.double()
        return wide.draft(backends.reference_function("lookahead_draft"))

    def oracle_verify(self, drafted: tuple[Tensor, Tensor, Tensor], outs: Tensor) -> Verified:
        wide = self.on("cpu")
        wide.memory = wide.memory.double()
        drafted = tuple(t.cpu().double() for t in drafted)
        return wide.verify(drafted, outs.cpu(), backends.reference_function("lookahead_verify"))


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and not isinstance(value, Case):
        return tuple(_moved(each, device) for each in value)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return value


def check_against_oracle(call: LookaheadCall) -> Verified:
    """Both ops against the float64 reference, the verification on the op's own drafts; fixed seeds,
    so that no decision is a tie."""
    drafted = call.draft()
    _near(drafted, call.oracle_draft())
    outs = call.outs(drafted[0], drafted[2])
    found, expected = call.verify(drafted, outs), call.oracle_verify(drafted, outs)
    assert torch.equal(found.accepted.cpu(), expected.accepted)
    assert torch.equal(found.row.cpu(), expected.row)
    _near(found[:4], expected[:4])
    _near(found[4:5], expected[4:5], 1e-4)  # gains, of which dx may nearly cancel
    return found


def _near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], bound: float = 1e-5) -> None:
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape and got.is_contiguous()
        testing.assert_within(got.cpu(), want, bound * (1 + want.abs()))


def check_bits_of_steps(d: int, velocity: bool, rule: float | None, device: str) -> None:
    """Drafted rows are the step ops' on the guesses. With tolerance 0, and by law without a
    coupling, rows stay where the model gives the guess, and the first other row is the step op's on
    the model's output."""
    call = LookaheadCall(Case(4, d, 4, velocity, second=not velocity, rule=rule))
    exact = {"p_x": 0.0, "p_o": 1.0, "o_0": 1.0, "calls": 1.0, "couples": 0.0}
    for name, value in exact.items():
        call.plan[:, PLAN.index(name)] = value
    if not velocity:
        call.coef[:, DIFFUSION.index("p_x")], call.coef[:, DIFFUSION.index("p_o")] = 0.0, 1.0
    row, count, *_ = call.address
    row.copy_(torch.tensor([0, 1, 3, 4])), count.fill_(4)
    call = call.on(device)
    row, _, draw, key, stream = call.address
    states, velocities, drafts = drafted = call.draft()
    outs = drafts.clone()
    outs[:, 2, -1] += 1e-6 * (1 + outs[:, 2, -1].abs())
    found = call.verify(drafted, outs)
    assert found.accepted.tolist() == [2] * 4 and torch.equal(found.row, row + 3)

    def step(j: int, out: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New memory, state and velocity of row j, at its drafted state."""
        x, place = states[:, j], (call.coef, row + j, draw + row + j, key, stream)
        new_x, new_memory, _ = ops.diffusion_step(x, out, memory, *place)
        if not velocity:
            return new_memory, new_x, velocities
        v = velocities[:, j]
        new_z, new_v, anchor = ops.uld_step(x, v, out, memory, *place)
        kinetic = (call.options["op"][(row + j).long()] != 0)[:, None]
        pairs = (anchor, new_memory), (new_z, new_x), (new_v, v)
        return tuple(torch.where(kinetic, uld, other) for uld, other in pairs)

    memory = call.memory
    for j in range(3):
        _, x, v = step(j, drafts[:, j], memory)
        assert testing.same_bits(x, states[:, j + 1])
        assert not velocity or testing.same_bits(v, velocities[:, j + 1])
        memory, x, v = step(j, outs[:, j], memory)
    assert testing.same_bits(found.x, x) and testing.same_bits(found.memory, memory)
    assert not velocity or testing.same_bits(found.v, v)
    assert not torch.equal(found.x, states[:, 3])
