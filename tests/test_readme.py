"""README.md shows what the files under results/ say, and nothing that was typed by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TOP = Path(__file__).resolve().parent.parent


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_readme", TOP / "scripts" / "fill_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_fresh() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- from results/") >= 3
    assert _script().fill(text) == text


def test_a_changed_result_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("| 1 |\n")
    old = "x\n<!-- from results/a.md -->\n| 2 |\n<!-- end -->\ny"
    assert _script().fill(old, tmp_path) == "x\n<!-- from results/a.md -->\n| 1 |\n<!-- end -->\ny"
