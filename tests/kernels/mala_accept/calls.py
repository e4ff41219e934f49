"""Random calls of `mala_accept`, its oracle and its tolerance, for the tests of every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ardiff_kernels import testing
from ardiff_kernels.ops.mala_accept import COLUMNS, MalaAccept
from ardiff_kernels.ops.mala_accept.reference import log_uniform
from ardiff_kernels.testing import Call, same_bits

ADDRESS = ("coef", "key")
ROWS = [
    dict(g_z=0.9, g_d=0.7, g_o=-1.1, s_z=-0.3, s_o=1.2, c_g=0.06),
    dict(g_z=1.0, g_d=0.2, g_o=-0.8, s_z=-0.5, s_o=0.9, c_d=-0.5, c_v=1.0),
    dict(g_d=0.4, g_o=-1.0, s_o=1.0, c_g=0.1, c_d=-0.3, c_v=0.8),
]
CORRECTIONS = ("trapezoid", "simpson", "energies")


class AcceptCall(Call):
    """A call of `mala_accept`, with the bound of its sums."""

    def in_place(self, namespace=torch.ops.ardiff) -> tuple[Tensor, ...]:
        """Results of the in-place twin, on clones, in the order of the functional form."""
        rows, none = len(self.args["x"]), torch.empty(0)
        marks = {
            "accepted": torch.ones(rows, dtype=torch.bool),
            "log_alpha": torch.full((rows,), 7.0),
        }
        y, out_y, *rest = super().in_place(namespace, **marks)
        v = rest.pop(0) if "v_y" in self.options else none
        energy = rest.pop(0) if "energy_y" in self.options else none
        return y, out_y, v, energy, *marks.values()

    def oracle(self) -> MalaAccept:
        return MalaAccept(*super().oracle())

    def rows(self, index: Tensor) -> AcceptCall:
        """The same call for some of the samples, in that order."""
        args = {k: v if k in ADDRESS else v[index] for k, v in self.args.items()}
        return AcceptCall(self.op, args, {k: v[index] for k, v in self.options.items()})

    def log_uniform(self) -> Tensor:
        """log of each sample's accept uniform, float64 `[B]`."""
        return log_uniform(*(self.args[name] for name in ("key", "draw", "stream")))[:, 0]

    def bound(self) -> Tensor:
        """1e-5 of the sum of the terms' magnitudes, and 1e-6; float64 `[B]`."""
        return 1e-5 * self._magnitude() + 1e-6

    def _magnitude(self) -> Tensor:
        coef = self.args["coef"].double()
        row = self.args["row"].long().clamp(0, len(coef) - 1)
        c = dict(zip(COLUMNS, coef[row].abs().unsqueeze(-1).unbind(1), strict=False))
        x, y, anchor = (self.args[name].double() for name in self.state)
        o_x, o_y = self.args["out_x"].double(), self.args["out_y"].double()
        delta = (y - x).abs()
        g_x, g_y = (
            c["g_z"] * z.abs() + c["g_d"] * (z - anchor).abs() + c["g_o"] * out.abs()
            for z, out in ((x, o_x), (y, o_y))
        )
        terms = c["c_g"] * (g_x.square() + g_y.square()) + c["c_d"] * delta * (g_x + g_y)
        if "v_x" in self.options:
            v_x, v_y = self.options["v_x"].double(), self.options["v_y"].double()
            terms = terms + 0.5 * c["c_v"] * (v_x.square() + v_y.square())
        outs = o_x.abs() + o_y.abs()
        if "out_mid" in self.options:
            mid = self.options["out_mid"].double().abs()
            terms = terms + 2 / 3 * c["s_o"] * delta * (mid + 0.5 * outs)
        total = terms.sum(1)
        if "energy_x" in self.options:
            scores = c["s_z"] * (x.abs() + y.abs()) + c["s_o"] * outs
            energies = self.options["energy_x"].abs() + self.options["energy_y"].abs()
            total = total + (0.5 * delta * scores).sum(1) + energies.double()
        return total


def check(call: AcceptCall, results: tuple[Tensor, ...]) -> int:
    """Compare results with the oracle; returns how many decisions are ties, which may differ.

    log_alpha must be within `bound`, the decision the same unless log u is as near to log_alpha,
    and the selected state an exact copy of what the decision says.
    """
    x, out, v, energy, accepted, log_alpha = MalaAccept(*results)
    expected = call.oracle()
    args, options = call.args, call.options
    rejected = expected.log_alpha.isinf()
    assert torch.equal(log_alpha.isinf(), rejected) and not log_alpha.isnan().any()
    error = (log_alpha.double() - expected.log_alpha)[~rejected].abs()
    assert (error <= call.bound()[~rejected]).all(), (error / call.bound()[~rejected]).max()
    tie = (call.log_uniform() - expected.log_alpha).abs() < call.bound()
    assert torch.equal(accepted[~tie], expected.accepted[~tie])
    live = (args["row"] >= 0) & (args["row"] < len(args["coef"]))
    keep = accepted | ~live
    pick = keep[:, None]
    assert_same(x, torch.where(pick, args["y"], args["x"]))
    assert_same(out, torch.where(pick, args["out_y"], args["out_x"]))
    if "v_x" in options:
        assert_same(v, torch.where(pick, options["v_y"], -options["v_x"]))
    if "energy_x" in options:
        assert_same(energy, torch.where(keep, options["energy_y"], options["energy_x"]))
    return int(tie.sum())


def assert_same(a: Tensor, b: Tensor) -> None:
    """Equal to the bit, NaN included."""
    assert a.shape == b.shape and a.dtype == b.dtype
    assert same_bits(a, b)


INF, NAN, LARGE = float("inf"), float("nan"), 3e38
# energy_x, energy_y, whether y is finite, and log_alpha; a positive log_alpha accepts
ENERGIES = [
    (INF, 0.0, True, INF), (INF, -LARGE, True, INF), (LARGE, -LARGE, True, INF),
    (50.0, 0.0, True, 50.0), (INF, INF, True, -INF), (INF, NAN, True, -INF),
    (INF, -INF, True, -INF), (INF, 0.0, False, -INF), (NAN, 0.0, True, -INF),
    (-INF, 0.0, True, -INF), (-LARGE, LARGE, True, -INF), (0.0, INF, True, -INF),
]  # fmt: skip


def energies_call(d: int) -> AcceptCall:
    """A call whose log_alpha is energy_x - energy_y, with the rows of :data:`ENERGIES`."""
    call = accept_call(len(ENERGIES), d, correction="energies", velocity=True)
    call.args["coef"] = testing.table(COLUMNS, [{}])
    call.args["row"] = torch.zeros(1, dtype=torch.int32)
    energy_x, energy_y, finite, _ = zip(*ENERGIES, strict=True)
    call.options |= {"energy_x": torch.tensor(energy_x), "energy_y": torch.tensor(energy_y)}
    call.args["y"][~torch.tensor(finite), d // 2] = INF
    return call


def check_energies(call: AcceptCall, results: tuple[Tensor, ...]) -> None:
    """Any finite proposal is taken from an origin without density; NaN and infinite ones never."""
    x, out, v, energy, accepted, log_alpha = results
    expected = torch.tensor([row[3] for row in ENERGIES])
    assert torch.equal(log_alpha, expected) and torch.equal(accepted, expected > 0)
    pick = accepted[:, None]
    assert_same(x, torch.where(pick, call.args["y"], call.args["x"]))
    assert_same(out, torch.where(pick, call.args["out_y"], call.args["out_x"]))
    assert_same(v, torch.where(pick, call.options["v_y"], -call.options["v_x"]))
    energies = call.options["energy_y"], call.options["energy_x"]
    assert_same(energy, torch.where(accepted, *energies))


def accept_call(
    rows: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    correction: str = "trapezoid",
    velocity: bool = False,
    ball: bool = False,
    seed: int = 0,
) -> AcceptCall:
    """A random call whose proposals lie near their origins, so that both answers occur."""
    scale = 0.5 / max(1.0, d**0.5)
    x, anchor, v_x = (testing.random_rows(seed + i, rows, d) for i in range(3))
    out_x = testing.random_rows(seed + 3, rows, d, dtype)
    near = [scale * testing.random_rows(seed + i, rows, d) for i in (4, 5, 6, 7)]
    y, v_y = testing.random_rows(seed + 8, rows, d), testing.random_rows(seed + 8, rows, d)
    out_y = testing.random_rows(seed + 8, rows, d, dtype)
    y.copy_(x + near[0])
    out_y.copy_(out_x.float() + near[1])
    v_y.copy_(v_x + near[2])
    coef = testing.table(COLUMNS, ROWS)
    address = testing._address(rows, len(ROWS), seed)
    args = {"x": x, "y": y, "out_x": out_x, "out_y": out_y, "anchor": anchor}
    options = {}
    if velocity:
        options |= {"v_x": v_x, "v_y": v_y}
    if correction == "simpson":
        options["out_mid"] = (0.5 * (out_x.float() + out_y.float()) + near[3]).to(dtype)
    if correction == "energies":
        energy = testing.random_rows(seed + 9, rows, 1)[:, 0].contiguous()
        options |= {"energy_x": energy, "energy_y": energy + near[3][:, 0]}
    if ball:
        middle = args["y"].norm(dim=1).median() if rows else torch.ones(())
        options["ball_radius"] = middle * torch.linspace(0.9, 1.1, rows)
        coef[:, COLUMNS.index("r2")] = (scale**2 * d * 1.5) if d > 1 else 0.5
    return AcceptCall("mala_accept", {**args, "coef": coef, **address}, options)
