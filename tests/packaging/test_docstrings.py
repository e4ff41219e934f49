"""The examples in docstrings run and print what they say, and the main public names have one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import ardiff
import ardiff_kernels

MAIN = {
    "ardiff.loop.adapt_tau": ("adapted_solver",),
    "ardiff.ar.encoder": ("CausalEncoder",),
    "ardiff.ar.engine": ("AREngine",),
    "ardiff.ar.kv_cache": ("KVCache",),
    "ardiff.ar.sampler": ("ARSampler",),
    "ardiff.guide": ("Guidance",),
    "ardiff.heads.fused": ("FusedHead",),
    "ardiff.heads.loading": ("load_head",),
    "ardiff.heads.token": ("denoise_token",),
    "ardiff.integrations.systems.entry": ("accelerate",),
    "ardiff.loop.run": ("run",),
    "ardiff.models.checkpoint": ("load_model",),
    "ardiff.planning.calibrate": ("calibrate",),
    "ardiff.planning.curvature": ("curvature",),
    "ardiff.noise": ("Address", "make_key", "make_stream"),
    "ardiff.planning.plan": ("make_plan",),
    "ardiff.planning.plan_file": ("write_plan",),
    "ardiff.planning.recommend": ("recommend",),
    "ardiff.planning.stability": ("step_matrix", "check_step"),
    "ardiff.planning.kl_bound": ("kl_bound",),
    "ardiff.planning.theory": ("methods", "ou_time", "stage_size", "theory_levels"),
    "ardiff.sampling": ("sample",),
    "ardiff.solvers": ("solver",),
    "ardiff.study.gaussian_law": ("law_of",),
    "ardiff.study.paper": ("run",),
    "ardiff.tables.grids": ("dynamic_shift", "spaced"),
    "ardiff.tables.paths": ("get_path", "time_grid"),
    "ardiff.tables.ragged": ("RaggedTable",),
    "ardiff.tables.table": ("StepTable",),
}


def module_names() -> list[str]:
    """Every Python module of both packages but `__main__`, which runs a command when imported."""
    names = []
    for package in (ardiff, ardiff_kernels):
        folder = Path(package.__file__).parent
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            if parts[-1] != "__main__":
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


def imported(name: str):
    """The module, or a skip where it needs a package of another system that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if name.startswith("ardiff.integrations."):
            pytest.skip(str(error))
        raise


def examples(module) -> dict[str, doctest.DocTest]:
    """The docstrings of `module` that hold an example, by qualified name."""
    found = doctest.DocTestFinder(recurse=True).find(module, module.__name__)
    return {test.name: test for test in found if test.examples}


def failures(test: doctest.DocTest) -> str:
    """What a doctest reports; empty if every example printed what the docstring says."""
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", module_names())
def test_the_examples_of_a_module_run(name):
    reports = [failures(test) for test in examples(imported(name)).values()]
    if any(reports):
        pytest.fail("\n".join(reports))


@pytest.mark.parametrize(
    "module, name", [(module, name) for module, names in MAIN.items() for name in names]
)
def test_a_main_name_has_an_example(module, name):
    assert f"{module}.{name}" in examples(importlib.import_module(module))


def test_a_wrong_example_fails():
    parse = doctest.DocTestParser().get_doctest
    right = parse(">>> 1 + 1\n2\n", {}, "right", None, 0)
    wrong = parse(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    raising = parse(">>> undefined_name\n", {}, "raising", None, 0)
    assert failures(right) == ""
    assert "Expected:\n    3\nGot:\n    2" in failures(wrong)
    assert "NameError" in failures(raising)
