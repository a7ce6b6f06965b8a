"""The shape of the house, read from its syntax trees: who imports whom, lengths, names, docstrings."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "models": set(),
    "attacks": {"models"},
    "certify": {"models"},
    "defenses": {"models", "attacks", "certify"},
    "bench": {"models", "attacks", "certify", "defenses"},
}
OURS = {*MAY_IMPORT, "results", "tests"}
TORCH_FREE = (
    "spec",
    "plan",
    "cell",
    "record",
    "store",
    "tables",
    "outcomes",
    "stats",
    "regress",
    "catalog",
    "weights",
    "cli",
    "execute",
    "render",
    "finished",
)
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager"}
FILES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """The full names of the modules that an import statement names; relative ones resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = path.relative_to(ROOT).parts[:-1]
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        yield ".".join(part for part in (base, node.module or "") if part)


def room_violations(tree: ast.Module, path: Path) -> list[str]:
    """The imports of `tree` that its room may not make."""
    room = path.relative_to(ROOT).parts[0]
    names = [name for node in ast.walk(tree) for name in imported(node, path)]
    rooms = {name.split(".")[0] for name in names} & OURS
    return sorted(rooms - MAY_IMPORT[room] - {room})


def buried_imports(tree: ast.Module, path: Path) -> list[str]:
    """Imports of our own packages inside functions."""
    found = []
    for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
        for node in ast.walk(function):
            found += [name for name in imported(node, path) if name.split(".")[0] in OURS]
    return found


def undocumented(tree: ast.Module, path: Path) -> list[str]:
    """Public modules and top-level classes and functions without a docstring.

    Methods are left out: those that carry out a contract are documented where it is declared.
    """
    missing = [str(path)] if tree.body and not ast.get_docstring(tree) else []
    for node in tree.body:
        if isinstance(node, (*Function.__args__, ast.ClassDef)) and not node.name.startswith("_"):
            missing += [f"{path}:{node.lineno} {node.name}"] * (not ast.get_docstring(node))
    return missing


def test_the_files_are_there() -> None:
    assert len(FILES) > 50
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_file(path: Path) -> None:
    tree, text = tree_of(path), path.read_text(encoding="utf-8")
    assert room_violations(tree, path) == []
    assert buried_imports(tree, path) == []
    assert undocumented(tree, path) == []
    assert path.stem not in FORBIDDEN_NAMES
    assert len(text.splitlines()) <= 300
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in functions
        if (node.end_lineno or 0) - node.lineno + 1 > 50
    ]
    assert long == []


def test_the_rules_reject_planted_offenders() -> None:
    attack = ROOT / "attacks" / "planted.py"
    assert room_violations(ast.parse("from certify.base import Certifier"), attack) == ["certify"]
    assert room_violations(ast.parse("import certify.ibp as bounds"), attack) == ["certify"]
    assert room_violations(ast.parse("def f():\n    from bench import plan"), attack) == ["bench"]
    assert (
        room_violations(ast.parse("from models.base import Batch\nfrom .steps import ascend"), attack) == []
    )
    assert room_violations(ast.parse("import attacks"), ROOT / "models" / "planted.py") == ["attacks"]
    assert room_violations(ast.parse("import results"), ROOT / "bench" / "planted.py") == ["results"]
    assert room_violations(ast.parse("import tests.builders"), ROOT / "bench" / "planted.py") == ["tests"]
    assert buried_imports(ast.parse("def f():\n    from models.base import Batch"), attack) == ["models.base"]
    assert buried_imports(ast.parse("def f():\n    from .steps import ascend"), attack) == ["attacks.steps"]
    assert len(undocumented(ast.parse("def f(): ...\nclass A: ...\ndef _g(): ..."), attack)) == 3


def modules_after_importing(names: list[str]) -> set[str]:
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(shown.stdout))


def test_names_parameters_and_frames_need_no_torch() -> None:
    commands = [f"bench.commands.{name}" for name in ("run", "table", "check", "catalogue")]
    loaded = modules_after_importing([*(f"bench.{name}" for name in TORCH_FREE), *commands])
    assert {f"bench.{name}" for name in TORCH_FREE} <= loaded
    assert {
        name for name in loaded if name.split(".")[0] in ("torch", "torchvision", "cvxpy", "ray")
    } == set()


def test_runs_and_tables_start_without_scipy() -> None:
    """It takes as long to import as everything else that a finished run needs."""
    loaded = modules_after_importing([f"bench.commands.{name}" for name in ("run", "table")])
    assert "bench.stats" in loaded
    assert "scipy" not in loaded


def test_help_needs_neither_pandas_nor_torch() -> None:
    heavy = {"torch", "pandas", "scipy", "pyarrow", "numpy"}
    assert heavy & modules_after_importing(["bench.__main__", "bench.cli"]) == set()


def test_packages_are_listed_for_the_wheel() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"}
    assert [name for name in sorted(packages) if f'"{name}"' not in listed] == []
