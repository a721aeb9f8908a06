"""The package stays easy to read: imports lead down, and files are short."""

import ast
import graphlib

from tests.conftest import ROOT

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "gini_jax").rglob("*.py")
}


def imported(path):
    """Modules of the package that a file imports, wherever it does, or names in a string."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("gini_jax."):
            found.add(str(node.value).partition(":")[0])
        elif isinstance(node, ast.JoinedStr) and len(node.values) == 2:
            start = str(
                getattr(node.values[0], "value", "")
            )  # as in import_module(f"gini_jax.modes.{mode}")
            if start.startswith("gini_jax.") and start.endswith("."):
                found |= {name for name in FILES if name.rpartition(".")[0] == start[:-1]}
    return found & set(FILES)


GRAPH = {name: imported(path) for name, path in FILES.items()}


def test_no_import_leads_back_to_its_file():
    """A circle raises, with its files."""
    assert len(list(graphlib.TopologicalSorter(GRAPH).static_order())) == len(FILES)


def floors():
    """By room, how high it lies, as CONTRIBUTING.md says; a room is a file or a folder."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("lead down these floors")[2]
    lines = text.split("```")[1].strip().splitlines()
    return {room: -i for i, line in enumerate(lines) for room in line.split()}


def room_of(name, rooms):
    path = FILES[name].relative_to(ROOT / "gini_jax").with_suffix("").as_posix()
    return path if path in rooms else path.partition("/")[0]


def test_imports_lead_down_the_floors_that_the_docs_show():
    rooms = floors()
    assert {room_of(name, rooms) for name in FILES} == set(rooms)
    for name, others in GRAPH.items():
        for other in others:
            here, there = room_of(name, rooms), room_of(other, rooms)
            assert here == there or rooms[there] < rooms[here], f"{name} imports {other}"


def test_an_import_by_name_counts(tmp_path):
    (tmp_path / "a.py").write_text('import_module("gini_jax.cli"); f"gini_jax.modes.{mode}"')
    found = imported(tmp_path / "a.py")
    assert {"gini_jax.cli", "gini_jax.modes.train", "gini_jax.modes.plan"} <= found


def test_no_file_is_longer_than_400_lines():
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert max(lengths.values()) <= 400, max(lengths, key=lengths.get)


def test_no_function_is_longer_than_60_lines():
    """In the losses, 50 without the docstring, which may take more."""
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            lines = node.end_lineno - node.lineno + 1
            text = node.body[0] if ast.get_docstring(node) else None
            code = lines - (text.end_lineno - text.lineno + 1 if text else 0)
            is_loss = name.startswith("gini_jax.losses.")
            assert lines <= 60 or (is_loss and code <= 50), f"{name}.{node.name}"
