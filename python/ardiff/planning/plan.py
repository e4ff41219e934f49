"""A plan: the theory's settings for a problem, a check of inner steps, and what to use."""

from __future__ import annotations

import math
from pathlib import Path as FilePath

from ..ar.sampler import ARSampler, load
from ..models.checkpoint import shipped_models
from ..solvers import default_tau
from ..solvers._default import BUDGETS
from ..tables.paths import OUPath, get_path
from .plan_file import SamplePlan
from .plan_report import PlanReport
from .recommend import Recommendation, recommend
from .stability import CHECKED, WITH_FRICTION, StepCheck, check_step
from .theory import Method, Setting, kernel_curvature, kl_bound, methods, ou_time
from .timing import Timing, measure

ACCURACY = 0.1  # of the theory where only a budget is given
RATIO_MAX, RATIO_MIN = 40.0, 0.002  # ends of a grid, as of ardiff.solver
DEFAULT_GAMMA = 2.0  # of the kinetic solvers, in units of the envelope


def make_plan(
    *,
    model: str | FilePath | None = None,
    path: str | None = None,
    dim: int | None = None,
    patches: int | None = None,
    lipschitz: float | None = None,
    accuracy: float | None = None,
    calls: int | None = None,
    seconds: float | None = None,
    score: str = "learned",
    scale: float | None = None,
    second_moment: float | None = None,
    score_error: float = 0.0,
    batch: int = 128,
    seed: int = 0,
) -> PlanReport:
    """The theory's figures for a problem, the check of the inner steps, and a recommendation.

    Args:
        model: a shipped name or a folder, from which path, dim and patches are; or None, and these
            are given.
        path: a name of :data:`ardiff.tables.paths.PATHS`.
        dim: elements of a whole sample, over all patches.
        patches: K, 1 where None.
        lipschitz: L of the score on the OU path, for data of unit scale.
        accuracy: eps. With `calls` or `seconds` it goes to the theory alone, as an error in total
            variation; by itself it is the budget too: the fewest measured calls whose error is at
            most eps above that of exact draws.
        calls: model calls for each patch.
        seconds: for a batch of images on this machine, which is measured; needs a model.
        score: ``exact``, ``learned`` or ``guided``: which measurements the recommendation is from.
        scale: of classifier-free guidance, w of u + w (c - u).
        second_moment, score_error: m0 and eps_score of the KL bound.
        batch: images drawn together, of `seconds`.
        seed: of what is drawn to measure.

    Raises:
        ValueError: something missing, given twice or out of range; the message says what to do.
        CheckpointError: a model that is not there or damaged.

    Example:
        >>> from ardiff.planning.plan import make_plan
        >>> plan = make_plan(path="edm", dim=64, lipschitz=2.0, calls=16, score="exact")
        >>> plan.setting.lipschitz, plan.condition, plan.recommendation.steps
        (2.0, 3.0, 16)
    """
    _check_budget(accuracy, calls, seconds, score, scale, model)
    _check_problem(model, path, dim, patches, lipschitz)
    loaded = None if model is None else load(model)
    if loaded is not None:
        config = loaded.config
        path, patches, dim = config.path, config.patches, config.patches * config.patch_dim
        if scale is not None and loaded.null is None:
            raise ValueError("scale: the model was trained without context dropout")
    given = get_path(path)
    ends = (RATIO_MAX, RATIO_MIN) if loaded is None else (config.ratio_max, config.ratio_min)
    high, low = min(ends[0], given.ratio_max), max(ends[1], given.ratio_min)
    horizon = ou_time(given, float(given.level(high)))
    setting = Setting(
        dim, lipschitz, ACCURACY if accuracy is None else accuracy, patches or 1, second_moment,
        score_error,
    )  # fmt: skip
    timing = None if seconds is None else measure(loaded, batch, guidance=scale, seed=seed)
    choice, budget = _choose(accuracy, calls, seconds, timing, score)
    sample = SamplePlan(
        _name(model), path, choice.solver, choice.steps, choice.options, choice.lookahead, scale
    )
    if loaded is not None:
        ARSampler(loaded, **sample.sampler_options())  # refuses a table that cannot run
    found = methods(setting, horizon)
    ddpm, uld = (next(m for m in found if m.name == name) for name in ("ddpm", "rtk-uld"))
    kernel = kernel_curvature(setting.lipschitz, uld.eta)
    return PlanReport(
        setting=setting,
        path=path,
        horizon=horizon,
        lipschitz_from="given",
        methods=tuple(found),
        bounds={
            "ddpm of the theory": kl_bound(setting, horizon, ddpm.stages),
            f"{choice.steps} calls": kl_bound(setting, horizon, choice.steps),
        },
        kernel=kernel,
        checks=_theory_steps(uld, kernel),
        defaults=_default_steps(setting, uld, low),
        recommendation=choice,
        budget=budget,
        timing=timing,
        sample=sample,
    )


def _check_budget(accuracy, calls, seconds, score, scale, model) -> None:
    if calls is not None and seconds is not None:
        raise ValueError("calls and seconds are both a budget: give one")
    if accuracy is None and calls is None and seconds is None:
        raise ValueError("a plan needs a budget: give calls, seconds or accuracy")
    if seconds is not None and model is None:
        raise ValueError("seconds: the time of a call is measured with the model: give model too")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    if scale is not None and score != "guided":
        raise ValueError(f"scale is that of guidance: it goes with score guided, not {score}")
    if scale is None and score == "guided" and model is not None:
        raise ValueError("score guided needs the scale of guidance: give scale too")


def _check_problem(model, path, dim, patches, lipschitz) -> None:
    given = {"path": path, "dim": dim, "patches": patches}
    if model is not None:
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise ValueError(f"{beside[0]} is the model's own: leave it out")
    elif path is None or dim is None:
        missing = "path" if path is None else "dim"
        raise ValueError(f"a plan needs a model, or path, dim and lipschitz: {missing} is missing")
    if lipschitz is None:
        raise ValueError("a plan needs lipschitz, the Lipschitz constant of the score")


def _name(model: str | FilePath | None) -> str | None:
    """As a plan file has it: a shipped name, or a folder that is found from everywhere."""
    if model is None or str(model) in shipped_models():
        return None if model is None else str(model)
    return str(FilePath(model).resolve())


def _choose(
    accuracy: float | None,
    calls: int | None,
    seconds: float | None,
    timing: Timing | None,
    score: str,
) -> tuple[Recommendation, str]:
    """What to use, and where the number of its calls is from."""
    if calls is not None:
        return recommend(calls, score=score), f"budget: {calls} model calls per patch, as asked"
    if seconds is not None:
        fit = timing.calls(seconds)
        choice = recommend(fit, score=score)
        said = (
            f"budget: {fit} model calls per patch fit into {seconds:g} s for a batch of "
            f"{timing.batch} images on this machine, {1e3 * timing.per_call:.3g} ms each and "
            f"{timing.overhead:.3g} s for contexts; {choice.steps} take "
            f"{timing.seconds(choice.steps):.3g} s"
        )
        return choice, said
    return _fewest(accuracy, score)


def _fewest(accuracy: float, score: str) -> tuple[Recommendation, str]:
    """The recommendation at the first measured budget whose error is near enough to the floor."""
    for calls in BUDGETS:
        choice = recommend(calls, score=score)
        measured = {name: (error, floor) for name, error, floor in choice.rivals}
        error, floor = measured.get(choice.solver, (math.inf, 0.0))
        if error <= floor + accuracy:
            said = (
                f"budget: {calls} calls are the fewest measured whose error, {error:.3g}, is at "
                f"most eps = {accuracy:g} above that of exact draws, {floor:.3g}"
            )
            return choice, said
    return choice, (
        f"budget: no measured number of calls comes within eps = {accuracy:g} of exact draws; "
        f"{BUDGETS[-1]} are the most that were measured"
    )


def _theory_steps(uld: Method, kernel: tuple[float, float]) -> tuple[StepCheck, ...]:
    """The checks of steps of RTK-ULD's tau. A Langevin step of tau^2 / 2 is a leapfrog step of tau
    from a fresh velocity."""
    found = []
    for name in CHECKED:
        tau = uld.tau**2 / 2 if name in ("rtk-ula", "rtk-mala") else uld.tau
        found.append(check_step(name, *kernel, tau=tau, gamma=uld.gamma))
    return tuple(found)


def _default_steps(setting: Setting, uld: Method, ratio_min: float) -> tuple[StepCheck, ...]:
    """The checks of the solvers' own steps, on the theory's stages.

    With q = 2 L the curvature of the kernel's quadratic part, the envelope has 1 / w^2 =
    q + 1 / sigma^2. No law of data has more: an exact score has curvature at most 1 / sigma^2.
    """
    variance = float(OUPath().sigma(OUPath().level(ratio_min))) ** 2
    low = setting.lipschitz / (2 * setting.lipschitz + 1 / variance)
    dim = setting.dim // setting.patches
    return tuple(
        check_step(
            name, low, 1.0, tau=default_tau(name, {"dim": dim}),
            gamma=DEFAULT_GAMMA if name in WITH_FRICTION else None,
        )
        for name in CHECKED
    )  # fmt: skip
