"""Plain loops in float64 of samplers with several calls a step, of distilled and of CFG++ samplers.

Written from the papers and from the formulas of the samplers that each names: of k-diffusion 0.1.1,
of ComfyUI as of 2026 and of the code of restart sampling. They work on
x = x0 + sigma eps or, where they say so, on a flow x = (1 - sigma) x0 + sigma eps, over sigmas that
fall, to 0 or to a positive level.

`model` is called as ``model(x, sigma)`` and returns the data prediction, and `noise()` gives the
normals of the call before it; the CFG++ loops call a model that returns (guided, unconditional).
"""

from __future__ import annotations

import math

import numpy as np


def pairs(sigmas):
    return zip(sigmas[:-1], sigmas[1:], strict=True)


def ancestral(a, b, eta):
    """k-diffusion's `get_ancestral_step`: (sigma_down, sigma_up)."""
    up = min(b, eta * math.sqrt(b**2 * (a**2 - b**2) / a**2))
    return math.sqrt(b**2 - up**2), up


def flow_ancestral(a, b, eta):
    """Of ComfyUI's RF samplers: (sigma_down, factor of the state, weight of the noise)."""
    down = b * (1 + (b / a - 1) * eta)
    factor = (1 - b) / (1 - down)
    return down, factor, math.sqrt(b**2 - (down * factor) ** 2)


def euler_ancestral(model, x, sigmas, noise, eta):
    """k-diffusion's `sample_euler_ancestral`."""
    for a, b in pairs(sigmas):
        down, up = ancestral(a, b, eta)
        x = x + (x - model(x, a)) / a * (down - a)
        x = x + up * noise() if b > 0 else x
    return x


def euler_ancestral_flow(model, x, sigmas, noise, eta):
    """ComfyUI's `sample_euler_ancestral_RF`, on a flow."""
    for a, b in pairs(sigmas):
        down, factor, weight = flow_ancestral(a, b, eta) if b > 0 else (0, 1, 0)
        x0 = model(x, a)
        x = factor * (down / a * x + (1 - down / a) * x0)
        x = x + weight * noise() if b > 0 else x
    return x


def dpmpp_2s_ancestral(model, x, sigmas, noise, eta):
    """k-diffusion's `sample_dpmpp_2s_ancestral`."""
    for a, b in pairs(sigmas):
        down, up = ancestral(a, b, eta)
        x0 = model(x, a)
        if down == 0:
            x = x0
        else:
            middle = math.sqrt(a * down)
            x_2 = middle / a * x + (1 - middle / a) * x0
            x = down / a * x + (1 - down / a) * model(x_2, middle)
        x = x + up * noise() if b > 0 else x
    return x


def dpmpp_2s_ancestral_flow(model, x, sigmas, noise, eta):
    """ComfyUI's `sample_dpmpp_2s_ancestral_RF`, on a flow: half the step in log((1 - s) / s)."""
    for a, b in pairs(sigmas):
        x0 = model(x, a)
        if b == 0:
            return x0
        down, factor, weight = flow_ancestral(a, b, eta)
        odds = math.sqrt(down / (1 - down) * a / (1 - a)) if a < 1 else 9999.0
        middle = odds / (1 + odds)
        x_2 = middle / a * x + (1 - middle / a) * x0
        x = factor * (down / a * x + (1 - down / a) * model(x_2, middle)) + weight * noise()
    return x


def dpmpp_sde(model, x, sigmas, noise, eta, r):
    """k-diffusion's `sample_dpmpp_sde`, its two noises independent."""
    for a, b in pairs(sigmas):
        x0 = model(x, a)
        if b == 0:
            return x0
        middle = a * (b / a) ** r
        down, up = ancestral(a, middle, eta)
        x_2 = down / a * x + (1 - down / a) * x0 + up * noise()
        mixed = (1 - 1 / (2 * r)) * x0 + model(x_2, middle) / (2 * r)
        down, up = ancestral(a, b, eta)
        x = down / a * x + (1 - down / a) * mixed + up * noise()
    return x


def h_phi_2(z):
    return (math.expm1(z) - z) / z


def seeds_2(model, x, sigmas, noise, eta, r, solver_type):
    """ComfyUI's `sample_seeds_2`; with eta 0 and ``phi_2`` the single-step RES of two stages."""
    for a, b in pairs(sigmas):
        x0 = model(x, a)
        if b == 0:
            return x0
        h = math.log(a / b)
        big, middle = (1 + eta) * h, a * math.exp(-r * h)
        x_2 = math.exp(-r * big) * x - math.expm1(-r * big) * x0
        shared = math.sqrt(-math.expm1(-2 * r * h * eta)) * noise()
        x_2 = x_2 + middle * shared
        x0_2 = model(x_2, middle)
        b_2 = -math.expm1(-big) / (2 * r) if solver_type == "phi_1" else -h_phi_2(-big) / r
        b_1 = -math.expm1(-big) - b_2
        rest = (r - 1) * h * eta
        shared = math.exp(rest) * shared + math.sqrt(-math.expm1(2 * rest)) * noise()
        x = math.exp(-big) * x + b_1 * x0 + b_2 * x0_2 + b * shared
    return x


def seeds_3(model, x, sigmas, noise, eta, r_1, r_2):
    """ComfyUI's `sample_seeds_3`."""
    for a, b in pairs(sigmas):
        x0 = model(x, a)
        if b == 0:
            return x0
        h = math.log(a / b)
        big = (1 + eta) * h
        sigma_1, sigma_2 = a * math.exp(-r_1 * h), a * math.exp(-r_2 * h)
        shared = math.sqrt(-math.expm1(-2 * r_1 * h * eta)) * noise()
        x_2 = math.exp(-r_1 * big) * x - math.expm1(-r_1 * big) * x0 + sigma_1 * shared
        x0_2 = model(x_2, sigma_1)
        a_2 = -r_2 / r_1 * h_phi_2(-r_2 * big)
        a_1 = -math.expm1(-r_2 * big) - a_2
        rest = (r_1 - r_2) * h * eta
        shared = math.exp(rest) * shared + math.sqrt(-math.expm1(2 * rest)) * noise()
        x_3 = math.exp(-r_2 * big) * x + a_1 * x0 + a_2 * x0_2 + sigma_2 * shared
        x0_3 = model(x_3, sigma_2)
        b_3 = -h_phi_2(-big) / r_2
        b_1 = -math.expm1(-big) - b_3
        rest = (r_2 - 1) * h * eta
        shared = math.exp(rest) * shared + math.sqrt(-math.expm1(2 * rest)) * noise()
        x = math.exp(-big) * x + b_1 * x0 + b_3 * x0_3 + b * shared
    return x


def heunpp2(model, x, sigmas, noise):
    """ComfyUI's `sample_heunpp2` without churn; a flow is stepped in its sigma too."""
    for i in range(len(sigmas) - 1):
        calls = min(3, len(sigmas) - 1 - i)
        z, slopes = x, []
        for k in range(calls):
            at = sigmas[i + k]
            slopes.append((z - model(z, at)) / at)
            z = z + slopes[-1] * (sigmas[i + k + 1] - at)
        weights = [sigmas[i + k] / (calls * sigmas[0]) for k in range(calls)]
        weights[0] = 1 - sum(weights[1:])
        mean = sum(w * d for w, d in zip(weights, slopes, strict=True))
        x = x + mean * (sigmas[i + 1] - sigmas[i])
    return x


def heun_step(model, x, a, b):
    d = (x - model(x, a)) / a
    if b == 0:
        return x - a * d
    x_2 = x + d * (b - a)
    return x + (d + (x_2 - model(x_2, b)) / b) / 2 * (b - a)


def restart(model, x, sigmas, noise, low, high, times, steps):
    """Xu et al. 2023, Algorithm 1, as their `restart_sampler` on EDM models, one interval."""
    at = int(np.argmin(np.abs(np.array(sigmas) - low)))
    for i, (a, b) in enumerate(pairs(sigmas), 1):
        x = heun_step(model, x, a, b)
        if i == at and b < high:
            ends = high ** (1 / 7), b ** (1 / 7)
            over = [(ends[0] + k / steps * (ends[1] - ends[0])) ** 7 for k in range(steps + 1)]
            for _ in range(times):
                x = x + math.sqrt(high**2 - b**2) * noise(own_row=True)
                for pair in pairs(over):
                    x = heun_step(model, x, *pair)
    return x


def euler_ancestral_cfg_pp(model, x, sigmas, noise, eta):
    """ComfyUI's `sample_euler_ancestral_cfg_pp`; eta = 0 is its `sample_euler_cfg_pp`."""
    for a, b in pairs(sigmas):
        x0, free = model(x, a)
        down, up = ancestral(a, b, eta)
        x = x0 + (x - free) / a * down
        x = x + up * noise() if b > 0 else x
    return x


def dpmpp_2m_cfg_pp(model, x, sigmas, noise):
    """ComfyUI's `sample_dpmpp_2m_cfg_pp`."""
    old = None
    for i, (a, b) in enumerate(pairs(sigmas)):
        x0, free = model(x, a)
        new = x0 + b / a * (x - free)
        if old is not None and b > 0:
            r = math.log(sigmas[i - 1] / a) / math.log(a / b)
            new = new + (1 - b / a) / (2 * r) * (x0 - old)
        x, old = new, free
    return x


def dpmpp_2s_ancestral_cfg_pp(model, x, sigmas, noise, eta):
    """ComfyUI's `sample_dpmpp_2s_ancestral_cfg_pp`."""
    for a, b in pairs(sigmas):
        down, up = ancestral(a, b, eta)
        x0, free = model(x, a)
        if down == 0:
            x = free + (x0 - free)
        else:
            middle = math.sqrt(a * down)
            _, free_2 = model(middle / a * x + (1 - middle / a) * free, middle)
            x = down / a * x + (1 - down / a) * free_2 + (x0 - free)
        x = x + up * noise() if b > 0 else x
    return x


def dpmpp_2s_ancestral_flow_cfg_pp(model, x, sigmas, noise, eta):
    """ComfyUI's `sample_dpmpp_2s_ancestral_RF_cfg_pp`, on a flow."""
    for a, b in pairs(sigmas):
        x0, free = model(x, a)
        if b == 0:
            return x0
        down, factor, weight = flow_ancestral(a, b, eta)
        odds = math.sqrt(down / (1 - down) * a / (1 - a)) if a < 1 else 9999.0
        middle = odds / (1 + odds)
        _, free_2 = model(middle / a * x + (1 - middle / a) * free, middle)
        x = factor * (down / a * x + (1 - down / a) * free_2) + weight * noise()
        x = x + (1 - b) * (x0 - free)
    return x


def res_multistep_cfg_pp(model, x, sigmas, noise, eta):
    """ComfyUI's `res_multistep` with cfg_pp, its samplers with and without `_ancestral`."""
    old, old_down = None, None
    for i, (a, b) in enumerate(pairs(sigmas)):
        x0, free = model(x, a)
        down, up = ancestral(a, b, eta)
        if down == 0 or old is None:
            x = x0 + (x - free) / a * down
        else:
            h = math.log(a / down)
            behind = math.log(old_down / sigmas[i - 1]) / h
            phi_1 = math.expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            x = down / a * (x + x0 - free)
            x = x + h * ((phi_1 - phi_2 / behind) * free + phi_2 / behind * old)
        x = x + up * noise() if b > 0 else x
        old, old_down = free, down
    return x


def gradient_estimation_cfg_pp(model, x, sigmas, noise, ge_gamma):
    """ComfyUI's `sample_gradient_estimation_cfg_pp`."""
    old = None
    for a, b in pairs(sigmas):
        x0, free = model(x, a)
        if b == 0:
            return x0
        d = (x - free) / a
        x = x0 + d * b
        x = x if old is None else x + (ge_gamma - 1) * (d - old) * (b - a)
        old = d
    return x
