"""The examples on pages of docs run, where they need no other package."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

PAGES = ROOT / "docs"


@pytest.mark.parametrize(
    "page,result",
    [
        ("integrations/kdiffusion", "images"),
        ("integrations/own_model", "sequences"),
        ("integrations/nextstep", "tokens"),
        ("log_density", "samples"),
    ],
)
def test_the_example_runs(page, result):
    text = (PAGES / f"{page}.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict = {}
    exec(compile(example, f"{page}.md", "exec"), found)
    assert found[result].isfinite().all() and found[result].std() > 0.3


def test_the_log_density_gives_its_law():
    """4,000 draws: the shares' standard error is .0072, a standard deviation's .7 to 1 percent; the
    bounds are 6 of them, false alarm 2e-9 each, and a tenth for the bias of 60 calls.

    The negative control leaves the level out.
    """
    text = (PAGES / "log_density.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    def law(source):
        found: dict = {}
        exec(compile(source, "log_density.md", "exec"), found)
        x = found["samples"]
        first = x[x[:, 0] < 0]
        return float(found["share"]), float(first.std(0).mean()), found["stats"]

    share, width, stats = law(example)
    assert abs(share - 0.3) < 0.043 + 0.03
    assert abs(width - 0.5) < 0.03 + 0.05
    assert (stats.acceptance > 0.1).all()
    share, width, _ = law(example.replace("torch.exp(-level)", "torch.exp(-0 * level)"))
    assert abs(width - 0.5) > 0.08


def test_no_example_needs_a_checkout():
    """What a page imports is installed: `benchmarks` and `tests` are in a checkout alone."""
    examples = {
        page: "".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
        for page in PAGES.rglob("*.md")
    }
    inside = re.compile(r"^\s*(?:from|import) (?:benchmarks|tests|examples)\b", re.MULTILINE)
    assert sum(map(bool, examples.values())) > 5
    assert [page.name for page, text in examples.items() if inside.search(text)] == []
    assert inside.search("import torch\nfrom benchmarks.reference_mar import HeadNet\n")
