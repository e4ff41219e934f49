"""A plan: the theory's settings for a problem, a check of inner steps, and what to use."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Any

from ..ar.sampler import ARSampler
from ..models.checkpoint import shipped_models
from ..solvers import default_tau, solver
from .checks import check_positive
from .kl_bound import kl_bound
from .plan_file import SamplePlan
from .plan_report import PlanReport
from .problem import Problem, given_problem, load_problem
from .recommend import Recommendation, evidence, kind_of, recommend
from .stability import CHECKED, KINETIC, StepCheck, check_step
from .theory import Method, Setting, methods
from .timing import Timing, measure

ACCURACY = 0.1  # of the theory where only a budget is given
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
    guidance: float | None = None,
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
        lipschitz: L of the score on the OU path, for data of unit scale. Of a model it is measured
            where None: the largest eigenvalue of the Hessian of -log p at 12 levels, by power
            iteration on differences of the score.
        accuracy: eps. With `calls` or `seconds` it goes to the theory alone, as an error in total
            variation; by itself it is the budget too: the fewest measured calls whose error is at
            most eps above that of exact draws.
        calls: model calls for each patch.
        seconds: for a batch of images on this machine, which is measured; needs a model.
        score: ``exact``, ``learned`` or ``guided``: which measurements the recommendation is from.
        guidance: of a model, the scale w of classifier-free guidance u + w (c - u).
        scale: root mean square length of a sample, or of a patch, where it is known.
        second_moment, score_error: m0 and eps_score of the KL bound.
        batch: images drawn together.
        seed: of what is drawn to measure.

    Raises:
        ValueError: something missing, given twice or out of range; the message says what to do.
        CheckpointError: a model that is not there or damaged.
        FloatingPointError: a model whose score is not finite.

    Example:
        >>> from ardiff.planning.plan import make_plan
        >>> plan = make_plan(path="edm", dim=64, lipschitz=2.0, calls=16, score="exact")
        >>> plan.setting.lipschitz, plan.condition, plan.recommendation.steps
        (2.0, 3.0, 16)
    """
    _check_budget(accuracy, calls, seconds, model)
    _check_problem(model, path, dim, patches, lipschitz, score, guidance)
    known = {"accuracy": ACCURACY if accuracy is None else accuracy, "score_error": score_error,
             "second_moment": second_moment}  # fmt: skip
    patches = 1 if patches is None else patches
    # what is wrong with the numbers is said before anything is measured
    Setting(patches if dim is None else dim, 1.0 if lipschitz is None else lipschitz,
            patches=patches, **known)  # fmt: skip
    recommend(1 if calls is None else calls, score=score, scale=scale, batch=batch)
    if model is None:
        problem = given_problem(path, dim, patches, lipschitz)
    else:
        problem = load_problem(model, lipschitz, guidance, seed)
    setting = Setting(problem.dim, problem.lipschitz, patches=problem.patches, **known)
    timing = None
    if seconds is not None:
        timing = measure(problem.model, batch, guidance=guidance, seed=seed)
    about = {"score": score, "dim": problem.patch_dim, "scale": scale,
             "smallest": problem.smallest, "batch": batch}  # fmt: skip
    choice, budget = _choose(accuracy, calls, seconds, timing, about)
    sample = SamplePlan(
        _name(model), problem.path, choice.solver, choice.steps, choice.options, choice.lookahead,
        guidance,
    )  # fmt: skip
    _check_runs(sample, problem)
    found = methods(setting, problem.horizon)
    ddpm, uld = (next(m for m in found if m.name == name) for name in ("ddpm", "rtk-uld"))
    return PlanReport(
        setting=setting,
        path=problem.path,
        horizon=problem.horizon,
        curvature=problem.curvature,
        methods=tuple(found),
        bounds={
            "ddpm of the theory": kl_bound(setting, problem.horizon, ddpm.stages),
            f"{choice.steps} calls": kl_bound(setting, problem.horizon, choice.steps),
        },
        kernel=problem.kernel,
        checks=_theory_steps(uld, problem),
        defaults=_default_steps(problem),
        recommendation=choice,
        budget=budget,
        timing=timing,
        sample=sample,
    )


def _check_budget(accuracy, calls, seconds, model) -> None:
    if calls is not None and seconds is not None:
        raise ValueError("calls and seconds are both a budget: give one")
    if accuracy is None and calls is None and seconds is None:
        raise ValueError("a plan needs a budget: give calls, seconds or accuracy")
    if seconds is not None and model is None:
        raise ValueError("seconds: the time of a call is measured with the model: give model too")
    if seconds is not None:
        check_positive(seconds=seconds)


def _check_problem(model, path, dim, patches, lipschitz, score, guidance) -> None:
    if model is not None:
        if not isinstance(model, (str, os.PathLike)):
            raise ValueError(f"model must be a shipped name or a folder, got {model!r}")
        given = {"path": path, "dim": dim, "patches": patches}
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise ValueError(f"{beside[0]} is the model's own: leave it out")
        if (guidance is not None) != (score == "guided"):
            raise ValueError(
                "a model's guidance and score guided go together: give both or neither, got "
                f"guidance {guidance} and score {score}"
            )
        return
    if guidance is not None:
        raise ValueError("guidance is that of a model: give model too")
    needed = {"path": path, "dim": dim, "lipschitz": lipschitz}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(
            f"a plan needs a model, or path, dim and lipschitz: {missing[0]} is missing"
        )


def _check_runs(sample: SamplePlan, problem: Problem) -> None:
    """ValueError where no table can be made of a plan, as with too few calls."""
    if problem.model is not None:
        ARSampler(problem.model, **sample.sampler_options())
    else:
        about = {"path": sample.path, "prediction": "sample", "steps": sample.steps}
        solver(sample.solver, **about, **sample.options)


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
    about: dict[str, Any],
) -> tuple[Recommendation, str]:
    """What to use, and where the number of its calls is from."""
    if calls is not None:
        choice = recommend(calls, **about)
        return choice, f"budget: {calls} model calls per patch, as asked"
    if seconds is not None:
        fit = timing.calls(seconds)
        choice = recommend(fit, **about)
        said = (
            f"budget: {fit} model calls per patch fit into {seconds:g} s for a batch of "
            f"{timing.batch} images on this machine, {1e3 * timing.per_call:.3g} ms each and "
            f"{timing.overhead:.3g} s for contexts; {choice.steps} take "
            f"{timing.seconds(choice.steps):.3g} s"
        )
        return choice, said
    return _fewest(accuracy, about)


def _fewest(accuracy: float, about: dict[str, Any]) -> tuple[Recommendation, str]:
    """The recommendation at the first measured budget whose error is near enough to the floor."""
    for calls in sorted(evidence()[kind_of(about["score"], about["dim"])]):
        choice = recommend(calls, **about)
        error, floor = _measured(choice, about)
        if error <= floor + accuracy:
            said = (
                f"budget: {calls} calls are the fewest measured whose error, {error:.3g}, is at "
                f"most eps = {accuracy:g} above that of exact draws, {floor:.3g}"
            )
            return choice, said
    return choice, (
        f"budget: no measured number of calls comes within eps = {accuracy:g} of exact draws; "
        f"{calls} are the most that were measured"
    )


def _measured(choice: Recommendation, about: dict[str, Any]) -> tuple[float, float]:
    """(error, floor) of what is recommended at a budget that was measured."""
    floor, choices = evidence()[kind_of(about["score"], about["dim"])][choice.steps]
    lengths = {name: about[name] for name in ("scale", "smallest") if about[name] is not None}
    error = next(
        each.error
        for each in choices
        if each.solver == choice.solver
        and each.needs() <= set(lengths)
        and each.resolved(lengths) == choice.options
    )
    return error, floor


def _theory_steps(uld: Method, problem: Problem) -> tuple[StepCheck, ...]:
    """The checks of steps of RTK-ULD's tau. A Langevin step of tau^2 / 2 is a leapfrog step of tau
    from a fresh velocity."""
    found = []
    for name in CHECKED:
        tau = uld.tau**2 / 2 if name in ("rtk-ula", "rtk-mala") else uld.tau
        found.append(check_step(name, *problem.kernel, tau=tau, gamma=uld.gamma))
    return tuple(found)


def _default_steps(problem: Problem) -> tuple[StepCheck, ...]:
    """The checks of the solvers' own steps, on the theory's stages."""
    return tuple(
        check_step(
            name, *problem.envelope, tau=default_tau(name, {"dim": problem.patch_dim}),
            gamma=DEFAULT_GAMMA if name in KINETIC else None,
        )
        for name in CHECKED
    )  # fmt: skip
