"""CONTRIBUTING.md is true of the tree: the paths and commands that it names exist, and the diffs
that it shows are in the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

PAGES = ("CONTRIBUTING.md", "docs/design.md", "docs/glossary.md")
MADE = ("out/",)  # what commands write
TOP = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def paths_in(text: str) -> list[str]:
    """The paths from the root that a page names, `{a,b}` taken apart and `<op>` as `*`."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    quoted = [word for found in re.findall(r"`([^`]+)`", prose) for word in found.split()]
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", prose) if "://" not in link]
    found = []
    for name in quoted + linked:
        alternatives = re.fullmatch(r"(.*)\{([^}]*)\}(.*)", name)
        names = [name]
        if alternatives:
            before, inner, after = alternatives.groups()
            names = [before + each + after for each in inner.split(",")]
        found += [re.sub(r"<[^>]*>", "*", each) for each in names]
    return [name for name in found if name.startswith(TOP) and not name.startswith(MADE)]


def commands_in(text: str) -> list[str]:
    """The modules of this repository that a page runs."""
    own = (module.split(".") for module in re.findall(r"python -m ([\w.]+)", text))
    return ["/".join(parts) for parts in own if (ROOT / parts[0]).is_dir()]


def added_lines(text: str) -> list[tuple[str, str]]:
    """(file, line) of each line that a diff of a page adds."""
    found = []
    for block in re.findall(r"```diff\n(.*?)```", text, re.DOTALL):
        file = ""
        for line in block.splitlines():
            if line.startswith("+++ b/"):
                file = line.removeprefix("+++ b/")
            elif line != "@@":
                assert file and line.startswith("+"), f"neither a file nor an added line: {line}"
                found.append((file, line[1:]))
    return found


def missing_paths(text: str) -> list[str]:
    return [name for name in paths_in(text) if not any(ROOT.glob(name.rstrip("/")))]


def missing_commands(text: str) -> list[str]:
    return [name for name in commands_in(text) if not (ROOT / f"{name}.py").is_file()]


def missing_lines(text: str) -> list[tuple[str, str]]:
    found = added_lines(text)
    lines = {file: set((ROOT / file).read_text().splitlines()) for file, _ in found}
    return [(file, line) for file, line in found if line not in lines[file]]


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_that_a_page_names_exist(page):
    assert paths_in(text_of(page)) or page == "docs/glossary.md"
    assert missing_paths(text_of(page)) == []


def test_the_commands_exist():
    text = text_of("CONTRIBUTING.md")
    named = set(commands_in(text))
    assert {"tests/_support/sample_bits", "tests/solvers/test_sampling_quality"} <= named
    assert missing_commands(text) == []


def test_the_diffs_are_in_the_files():
    text = text_of("CONTRIBUTING.md")
    files = {Path(file).parts[:2] for file, _ in added_lines(text)}
    assert {("python", "ardiff"), ("ardiff_kernels", "ops"), ("tests", "solvers")} <= files
    assert missing_lines(text) == [], "show what the files say now"


def test_what_is_not_there_is_found():
    page = "see `tests/{solvers,no_such}/`, `csrc/torch/<op>.h` and `csrc/common/<op>.h`; run\n"
    page += "`python -m tests._support.sample_bits` or `python -m tests.no_such --write`\n"
    page += "```diff\n+++ b/setup.py\n@@\n+from __future__ import annotations\n+no such line\n```\n"
    assert missing_paths(page) == ["tests/no_such/", "csrc/common/*.h"]
    assert missing_commands(page) == ["tests/no_such"]
    assert missing_lines(page) == [("setup.py", "no such line")]
