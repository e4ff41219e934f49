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
PARTS = ("solvers", "paper", "adjusted", "scaling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", choices=STUDIES, help="mixture: targets of known law")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)}; default all",
    )  # fmt: skip
    parser.add_argument(
        "--cut", action="store_true", help="a minute's cut: few targets, solvers and samples"
    )
    parser.add_argument("--targets", nargs="+", metavar="TARGET", help="such as random-101, spiral")
    parser.add_argument("--scores", nargs="+", metavar="SCORE", help="exact, perturbed, ...")
    parser.add_argument("--methods", nargs="+", metavar="SOLVER", help="default all")
    parser.add_argument("--budgets", nargs="+", type=int, metavar="CALLS", help="default 5 to 64")
    parser.add_argument(
        "--noise-seeds", type=int, metavar="N", help="seeds of the noise, default 4"
    )
    parser.add_argument("--samples", type=int, help="for each run, default 4000")
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

    check_writable_folder(args.out, "--out")
    settings = _settings(args)
    if not args.no_plots and find_spec("matplotlib") is None:
        raise ValueError(
            "the Pareto plots need matplotlib: pip install matplotlib, or pass --no-plots"
        )
    if args.processes is not None and args.processes < 1:
        raise ValueError(f"--processes: expected at least 1, got {args.processes}")
    with tqdm(total=None, unit="part", disable=None) as bar:

        def shown(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        study = run_study(settings, args.parts, args.seed, args.processes, shown)
    pages = [f"# Sampler study, seed {args.seed}{', cut' if args.cut else ''}\n"]
    data: dict = {"seed": args.seed, "cut": args.cut, "experiments": study.experiments}
    if study.rows:
        results = study.results
        middle = 16 if 16 in results.budgets else results.budgets[-1]
        pages.append(report.markdown(results, middle))
        data |= report.plain(study.rows, study.floors)
        for score in () if args.no_plots else results.scores:
            with replacing(args.out / f"pareto-{score}.svg") as temporary:
                report.plot(results, score, temporary)
    pages += [EXPERIMENTS[name].markdown(found) for name, found in study.experiments.items()]
    with replacing(args.out / "study.md") as temporary:
        temporary.write_text("\n".join(pages))
    write_json(args.out / "study.json", data)
    print("\n".join(pages))
    print(args.out)
    return data, 0


def _settings(args: argparse.Namespace):
    """FULL or CUT, with what the options name in the place of its own."""
    from dataclasses import replace

    from ..study.mixture import METHODS
    from ..study.problems import SCORES, mixture_of
    from ..study.whole import CUT, FULL

    settings = CUT if args.cut else FULL
    for option, asked, known in (
        ("--methods", args.methods, METHODS),
        ("--scores", args.scores, SCORES),
    ):
        for name in asked or ():
            if name not in known:
                raise ValueError(f"{option}: unknown {name!r}; known: {', '.join(known)}")
    for name in args.targets or ():
        mixture_of(name)
    numbers = [*(args.budgets or ()), args.noise_seeds or 1, args.samples or 1]
    if min(numbers) < 1:
        raise ValueError(f"--budgets, --noise-seeds, --samples: expected at least 1, got {numbers}")
    if args.targets:
        scores = args.scores or ["exact"]
        settings = replace(settings, problems=tuple((t, s) for s in scores for t in args.targets))
    elif args.scores:
        kept = tuple((t, s) for t, s in settings.problems if s in args.scores)
        settings = replace(settings, problems=kept)
    given = {
        "methods": args.methods and tuple(args.methods),
        "budgets": args.budgets and tuple(sorted(set(args.budgets))),
        "seeds": args.noise_seeds and tuple(range(args.noise_seeds)),
        "samples": args.samples,
    }
    return replace(settings, **{name: value for name, value in given.items() if value})
