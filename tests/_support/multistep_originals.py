"""Samplers of k-diffusion 0.1.1 and ComfyUI (commit 02159d8) as plain loops from their formulas.

A loop gets ``denoise(x, sigma)``, x at the first of `sigmas` (they may end in 0) and ``noise()``,
the standard normal of a step. x is x0 + sigma eps, or the state (1 - sigma) x0 + sigma eps of a
rectified flow: only the samplers with an argument `flow` know the difference.
"""

from __future__ import annotations

import math

import numpy as np


def euler(denoise, x, sigmas, noise):
    """k-diffusion's sample_euler without churn."""
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (x - denoise(x, s)) / s * (s_next - s)
        noise()
    return x


def lms(denoise, x, sigmas, noise, order=4):
    """k-diffusion's sample_lms, diffusers' LMSDiscreteScheduler; the polynomial is integrated."""
    slopes = []
    for i in range(len(sigmas) - 1):
        slopes = [(x - denoise(x, sigmas[i])) / sigmas[i], *slopes][:order]
        nodes = np.array(sigmas[max(i - len(slopes) + 1, 0) : i + 1])[::-1]
        for j, slope in enumerate(slopes):
            others = np.delete(nodes, j)
            basis = np.poly1d(others, True) / np.prod(nodes[j] - others)
            primitive = basis.integ()
            x = x + (primitive(sigmas[i + 1]) - primitive(sigmas[i])) * slope
        noise()
    return x


def ipndm(denoise, x, sigmas, noise, order=4):
    """ComfyUI's sample_ipndm."""
    bashforth = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    slopes = []
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x0 = denoise(x, s)
        slopes = [(x - x0) / s, *slopes][:order]
        mean = sum(w * d for w, d in zip(bashforth[len(slopes)], slopes, strict=True))
        x = x0 if s_next == 0 else x + (s_next - s) * mean
        noise()
    return x


def gradient_estimation(denoise, x, sigmas, noise, ge_gamma=2.0):
    """ComfyUI's sample_gradient_estimation."""
    old = None
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x0 = denoise(x, s)
        slope = (x - x0) / s
        change = 0.0 if old is None else slope - old
        x = x0 if s_next == 0 else x + (s_next - s) * (slope + (ge_gamma - 1) * change)
        old = slope
        noise()
    return x


def deis_tab(denoise, x, sigmas, noise, order=3):
    """ComfyUI's sample_deis, mode tab, its sums over 10,000 points as integrals."""
    top, first = math.log1p(80.0**2), math.log1p(0.002**2) / 1e-3
    beta_d = 2 * (first - top) / (1e-3 - 1)
    beta_min = top - beta_d / 2

    def time_of(s):
        return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(s**2)) - beta_min) / beta_d

    def slope_of(t):
        """d sigma / dt."""
        sigma = np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))
        return (beta_d * t + beta_min) * (sigma**2 + 1) / (2 * sigma)

    slopes, times = [], []
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x0 = denoise(x, s)
        slopes, times = [(x - x0) / s, *slopes][:order], [time_of(s), *times][:order]
        if s_next == 0 or len(slopes) == 1:
            x = x + (s_next - s) * slopes[0]
        else:
            at, weights = np.polynomial.legendre.leggauss(60)
            half = (time_of(s_next) - times[0]) / 2
            at = times[0] + half * (1 + at)
            for j, slope in enumerate(slopes):
                others = np.delete(times, j)
                basis = np.prod([(at - t) / (times[j] - t) for t in others], axis=0)
                x = x + half * (weights * slope_of(at) * basis).sum() * slope
        noise()
    return x


def dpmpp_3m_sde(denoise, x, sigmas, noise, eta=1.0):
    """k-diffusion's sample_dpmpp_3m_sde."""
    seen, steps = [], []
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        seen = [denoise(x, s), *seen][:3]
        n = noise()
        if s_next == 0:
            return seen[0]
        h = math.log(s / s_next)
        steps = [h, *steps][:3]
        whole = h * (1 + eta)
        x = math.exp(-whole) * x + (1 - math.exp(-whole)) * seen[0]
        phi_2 = (math.exp(-whole) - 1) / whole + 1
        phi_3 = phi_2 / whole - 0.5
        slopes = [
            (new - old) / (step / h)
            for new, old, step in zip(seen[:-1], seen[1:], steps[1:], strict=True)
        ]
        if len(slopes) == 1:
            x = x + phi_2 * slopes[0]
        elif len(slopes) == 2:
            r0, r1 = steps[1] / h, steps[2] / h
            bend = slopes[0] - slopes[1]
            first = slopes[0] + bend * r0 / (r0 + r1)
            x = x + phi_2 * first - phi_3 * bend / (r0 + r1)
        x = x + n * s_next * math.sqrt(1 - math.exp(-2 * h * eta))
    return x


def res_multistep(denoise, x, sigmas, noise, eta=0.0):
    """ComfyUI's sample_res_multistep (eta 0) and _ancestral; of a flow with eta 0 alone."""
    old, old_down = None, None
    for i, (s, s_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        x0, n = denoise(x, s), noise()
        up = min(s_next, eta * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
        down = math.sqrt(s_next**2 - up**2)
        if down == 0 or old is None:
            x = x + (x - x0) / s * (down - s)
        else:
            h = math.log(s / down)
            c = math.log(old_down / sigmas[i - 1]) / h
            phi_1 = (math.exp(-h) - 1) / -h
            phi_2 = (phi_1 - 1) / -h
            x = math.exp(-h) * x + h * ((phi_1 - phi_2 / c) * x0 + phi_2 / c * old)
        if s_next > 0:
            x = x + up * n
        old, old_down = x0, down
    return x


def er_sde(denoise, x, sigmas, noise, order=3, flow=False):
    """ComfyUI's sample_er_sde, which knows a flow: its sigma / alpha is sigma / (1 - sigma)."""

    def scale(s):
        return s * (np.exp(s**0.3) + 10)

    lam = [s / (1 - s) if flow else s for s in sigmas]
    alpha = [1 - s if flow else 1.0 for s in sigmas]
    old, old_slope = None, None
    for i in range(len(sigmas) - 1):
        x0, n = denoise(x, sigmas[i]), noise()
        if sigmas[i + 1] == 0:
            return x0
        a, b = lam[i], lam[i + 1]
        r = scale(b) / scale(a)
        x = alpha[i + 1] / alpha[i] * r * x + alpha[i + 1] * (1 - r) * x0
        if i > 0 and order > 1:
            width = (a - b) / 200
            at = b + np.arange(200) * width
            slope = (x0 - old) / (a - lam[i - 1])
            total = (1 / scale(at)).sum() * width
            x = x + alpha[i + 1] * (b - a + total * scale(b)) * slope
            if i > 1 and order > 2:
                total = ((at - a) / scale(at)).sum() * width
                bend = (slope - old_slope) / ((a - lam[i - 2]) / 2)
                x = x + alpha[i + 1] * ((b - a) ** 2 / 2 + total * scale(b)) * bend
            old_slope = slope
        x = x + alpha[i + 1] * n * math.sqrt(b**2 - a**2 * r**2)
        old = x0
    return x


def sa(
    denoise, x, sigmas, noise, predictor_order=3, corrector_order=4, tau=lambda s: 1.0, flow=False
):
    """ComfyUI's sample_sa_solver without PECE and without its simple weights, but for the orders at
    the end, which it lowers by a call sooner than diffusers: they are not lowered here."""
    lam = [-math.log(s / (1 - s) if flow else s) for s in sigmas]
    alpha = [1 - s if flow else 1.0 for s in sigmas]
    seen, start, added, amount, x_pred = [], x, 0.0, 0.0, x

    def weights(i, nodes, rate):
        at, w = np.polynomial.legendre.leggauss(60)
        half = (lam[i + 1] - lam[i]) / 2
        at = lam[i] + half * (1 + at)
        found = []
        for node in nodes:
            basis = np.prod([(at - o) / (node - o) for o in nodes if o != node], axis=0)
            kernel = rate * np.exp(-rate * (lam[i + 1] - at)) * basis
            found.append(alpha[i + 1] * half * (w * kernel).sum())
        return found

    def moved(i, x, nodes, amount):
        pull = sigmas[i + 1] / sigmas[i] * math.exp(-(amount**2) * (lam[i + 1] - lam[i]))
        of = weights(i, nodes, 1 + amount**2)
        return pull * x + sum(w * d for w, d in zip(of, seen, strict=False))

    for i in range(len(sigmas)):
        seen = [denoise(x_pred, sigmas[i]), *seen]
        if i > 0 and corrector_order > 0:
            count = min(corrector_order, len(seen))
            start = moved(i - 1, start, [lam[i - j] for j in range(count)], amount) + added
        elif i > 0:
            start = x_pred
        if i == len(sigmas) - 1:
            return x_pred
        amount = tau(sigmas[i])
        count = min(predictor_order, len(seen))
        x_pred = moved(i, start, [lam[i - j] for j in range(count)], amount)
        spread = math.sqrt(1 - math.exp(-2 * amount**2 * (lam[i + 1] - lam[i])))
        added = noise() * sigmas[i + 1] * spread
        x_pred = x_pred + added


def on_levels(loop, problem, x, levels, normals, to_data=False, **options):
    """A loop on the levels of a path: in y = x / alpha, or on a flow in x itself.

    k-diffusion's dpmpp_3m_sde has log(alpha / sigma) as -log(sigma): it stays in y.
    """
    flow = problem.path.name == "flow" and loop is not dpmpp_3m_sde
    scale = [1.0 if flow else problem.at(level)[0] for level in levels]
    sigmas = [float(problem.path.sigma(a) if flow else problem.path.ratio(a)) for a in levels]
    places = dict(zip(sigmas, zip(levels, scale, strict=True), strict=True))

    def denoise(y, sigma):
        level, c = places[sigma]
        return problem.denoise(c * y, level)

    if loop in (er_sde, sa):
        options["flow"] = flow
    ends = [*sigmas, 0.0] if to_data else sigmas
    y = loop(denoise, x / scale[0], ends, lambda: next(normals)[0], **options)
    return y if to_data else scale[-1] * y
