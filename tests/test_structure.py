"""The package stays easy to read: imports lead down, and files are short."""

import ast
import graphlib

from tests.conftest import ROOT

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "gini_jax").rglob("*.py")
}


def imported(path):
    """Modules of the package that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(FILES)


def test_no_import_leads_back_to_its_file():
    """A circle raises, with its files."""
    graph = {name: imported(path) for name, path in FILES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(FILES)


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
