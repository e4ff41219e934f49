"""The examples of the README and of pages run; ENVS.md names every environment variable that is
read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

READS = re.compile(
    r"(?:environ(?:\.get)?[\[(]|getenv\(|flag\()\s*[\"'](ARDIFF_[A-Z_]+|TRITON_INTERPRET|CI)[\"']"
)


def read_variables(text: str) -> set[str]:
    return set(READS.findall(text))


def test_the_readme_example_runs(capsys) -> None:
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) <= 22
    exec(compile(example, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.split("\n")[:2]
    assert first.startswith("torch.Size([16, 3, 32, 32])")
    assert abs(float(re.search(r"[\d.]+", second)[0]) - 0.5) < 0.05


@pytest.mark.parametrize(
    "page",
    [
        *("calibrate.md", "context.md", "cpu.md", "learned_tables.md", "noise_path.md"),
        "papers.md",
        *("parallel.md", "plan.md", "quality.md", "scaling.md", "solvers.md", "systems.md"),
    ],
)
def test_the_examples_of_a_page_run(page, capsys) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), {})
    assert capsys.readouterr().out


def test_every_environment_variable_is_documented() -> None:
    folders = ("ardiff_kernels", "benchmarks", "csrc", "python", "tests")
    found = [path for name in folders for path in (ROOT / name).rglob("*")]
    suffixes = (".py", ".cpp", ".cu", ".cuh", ".h", ".inc")
    sources = [p for p in found if p.suffix in suffixes and p != Path(__file__)]
    files = [ROOT / "setup.py", *sources]
    used = set().union(*(read_variables(path.read_text()) for path in files))
    assert {"ARDIFF_BACKEND", "ARDIFF_CPU_ISA", "ARDIFF_BUILD_CUDA"} <= used
    documented = (ROOT / "ENVS.md").read_text()
    assert [name for name in sorted(used) if f"`{name}`" not in documented] == []


def test_the_search_for_variables_finds_them() -> None:
    found = read_variables('os.environ.get("ARDIFF_NEW") std::getenv("ARDIFF_OTHER") flag("CI")')
    assert found == {"ARDIFF_NEW", "ARDIFF_OTHER", "CI"}


def unreleased_installs(text: str) -> list[str]:
    """Commands that ask for this project by its name, under which no release can be found."""
    return re.findall(r"pip install[^\n`]*ardiff-kernels\S*", text)


def test_no_page_or_error_installs_a_release_that_there_is_not() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "setup.py"]
    sources = [*(ROOT / "python").rglob("*.py"), *(ROOT / "ardiff_kernels").rglob("*.py")]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in [*pages, *sources]}
    assert sum("pip install" in text for text in texts.values()) > 5
    found = {name: unreleased_installs(text) for name, text in texts.items()}
    assert {name: commands for name, commands in found.items() if commands} == {}


def test_an_install_of_a_release_is_found() -> None:
    wrong = "`pip install 'ardiff-kernels[fid]'` or\n    pip install -U ardiff-kernels\n"
    assert len(unreleased_installs(wrong)) == 2
    right = "pip install '.[fid]'\npip install dist/ardiff_kernels-0.1.0.whl\n"
    assert unreleased_installs(right) == []
