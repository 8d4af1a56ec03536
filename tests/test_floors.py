"""The house: imports go downward only, without circles, and files stay short (CONTRIBUTING.md).

All is computed from the folders. A wing is a folder of `stan_infer/` or one of the files beside
them; its floor is one above the highest wing that it imports, so none imports another of its floor.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

FACE = "stan_infer"  # its public names are found when they are used, so it may name everything
MAX_LINES, MAX_FLOORS, MAX_ENTRIES = 400, 9, 23
MAX_FUNCTION, MAX_PARAMETERS = 60, 8
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "cv2", "av", "decord", "triton"}
HEAVY |= {"tokenizers", "open_clip", "matplotlib", "polygraphy", "pyarrow", "ray"}
# What a command or an exported folder loads before it is known what is needed.
LIGHT = ("cli", "system", "video", "text", "artefacts", "tensorrt_plans", "library", "evaluation")
LIGHT += ("benchmarking", "checkpoints", "engines.open", "engines.folder_session")


@cache
def modules() -> dict[str, Path]:
    """Every module by its name below the package, as in "engines.open"; links are followed."""
    top = ROOT / FACE
    files = [p for depth in ("*.py", "*/*.py", "*/*/*.py") for p in top.glob(depth)]
    names = {p: ".".join(p.relative_to(top).with_suffix("").parts) for p in sorted(files)}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def wing(module: str) -> str:
    return module.partition(".")[0]


def targets(node: ast.AST) -> list[str]:
    """The modules of ours that an import statement names, below the package."""
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        assert not node.level, "imports are absolute"
        names = [f"{node.module}.{a.name}" for a in node.names]
    else:
        return []
    found = []
    for name in (n.removeprefix(f"{FACE}.") for n in names if n.startswith(f"{FACE}.")):
        known = name if name in modules() else name.rpartition(".")[0]
        if known:  # else a public name or the version, from the face
            assert known in modules(), name
            found.append(known)
    return found


@cache
def imports(module: str, lazy: bool = True) -> frozenset[str]:
    """What a module imports of ours; not lazy: when it is loaded."""
    tree = ast.parse(modules()[module].read_text())
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    return frozenset(t for node in nodes for t in targets(node) if t != module)


def circle(graph: dict[str, set[str]]) -> str | None:
    """A circle of a graph, as text."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> str | None:
        if name in above:
            return " -> ".join((*above[above.index(name) :], name))
        if name in done:
            return None
        done.add(name)
        ways = (visit(below, (*above, name)) for below in sorted(graph[name]))
        return next(filter(None, ways), None)

    return next(filter(None, (visit(name, ()) for name in sorted(graph))), None)


@cache
def wings() -> dict[str, set[str]]:
    """The graph of wings."""
    graph: dict[str, set[str]] = {wing(m): set() for m in modules() if not m.startswith("__")}
    for module in modules():
        if module not in ("__init__", "__main__"):
            graph[wing(module)] |= {wing(t) for t in imports(module)} - {wing(module)}
    return graph


def test_no_circle_of_files():
    graph = {m: set(imports(m)) for m in modules() if m != "__init__"}
    assert circle(graph) is None


def test_wings_stand_on_floors():
    assert circle(wings()) is None, "an import goes upward"

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(below) for below in wings()[name]), default=-1)

    floors = [sorted(w for w in wings() if floor(w) == i) for i in range(len(wings()))]
    assert len([f for f in floors if f]) <= MAX_FLOORS, floors


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == "b -> c -> b"
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_lazy_imports_are_seen():
    body = "def f():\n    from stan_infer.engines.open import open_session"
    assert [t for n in ast.walk(ast.parse(body)) for t in targets(n)] == ["engines.open"]


def test_the_listing_explains_itself():
    entries = [p for p in (ROOT / FACE).iterdir() if p.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES, sorted(p.name for p in entries)
    for folder in (p for p in entries if p.is_dir()):
        tree = ast.parse((folder / "__init__.py").read_text())
        assert len(tree.body) == 1, f"{folder.name}/__init__.py has more than its docstring"
        text = ast.get_docstring(tree) or ""
        assert "mports" in text and "Start at `" in text, folder.name
        start = text.partition("Start at `")[2].partition("`")[0].split(".")[0]
        assert (folder / f"{start}.py").exists(), f"{folder.name} has no {start}"


def test_light_files_import_nothing_heavy():
    todo = [m for m in modules() if m in LIGHT or wing(m) in LIGHT]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        todo += imports(module, lazy=False)
        for node in ast.parse(modules()[module].read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not HEAVY & {n.partition(".")[0] for n in names}, module


def test_functions_are_short_and_take_few_parameters():
    """Commands have an option each; a kernel and its operation have what the GPU is given."""
    for module in (m for m in modules() if wing(m) not in ("cli", "kernels")):
        for node in ast.walk(ast.parse(modules()[module].read_text())):
            if isinstance(node, ast.FunctionDef):
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                names = {a.arg for a in given} - {"self", "cls"}
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= MAX_FUNCTION, f"{module}.{node.name} has {lines} lines"
                assert len(names) <= MAX_PARAMETERS, f"{module}.{node.name} takes {len(names)}"


@pytest.mark.parametrize("folder", ["stan_infer", "tests", "benchmarks"])
def test_file_length(folder):
    limit = MAX_LINES if folder == "stan_infer" else 700
    files = modules().values() if folder == "stan_infer" else (ROOT / folder).rglob("*.py")
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines"
