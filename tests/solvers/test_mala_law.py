"""The exact laws of MALA and HMC, driven through the ops by a plain loop.

Stationary acceptance on Gaussians is known in closed form; one step from exact draws of a mixture
leaves its law; detailed balance holds to rounding. Negative controls must fail.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from ardiff_kernels import ops, testing
from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.diffusion_step import COLUMNS as DIFFUSION
from ardiff_kernels.ops.mala_accept import COLUMNS as ACCEPT
from ardiff_kernels.ops.uld_step import COLUMNS as ULD

CHAINS = 10**6
Z_LIMIT = 4.9  # two-sided, 1e-6 per test
KS_FALSE_ALARM = 1e-6
ROW = torch.zeros(1, dtype=torch.int32)
KEY = torch.tensor([0x5EED_0F_1A75])


def address(rows: int, draw: int = 0) -> tuple[Tensor, ...]:
    return ROW, torch.full((1,), draw, dtype=torch.int32), KEY, torch.arange(rows) * 2**20


def normals(rows: int, d: int, counter: int = 1) -> Tensor:
    return ops.philox_normal(KEY, counter, torch.arange(rows) * 2**20, d)


def langevin_proposal(x: Tensor, score: Tensor, anchor: Tensor, k: float, tau: float) -> Tensor:
    """x - tau G + sqrt(2 tau) n with G = k (x - anchor) - score, as a `diffusion_step` row."""
    row = dict(p_o=1.0, x_x=1.0, x_0=tau, x_d=-tau * k, x_n=math.sqrt(2 * tau))
    table = testing.table(DIFFUSION, [row])
    return ops.diffusion_step(x, score, anchor, table, *address(len(x)))[0]


def mala_table(k: float, tau: float, **changes: float) -> Tensor:
    row = dict(g_d=k, g_o=-1.0, s_o=1.0, c_g=tau / 4) | changes
    return testing.table(ACCEPT, [row])


def z_score(accepted: Tensor, expected: float) -> float:
    spread = math.sqrt(expected * (1 - expected) / len(accepted))
    return abs(accepted.double().mean().item() - expected) / spread


def mala_acceptance(d: int, s: float) -> float:
    """Stationary acceptance on N(0, I / lambda) with s = tau lambda."""
    half = (s / 2) ** 1.5
    rho = -half / math.sqrt(1 + half**2)
    return 2 * scipy.stats.f.sf((1 - rho) / (1 + rho), d, d)


def hmc_acceptance(d: int, step: float, count: int) -> float:
    """Stationary acceptance on N(0, I) of `count` leapfrog steps."""
    theta = math.acos(1 - step**2 / 2)
    chi = (1 - step**2 / 4) ** -0.5
    gap = abs(math.sin(count * theta)) * abs(chi - 1 / chi)
    sigma = gap / 2 + math.sqrt(gap**2 / 4 + 1)
    return 2 * scipy.stats.f.sf(sigma**2, d, d)


def test_closed_forms_are_the_published_values():
    for d, s, value in ((1, 1.0, 0.783653), (3, 0.5, 0.842480), (20, 1.0, 0.129532)):
        assert abs(mala_acceptance(d, s) - value) < 1e-6


@pytest.mark.parametrize("s", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("d", [1, 3, 20])
def test_mala_acceptance_on_a_gaussian(d, s):
    """Curvature 2, of which 1.2 is the score's and 0.8 the kernel's, around an anchor."""
    curvature, k, tau = 2.0, 0.8, s / 2.0
    anchor = torch.full((CHAINS, d), 0.3)
    x = anchor + normals(CHAINS, d) / math.sqrt(curvature)
    score_x = (k - curvature) * (x - anchor)
    y = langevin_proposal(x, score_x, anchor, k, tau)
    score_y = (k - curvature) * (y - anchor)
    table = mala_table(k, tau)
    _, _, _, _, accepted, _ = ops.mala_accept(
        x, y, score_x, score_y, anchor, table, *address(CHAINS)
    )
    assert z_score(accepted, mala_acceptance(d, s)) <= Z_LIMIT
    if d == 20 and s == 1.0:  # control: the test sees a step size wrong by one percent
        assert z_score(accepted, mala_acceptance(d, 1.01 * s)) > Z_LIMIT


def leapfrog_rows(step: float, k: float) -> Tensor:
    """`uld_step` rows for G = k (z - anchor) - out: first, middle and last of a trajectory."""
    half, full = 0.5 * step, step
    rows = [
        dict(z_z=1.0, z_v=step, z_d=-step * kick * k, z_o=step * kick)
        | dict(v_v=1.0, v_d=-kick * k, v_o=kick)
        for kick in (half, full)
    ]
    last = dict(z_z=1.0, v_v=1.0, v_d=-half * k, v_o=half)
    return testing.table(ULD, [*rows, last])


@pytest.mark.parametrize(("step", "count"), [(0.5, 2), (1.2, 2), (1.4, 1)])
@pytest.mark.parametrize("d", [1, 3, 20])
def test_hmc_acceptance_on_a_gaussian(d, step, count):
    k = 0.4
    anchor = torch.full((CHAINS, d), -0.7)
    x, v_x = anchor + normals(CHAINS, d), normals(CHAINS, d, 3)
    z, v, table = x.clone(), v_x.clone(), leapfrog_rows(step, k)
    _, draw, key, stream = address(CHAINS)
    for i in range(count + 1):
        row = torch.tensor([0 if i == 0 else 2 if i == count else 1], dtype=torch.int32)
        ops.uld_step_(z, v, (k - 1) * (z - anchor), anchor, table, row, draw, key, stream)
    scores = [(k - 1) * (t - anchor) for t in (x, z)]
    accept = testing.table(ACCEPT, [dict(g_d=k, g_o=-1.0, s_o=1.0, c_d=-0.5, c_v=1.0)])
    results = ops.mala_accept(x, z, *scores, anchor, accept, *address(CHAINS), v_x=v_x, v_y=v)
    assert z_score(results[4], hmc_acceptance(d, step, count)) <= Z_LIMIT
    rejected = ~results[4]
    assert torch.equal(results[2][rejected], -v_x[rejected])


class Mixture:
    """g of a two-mode mixture p with the kernel k |z - anchor|^2 / 2: again a mixture."""

    def __init__(self, d: int = 2, k: float = 0.5) -> None:
        self.k, self.anchor = k, torch.full((d,), 0.2, dtype=torch.float64)
        self.means = torch.stack([torch.full((d,), m, dtype=torch.float64) for m in (-1.0, 1.2)])
        self.variances = torch.tensor([0.3, 0.6], dtype=torch.float64)
        self.weights = torch.tensor([0.4, 0.6], dtype=torch.float64)

    def _log_parts(self, z: Tensor) -> Tensor:
        square = (z[:, None] - self.means).square().sum(-1)
        scale = self.weights.log() - 0.5 * z.shape[1] * self.variances.log()
        return scale - 0.5 * square / self.variances

    def energy(self, z: Tensor) -> Tensor:
        return -self._log_parts(z.double()).logsumexp(1)

    def score(self, z: Tensor) -> Tensor:
        z = z.double()
        share = self._log_parts(z).softmax(1) / self.variances
        return (share[..., None] * (self.means - z[:, None])).sum(1)

    def draw(self, rows: int, seed: int) -> Tensor:
        """Exact draws of exp(-g)."""
        generator = torch.Generator().manual_seed(seed)
        wide = self.variances + 1 / self.k
        d = len(self.anchor)
        away = (self.means - self.anchor).square().sum(1)
        log_weights = self.weights.log() - 0.5 * away / wide - 0.5 * d * wide.log()
        part = torch.multinomial(log_weights.softmax(0), rows, True, generator=generator)
        precision = 1 / self.variances + self.k
        middle = self.means / self.variances[:, None] + self.k * self.anchor
        noise = torch.randn(rows, d, generator=generator, dtype=torch.float64)
        centre = middle[part] / precision[part, None]
        return (centre + noise / precision[part, None].sqrt()).float()


TARGET = Mixture()
TAU, DRAWS = 0.35, 400_000


def one_step(x: Tensor, energies=lambda x, y: (x, y), radius: float = 0.0, **changes: float):
    """A MALA step with exact energies, passed through `energies`; the state after it."""
    rows = len(x)
    anchor = TARGET.anchor.float().expand(rows, 2).contiguous()
    scores = [TARGET.score(x).float()]
    y = langevin_proposal(x, scores[0], anchor, TARGET.k, TAU)
    scores.append(TARGET.score(y).float())
    energy_x, energy_y = energies(TARGET.energy(x).float(), TARGET.energy(y).float())
    table = mala_table(TARGET.k, TAU, R2=radius**2, **changes)
    return ops.mala_accept(
        x, y, *scores, anchor, table, *address(rows), energy_x=energy_x, energy_y=energy_y
    )


def p_value(x: Tensor, exact: Tensor) -> float:
    """Two-sample KS: 3 times the smallest p-value of both coordinates and the radius."""
    views = [(t[:, 0], t[:, 1], t.norm(dim=1)) for t in (x, exact)]
    tests = [scipy.stats.ks_2samp(a.numpy(), b.numpy()) for a, b in zip(*views, strict=True)]
    return 3 * min(test.pvalue for test in tests)


@pytest.fixture(scope="module")
def draws() -> tuple[Tensor, Tensor]:
    return TARGET.draw(DRAWS, 1), TARGET.draw(DRAWS, 2)


def test_one_step_leaves_the_mixture(draws):
    x, exact = draws
    new, _, _, _, accepted, _ = one_step(x)
    assert 0.4 < accepted.float().mean() < 0.9
    assert p_value(new, exact) > KS_FALSE_ALARM


@pytest.mark.parametrize("control", ["wrong sign of the energies", "no proposal ratio"])
def test_controls_are_seen(draws, control):
    x, exact = draws
    if control == "no proposal ratio":  # g(x) - g(y) alone
        new = one_step(x, c_g=0.0, c_d=-0.5)[0]
    else:
        new = one_step(x, energies=lambda x, y: (y, x))[0]
    assert p_value(new, exact) < KS_FALSE_ALARM


def test_projection_leaves_the_mixture_in_its_ball(draws):
    """The target restricted to |z| <= R; a projection that tests x instead of y leaves the ball."""
    radius = 1.5
    x, exact = (t[t.norm(dim=1) <= radius] for t in draws)
    assert 0.3 * DRAWS < len(x) < 0.9 * DRAWS
    new = one_step(x, radius=radius)[0]
    assert (new.norm(dim=1) <= radius * (1 + 1e-6)).all()
    assert p_value(new, exact) > KS_FALSE_ALARM
    on_the_origin = torch.where((x.norm(dim=1) <= radius)[:, None], one_step(x)[0], x)
    assert p_value(on_the_origin, exact) < KS_FALSE_ALARM


STEP, KEPT = 0.9, 0.5


def partly_refreshed(x: Tensor, turns_round: bool = True, **changes: float) -> tuple:
    """Four steps of HMC on the mixture that keep half of the velocity between them (Horowitz 1991):
    position and velocity after them, and how many proposals were rejected."""
    rows, (_, _, key, stream) = len(x), address(len(x))
    anchor = TARGET.anchor.float().expand(rows, 2).contiguous()
    rule = dict(g_d=TARGET.k, g_o=-1.0, s_o=1.0, c_d=-0.5, c_v=1.0) | changes
    accept, rejected = testing.table(ACCEPT, [rule]), 0
    v, moves = normals(rows, 2, 3), leapfrog_rows(STEP, TARGET.k)
    for i in range(4):
        v = KEPT * v + math.sqrt(1 - KEPT**2) * normals(rows, 2, 4 * i + 7)
        z, w, scores, energies = x.clone(), v.clone(), [], []
        for j in range(3):
            score, row = TARGET.score(z).float(), torch.full((1,), j, dtype=torch.int32)
            if j == 0:
                scores.append(score)
                energies.append(TARGET.energy(z).float())
            ops.uld_step_(z, w, score, anchor, moves, row, row, key, stream)
        scores.append(TARGET.score(z).float())
        energies.append(TARGET.energy(z).float())
        x, _, turned, _, accepted, _ = ops.mala_accept(
            x, z, *scores, anchor, accept, *address(rows, i), v_x=v, v_y=w,
            energy_x=energies[0], energy_y=energies[1],
        )  # fmt: skip
        v = turned if turns_round else torch.where(accepted[:, None], w, v)
        rejected += int((~accepted).sum())
    return x, v, rejected


def test_persistent_hmc_leaves_the_mixture(draws):
    x, exact = draws
    new, v, rejected = partly_refreshed(x)
    assert 0.05 * DRAWS < rejected
    assert p_value(new, exact) > KS_FALSE_ALARM
    assert p_value(v, normals(DRAWS, 2, 9)) > KS_FALSE_ALARM


@pytest.mark.parametrize("control", [{"turns_round": False}, {"c_v": 0.0}], ids=str)
def test_hmc_controls_are_seen(draws, control):
    """No turn after a rejection; no kinetic energy."""
    x, exact = draws
    assert p_value(partly_refreshed(x, **control)[0], exact) < KS_FALSE_ALARM


def test_reversibility_of_hmc():
    """dH along a trajectory and along its way back cancel, in float64."""
    x, y = (TARGET.draw(2000, seed).double() for seed in (3, 4))
    velocities = torch.randn(2, 2000, 2, generator=torch.Generator().manual_seed(9)).double()
    row = dict(g_d=TARGET.k, g_o=-1.0, s_o=1.0, c_d=-0.5, c_v=1.0)
    found = []
    for (a, v_a), (b, v_b) in ((pair := list(zip((x, y), velocities, strict=True))), pair[::-1]):
        scores = [TARGET.score(a), TARGET.score(b)]
        energies = {"energy_x": TARGET.energy(a), "energy_y": TARGET.energy(b)}
        found.append(log_alpha64(a, b, scores, row, v_x=v_a, v_y=-v_b, **energies))
    total = [
        TARGET.energy(z) + 0.5 * TARGET.k * (z - TARGET.anchor).square().sum(1)
        + 0.5 * v.square().sum(1)
        for z, v in pair
    ]  # fmt: skip
    assert (found[0] - (total[0] - total[1])).abs().max() < 1e-12
    assert (found[0] + found[1]).abs().max() < 1e-12


def log_alpha64(x: Tensor, y: Tensor, scores: list[Tensor], row: dict, **options) -> Tensor:
    """The float64 reference's log_alpha with a float64 table."""
    table = torch.tensor([[row.get(name, 0.0) for name in ACCEPT]], dtype=torch.float64)
    anchor = TARGET.anchor.expand_as(x)
    reference = backends.reference_function("mala_accept")
    return reference(x, y, *scores, anchor, table, *address(len(x)), **options)[5]


@pytest.mark.parametrize("tau", [0.05, 0.35, 1.3])
def test_detailed_balance_of_mala(tau):
    """pi(x) q(x, y) a(x, y) = pi(y) q(y, x) a(y, x) for random pairs, to 1e-12."""
    x, y = (TARGET.draw(2000, seed).double() for seed in (3, 4))
    row = dict(g_d=TARGET.k, g_o=-1.0, s_o=1.0, c_g=tau / 4)
    sides, acceptances = [], []
    for a, b in ((x, y), (y, x)):
        scores = [TARGET.score(a), TARGET.score(b)]
        energies = {"energy_x": TARGET.energy(a), "energy_y": TARGET.energy(b)}
        away = a - TARGET.anchor
        log_pi = -TARGET.energy(a) - 0.5 * TARGET.k * away.square().sum(1)
        mean = a - tau * (TARGET.k * away - scores[0])
        log_q = -(b - mean).square().sum(1) / (4 * tau)
        log_alpha = log_alpha64(a, b, scores, row, **energies)
        acceptances.append(log_alpha)
        sides.append(log_pi + log_q + log_alpha.clamp(max=0))
    scale = sides[0].abs().clamp(min=1.0)
    assert ((sides[0] - sides[1]).abs() / scale).max() < 1e-12
    assert ((acceptances[0] + acceptances[1]).abs() / scale).max() < 1e-12
    assert (acceptances[0] < 0).any() and (acceptances[1] < 0).any()


def test_trapezoid_and_simpson_equal_the_energies_on_a_gaussian():
    d, curvature, k, tau = 7, 1.7, TARGET.k, 0.4
    generator = torch.Generator().manual_seed(8)
    anchor = TARGET.anchor[:1]
    x, y = torch.randn(2, 500, d, generator=generator, dtype=torch.float64)
    scores = [-(curvature - k) * z for z in (x, y)]
    energies = [0.5 * (curvature - k) * z.square().sum(1) for z in (x, y)]
    row = dict(g_d=k, g_o=-1.0, s_o=1.0, c_g=tau / 4)
    table = torch.tensor([[row.get(name, 0.0) for name in ACCEPT]], dtype=torch.float64)
    reference = backends.reference_function("mala_accept")
    args = (x, y, *scores, anchor.expand_as(x), table, *address(500))
    trapezoid = reference(*args)[5]
    simpson = reference(*args, out_mid=-(curvature - k) * 0.5 * (x + y))[5]
    exact = reference(*args, energy_x=energies[0], energy_y=energies[1])[5]
    assert (trapezoid - exact).abs().max() < 1e-12
    assert (simpson - exact).abs().max() < 1e-12
    single = [t.float() for t in args[:5]] + [mala_table(k, tau), *args[6:]]
    short = [e.float() for e in energies]
    by_energy = ops.mala_accept(*single, energy_x=short[0], energy_y=short[1])[5]
    assert (ops.mala_accept(*single)[5] - by_energy).abs().max() < 2e-5


def test_simpson_beats_the_trapezoid_on_the_mixture():
    """rms error of log_alpha along proposals: several times smaller."""
    x = TARGET.draw(5000, 5).double()
    y = x + 0.6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(6)).double()
    scores = [TARGET.score(x), TARGET.score(y)]
    row = dict(g_d=TARGET.k, g_o=-1.0, s_o=1.0, c_g=TAU / 4)
    energies = {"energy_x": TARGET.energy(x), "energy_y": TARGET.energy(y)}
    exact = log_alpha64(x, y, scores, row, **energies)
    trapezoid = log_alpha64(x, y, scores, row) - exact
    middle = TARGET.score(0.5 * (x + y))
    simpson = log_alpha64(x, y, scores, row, out_mid=middle) - exact
    assert simpson.square().mean().sqrt() < 0.3 * trapezoid.square().mean().sqrt()
