"""The examples on pages of docs/integrations run, where they need no other package."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

PAGES = ROOT / "docs" / "integrations"


@pytest.mark.parametrize("page,result", [("kdiffusion", "images"), ("own_model", "sequences")])
def test_the_example_runs(page, result):
    text = (PAGES / f"{page}.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict = {}
    exec(compile(example, f"{page}.md", "exec"), found)
    assert found[result].isfinite().all() and found[result].std() > 0.3
