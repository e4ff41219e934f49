"""A nonlinear problem in float64, and a plain loop that executes any table on it."""

from __future__ import annotations

import math

import numpy as np
import torch

from ardiff.tables.paths import get_path, output_from_data
from ardiff_kernels import host
from ardiff_kernels.ops.diffusion_step.reference import diffusion_step
from ardiff_kernels.ops.mala_accept.reference import mala_accept
from ardiff_kernels.ops.uld_step.reference import uld_step


class Problem:
    """A path, a nonlinear denoiser and the normals, all in float64."""

    def __init__(self, path: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.path = get_path(path)
        self.start = rng.standard_normal(40)
        self.normals = rng.standard_normal((64, 2, 40))
        self.decided = []

    def at(self, level):
        return float(self.path.alpha(level)), float(self.path.sigma(level))

    def denoise(self, x, level):
        alpha, sigma = self.at(level)
        scaled = alpha * x / (alpha**2 + sigma**2)
        return 0.7 * np.tanh(2 * scaled) + 0.2 * np.sin(3 * scaled) * alpha / (alpha + sigma)

    def output(self, prediction, x, level):
        """What the model returns at x, a tensor."""
        x0 = torch.tensor(self.denoise(x.numpy(), level))
        return output_from_data(prediction, *self.at(level), x, x0)

    def score(self, x, level):
        alpha, sigma = self.at(level)
        return (alpha * self.denoise(x, level) - x) / sigma**2


def run_table(table, problem):
    """Executes a table with the ops' float64 reference; the final state."""
    *_, last = states(table, problem)
    return last


def states(table, problem):
    """Executes a table with the ops' float64 reference; yields the state after each row."""
    coef = torch.tensor(table.coefficients)
    key, stream = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    x = torch.tensor(table.init_scale * problem.start)[None]
    v = torch.full_like(x, torch.nan)
    memory = torch.full((1, x.shape[1] * table.memories), torch.nan)
    memory = memory.double()
    out, origin, ball = torch.full_like(x, torch.nan), {}, None
    for i, level in enumerate(table.level):
        row = torch.tensor([i], dtype=torch.int32)
        place = (coef, row, row, key, stream)
        n1, n2 = torch.tensor(problem.normals[i])[:, None, :]
        if table.midpoint[i]:
            origin["out_mid"] = problem.output(table.prediction, (origin["x"] + x) / 2, level)
            yield x[0].numpy()
            continue
        if table.calls_model[i]:
            out = problem.output(table.prediction, x, level)
        if table.saves_origin[i]:
            origin = {"x": x, "out": out, "v": v}
        if table.ball_margin[i] > 0:
            mean, _, _ = diffusion_step(x, out, memory, *place, noise=torch.zeros_like(x))
            ball = mean.norm(dim=1) + table.ball_margin[i]
        if table.op[i] == "diffusion":
            x, memory, _ = diffusion_step(x, out, memory, *place, noise=n1)
        elif table.op[i] == "uld":
            x, v, memory = uld_step(x, v, out, memory, *place, noise=n1, noise2=n2)
        else:
            kinetic = {"v_x": origin["v"], "v_y": v} if "uld" in table.op else {}
            found = mala_accept(
                origin["x"], x, origin["out"], out, memory, *place,
                out_mid=origin.get("out_mid"), ball_radius=ball, **kinetic,
            )  # fmt: skip
            x, out, v = found[0], found[1], found[2] if kinetic else v
            problem.decided.append(bool(found[4]))
        yield x[0].numpy()


def between(problem, a, b):
    (alpha_a, sigma_a), (alpha_b, sigma_b) = problem.at(a), problem.at(b)
    r = alpha_a / alpha_b
    return alpha_a, sigma_a, alpha_b, sigma_b, r, sigma_a**2 - r**2 * sigma_b**2


def ancestral_law(problem, x, a, b):
    alpha_a, sigma_a, alpha_b, sigma_b, r, s2 = between(problem, a, b)
    x0 = problem.denoise(x, a)
    mean = (alpha_b * s2 * x0 + r * sigma_b**2 * x) / sigma_a**2
    return mean, math.sqrt(sigma_b**2 * s2 / sigma_a**2)


class Rows:
    """The normals of each row, in order; every row of a table takes its own."""

    def __init__(self, normals):
        self.normals, self.row = normals, -1

    def __next__(self):
        self.row += 1
        return self.normals[self.row]

    def accepts(self, log_alpha):
        """The decision of the next row, by word 0 of quad 0 at counter 4 row + 2."""
        next(self)
        word = host.philox((0, 4 * self.row + 2, 0, 0), (0, 0))[0]
        return math.log((word + 0.5) * 2**-32) < log_alpha
