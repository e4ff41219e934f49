"""The layers of the Python packages: each imports only its own and those below, and no module
imports itself by way of others.

All imports are read, those inside functions too; those of TYPE_CHECKING are no imports.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

# From below. A name is a module or a package with all within it that has no name of its own.
LAYERS = (
    ("ardiff_kernels",),
    (
        *("ardiff.noise", "ardiff.guide", "ardiff.batch_invariant"),
        *("ardiff._files", "ardiff._moved"),
        "ardiff.__init__",  # what it exports is imported when it is asked for
    ),
    ("ardiff.tables",),
    ("ardiff.solvers", "ardiff.data"),
    ("ardiff.loop",),
    ("ardiff.sampling",),
    ("ardiff.heads",),
    ("ardiff.ar",),  # contexts, on which the shipped model is built; who samples it is above it
    ("ardiff.models",),
    (
        *("ardiff.ar.admission", "ardiff.ar.engine", "ardiff.ar.function_model"),
        *("ardiff.ar.patch_model", "ardiff.ar.request_queue", "ardiff.ar.requests"),
        *("ardiff.ar.sampler", "ardiff.ar.step", "ardiff.training"),
    ),
    ("ardiff.planning",),
    ("ardiff.study",),
    ("ardiff.integrations", "ardiff.commands"),
    ("ardiff.__main__",),
)
ENTRIES = 20  # of python/ardiff: what a reader takes in at a glance

Sources = dict[str, str]
Arrows = dict[str, set[str]]


def sources(root: Path, package: str) -> Sources:
    """The texts of the modules of a package, by their names; packages by that of their folder with
    `.__init__`."""
    paths = sorted((root / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text() for path in paths
    }


def all_sources() -> Sources:
    return {**sources(ROOT, "ardiff_kernels"), **sources(ROOT / "python", "ardiff")}


def _checks_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    for child in node.orelse if _checks_types(node) else ast.iter_child_nodes(node):
        yield from _import_nodes(child)


@functools.cache
def imported(name: str, text: str) -> frozenset[str]:
    """The absolute names that a module imports: modules, or names within them."""
    found: set[str] = set()
    for node in _import_nodes(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            parts = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def arrows(texts: Sources) -> Arrows:
    """From each module to those that it imports, and to the packages that these lie in; to those
    that it lies in itself only where it imports a name from them."""
    found: Arrows = {}
    for name, text in texts.items():
        targets: set[str] = set()
        for target in imported(name, text):
            parts = target.split(".")
            whole = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
            packages = {f"{part}.__init__" for part in whole} & set(texts)
            targets |= set(whole) & set(texts)
            targets |= {p for p in packages if not name.startswith(p.removesuffix("__init__"))}
            if target not in texts and f"{target}.__init__" not in texts and packages:
                targets |= {f"{'.'.join(parts[:-1])}.__init__"} & packages
        found[name] = targets - {name}
    return found


def layer_of(module: str) -> int:
    name = module
    while name:
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
        name = name.rpartition(".")[0]
    raise ValueError(f"{module} is in none of LAYERS: put its package where its imports allow")


def upward(found: Arrows) -> list[str]:
    return [
        f"{module} imports {target}, which is above it"
        for module, targets in sorted(found.items())
        for target in sorted(targets)
        if layer_of(target) > layer_of(module)
    ]


def circles(found: Arrows) -> list[list[str]]:
    """The sets of modules each of which imports all others of its set, by way of others perhaps
    (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    sets: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in sorted(found[module]):
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                sets.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(found):
        if module not in number:
            visit(module)
    return sets


@pytest.fixture(scope="module")
def texts() -> Sources:
    return all_sources()


def test_no_import_upwards(texts):
    assert not upward(arrows(texts))


def test_no_circle_of_imports(texts):
    assert not circles(arrows(texts))


def test_the_loop_knows_nothing_of_heads(texts):
    targets = {
        t for m, found in arrows(texts).items() if m.startswith("ardiff.loop") for t in found
    }
    assert "ardiff.tables.table" in targets
    assert not {target for target in targets if target.startswith("ardiff.heads")}


def test_every_layer_is_there(texts):
    names = {*texts, *(name.removesuffix(".__init__") for name in texts)}
    assert not {name for layer in LAYERS for name in layer} - names
    for module in texts:
        layer_of(module)


def test_the_top_of_the_package_is_taken_in_at_a_glance():
    apart = {"__pycache__", "py.typed"}  # no modules: what Python and type checkers look for
    entries = [p.name for p in (ROOT / "python/ardiff").iterdir() if p.name not in apart]
    assert len(entries) <= ENTRIES, sorted(entries)


PLANTED = {
    "at the top": "from ..heads.base import Head\n",
    "of a package": "from .. import heads\n",
    "absolute": "import ardiff.heads.base\n",
    "inside a function": "def late():\n    from ..heads import base\n    return base\n",
    "inside a try": "try:\n    import ardiff.heads\nexcept ImportError:\n    pass\n",
    "beside types": "if TYPE_CHECKING:\n    pass\nelse:\n    from ..heads import base\n",
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_planted_import_upwards_is_found(texts, how):
    found = upward(arrows({**texts, "ardiff.tables.planted": PLANTED[how]}))
    line = "ardiff.tables.planted imports ardiff.heads.__init__, which is above it"
    assert line in found


def test_types_are_no_imports(texts):
    planted = "if TYPE_CHECKING:\n    from ..heads.base import Head\n"
    assert not upward(arrows({**texts, "ardiff.tables.planted": planted}))


def test_planted_circles_are_found(texts):
    """Of two modules, lazily, and of a module with the package that it lies in."""
    pair = {
        "ardiff.tables.one": "from .other import f\n",
        "ardiff.tables.other": "def f():\n    from . import one\n    return one\n",
    }
    assert circles(arrows({**texts, **pair})) == [sorted(pair)]
    own = {
        "ardiff.tables.__init__": "from . import one\n",
        "ardiff.tables.one": "from . import VALUE\n",
    }
    assert circles(arrows({**texts, **own})) == [sorted(own)]


def test_a_package_in_no_layer_is_named():
    with pytest.raises(ValueError, match="ardiff.new.module is in none of LAYERS"):
        layer_of("ardiff.new.module")
