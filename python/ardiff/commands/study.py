"""Compare all solvers at equal numbers of calls, by several metrics, on targets of known law.

`ardiff study mixture` runs four parts: `solvers`, every solver on mixtures with exact, perturbed,
guided and learned scores; `paper`, the experiment of the reverse transition kernel paper with its
settings and faults, and beside it a correct one; `adjusted`, whether accept-reject chains reach the
floor; `scaling`, calls to a fixed accuracy over dimension, accuracy and patches.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

STUDIES = ("mixture",)
PARTS = ("solvers", "paper", "adjusted", "scaling")  # those of ardiff.study.whole
MODES = ("paper", "correct")  # those of ardiff.study.paper
SEEDS = 2**32  # far more than anyone takes; all that is drawn has seeds of its own above them
# Options that only one part reads.
OF_PART = {
    "solvers": ("targets", "scores", "methods", "budgets", "noise_seeds", "samples"),
    "paper": ("modes",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", choices=STUDIES, help="mixture: targets of known law")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)}; default all",
    )  # fmt: skip
    parser.add_argument(
        "--cut", action="store_true", help="a minute's cut: few targets, solvers and samples"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, metavar="MODE",
        help="of the part paper: paper, as its authors ran it, and correct; default both",
    )  # fmt: skip
    parser.add_argument("--targets", nargs="+", metavar="TARGET", help="such as random-101, spiral")
    parser.add_argument("--scores", nargs="+", metavar="SCORE", help="exact, perturbed, ...")
    parser.add_argument("--methods", nargs="+", metavar="SOLVER", help="default all")
    parser.add_argument("--budgets", nargs="+", type=int, metavar="CALLS", help="default 5 to 64")
    parser.add_argument(
        "--noise-seeds", type=int, metavar="N", help="seeds of the noise, default 4"
    )
    parser.add_argument("--samples", type=int, help="for each run, default 2000")
    parser.add_argument("--processes", type=int, help="default: one for each CPU")
    parser.add_argument("--no-plots", action="store_true", help="draw none; they need matplotlib")
    parser.add_argument(
        "--out", type=Path, default=Path("out/study"), metavar="FOLDER",
        help="of study.md, study.json and pareto-*.svg; default out/study",
    )  # fmt: skip


def run(args: argparse.Namespace) -> tuple[dict, int]:
    from tqdm import tqdm

    from .._files import check_writable_folder, replacing, write_json
    from ..study import report
    from ..study.whole import EXPERIMENTS, run_study

    settings = _settings(args)
    plots = "solvers" in args.parts and not args.no_plots
    if plots and find_spec("matplotlib") is None:
        raise ValueError(
            "the Pareto plots need matplotlib: pip install matplotlib, or pass --no-plots"
        )
    check_writable_folder(args.out, "--out")
    with tqdm(total=None, unit="part", disable=None) as bar:

        def shown(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        study = run_study(settings, args.parts, args.seed, args.processes, shown)
    pages = [f"# Sampler study, seed {args.seed}{', cut' if args.cut else ''}"]
    data: dict = {"seed": args.seed, "cut": args.cut, "experiments": study.experiments}
    if "solvers" in args.parts and not study.rows:
        pages.append("No method of these makes so few calls.")
    if study.rows:
        results = study.results
        middle = 16 if 16 in results.budgets else results.budgets[-1]
        pages.append(report.markdown(results, middle))
        data |= report.plain(study.rows, study.floors)
        for score in results.scores if plots else ():
            with replacing(args.out / f"pareto-{score}.svg") as temporary:
                report.plot(results, score, temporary)
    for name, found in study.experiments.items():
        part = EXPERIMENTS[name]
        pages += [f"## {part.TITLE}", part.markdown(found)]
    text = "\n\n".join(page.strip() for page in pages)
    with replacing(args.out / "study.md") as temporary:
        temporary.write_text(f"{text}\n")
    write_json(args.out / "study.json", data)
    print(text)
    print(args.out)
    return data, 0


def _settings(args: argparse.Namespace):
    """FULL or CUT, with what the options name in the place of its own."""
    from dataclasses import replace

    from ..study.whole import CUT, FULL

    _check(args)
    settings = CUT if args.cut else FULL
    if args.targets:
        scores = _each(args.scores or ["exact"])
        problems = tuple((target, score) for score in scores for target in _each(args.targets))
        settings = replace(settings, problems=problems)
    elif args.scores:
        kept = tuple((target, score) for target, score in settings.problems if score in args.scores)
        settings = replace(settings, problems=kept)
    given = {
        "methods": args.methods and _each(args.methods),
        "budgets": args.budgets and tuple(sorted(set(args.budgets))),
        "seeds": args.noise_seeds and tuple(range(args.noise_seeds)),
        "samples": args.samples,
        "modes": args.modes and _each(args.modes),
    }
    return replace(settings, **{name: value for name, value in given.items() if value})


def _each(names: list[str]) -> tuple[str, ...]:
    """Without those that stand twice."""
    return tuple(dict.fromkeys(names))


def _check(args: argparse.Namespace) -> None:
    """Refuses names that nobody knows, numbers out of range, and options of a part that is not
    run."""
    from ..study.mixture import METHODS
    from ..study.problems import SCORES, mixture_of

    for part, options in OF_PART.items():
        for name in options:
            if part not in args.parts and getattr(args, name) is not None:
                raise ValueError(
                    f"{_option(name)} is for the part {part}, which --parts leaves out"
                )
    for name, known in (("methods", METHODS), ("scores", SCORES)):
        for given in getattr(args, name) or ():
            if given not in known:
                raise ValueError(f"{_option(name)}: unknown {given!r}; known: {', '.join(known)}")
    for target in args.targets or ():
        try:
            mixture_of(target)
        except ValueError as error:
            raise ValueError(f"--targets: {error}") from error
    least = {"budgets": 1, "noise_seeds": 1, "samples": 2, "processes": 1}
    for name, at_least in least.items():
        given = getattr(args, name)
        for number in given if isinstance(given, list) else [given]:
            if number is not None and number < at_least:
                raise ValueError(f"{_option(name)}: expected at least {at_least}, got {number}")
    if not 0 <= args.seed < SEEDS:
        raise ValueError(f"--seed: expected 0 to {SEEDS - 1}, got {args.seed}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
