"""The structure of the package: imports go down the list of rooms, and no file holds more than one idea."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "__main__",
    "cli",
    "report",
    "__init__",
    "studies",
    "pipeline",
    "finish",
    "result",
    "options",
    "plan",
    "tune",
    "quantize",
    "fit",
    "evaluate",
    "calibrate",
    "destinations",
    "measure",
    "inputs",
    "passes",
    "graph",
    "decompose",
    "goal",
    "parallel",
    "progress",
    "boundary",
    "temporary",
    "errors",
    "text",
)
"""From top to bottom; docs/architecture.md says what each is for."""
LONGEST = 310
"""Lines of a file, and a few for what is one table or one algorithm."""


def modules() -> dict[str, Path]:
    """Return the files of the package by their modules' names."""
    found = {}
    for folder, package in ((ROOT / "onnxlowrank", "onnxlowrank"), (ROOT / "passes", "onnxlowrank.passes")):
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(source: str) -> set[str]:
    """Return the modules of the package that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole module"
            if not node.module:
                continue
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {node.module}
    return found & MODULES.keys()


def room(module: str) -> str:
    """Return the room that a module is in, or the loose module it is."""
    return [*module.split("."), "__init__"][1]


def upward(module: str, source: str) -> list[str]:
    """Return what a module imports from a room above its own."""
    own = ROOMS.index(room(module))
    return sorted(name for name in imports(source) if ROOMS.index(room(name)) < own)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    assert upward(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_an_import_that_goes_up_is_seen():
    assert upward("onnxlowrank.graph.load", "def f():\n    from onnxlowrank.plan import search\n") == [
        "onnxlowrank.plan.search"
    ]
    assert upward("onnxlowrank.errors", "import onnxlowrank.progress\n") == ["onnxlowrank.progress"]


def test_no_cycles():
    graph = {name: imports(path.read_text(encoding="utf-8")) - {name} for name, path in MODULES.items()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize(
    ("place", "barred"),
    [
        ("decompose", {"onnx", "onnxruntime", "onnx_graphsurgeon"}),
        ("passes", {"onnx", "onnxruntime", "onnx_graphsurgeon"}),
        ("plan", {"onnxruntime", "onnx_graphsurgeon"}),
        ("fit", {"onnxruntime", "onnx_graphsurgeon"}),
    ],
)
def test_what_rooms_may_not_know(place, barred):
    for module, path in MODULES.items():
        if room(module) == place:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            names |= {
                node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
            }
            assert not names & barred, module


def test_every_room_says_what_it_is_for():
    for name in ROOMS:
        path = MODULES.get(f"onnxlowrank.{name}")
        if path is not None and path.name == "__init__.py":
            assert len(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") > 100, name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST
