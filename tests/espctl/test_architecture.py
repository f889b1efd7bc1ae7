"""The rules of the structure: who imports whom, how long things are, and that nothing is ever unpickled."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("esp", "espctl", "migrations") for path in (ROOT / package).rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 60


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    done = python("-X", "importtime", "-m", "espctl", "--help")
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "espctl" in imported
    assert not imported & {
        "torch",
        "torchvision",
        "numpy",
        "sqlalchemy",
        "alembic",
        "optuna",
        "pydantic",
        "rich",
        "safetensors",
    }


@pytest.mark.parametrize("module", ["esp", "esp.errors", "esp.data", "esp.methods", "esp.networks", "esp.protocols"])
def test_the_tables_of_names_import_no_torch(module: str) -> None:
    done = python("-c", f"import sys, {module}; print(sorted({{'torch', 'numpy', 'espctl'}} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("words", ["runs ls", "report table1 -d digits", "db current", "config show"])
def test_listings_import_no_torch(words: str, tmp_path: Path) -> None:
    code = f"import sys; from espctl.cli import run; run({[*words.split(), '--home', str(tmp_path)]!r}); "
    done = python("-c", f"{code} print('torch' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_layers_hold() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = python("-c", code)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def test_the_library_reads_no_environment_and_prints_nothing() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "esp").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"))
    ]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - _first_statement(node) + 1 > FUNCTION_LINES
    ]
    assert long == []


def _first_statement(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The line where the code begins: options of a command and documentation are no statements."""
    body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
    return body[0].lineno


def test_nothing_is_ever_unpickled() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            allowed = [ast.unparse(keyword) for keyword in node.keywords] if isinstance(node, ast.Call) else []
            if (
                any(module.partition(".")[0] in forbidden for module in modules)
                or called in ("torch.load", "torch.save", "eval", "exec")
                or "allow_pickle=True" in allowed
            ):
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
    assert found == []


def test_no_file_names_a_place_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt)/\w+")
    found = [str(path.relative_to(ROOT)) for path in SOURCES if pattern.search(path.read_text())]
    assert found == []
