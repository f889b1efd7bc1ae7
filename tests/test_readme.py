"""README.md shows what the files under results/ say, and nothing that was typed by hand."""

from __future__ import annotations

import importlib.util
import json
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


def test_the_newest_bench_is_shown_by_its_bounds(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    old = "<!-- from results/*-cpu-*-bench.json -->\nnot yet\n<!-- end -->"
    assert _script().fill(old, tmp_path) == old
    row = {"what": "a", "against": "b", "unit": "s", "ours": 0.05, "other": 0.1, "ratio": 0.5, "low": 0.4, "high": 0.6}
    row |= {"runs": 7, "target": 0.4, "reached": False, "measured_by": "step", "part": "p", "note": "n"}
    alone = {**row, "what": "c", "against": "", "other": None, "ratio": None, "target": 0.2, "reached": True}
    told = {"device": "CPU", "torch": "2", "commit": "0", "date": "2026-01-02", "size": "cpu"}
    bench = {**told, "rows": [row, alone, {**row, "what": "unbounded", "target": None}]}
    other = {**row, "what": "other", "measured_by": "memory"}
    before = {**told, "commit": "9", "rows": [{**row, "what": "measured again"}, other]}
    (tmp_path / "results" / "2026-01-02-cpu-0-bench.json").write_text(json.dumps({**bench, "at": "2026-01-02T03:04"}))
    (tmp_path / "results" / "2026-01-02-cpu-9-bench.json").write_text(json.dumps(before))
    found = _script().fill(old, tmp_path)
    assert "| p | a | b | 50 ms | 0.1 s | 0.5 (0.4 to 0.6, 7) | 0.4 | **no** | n |" in found
    assert "| p | c |  | 50 ms |  | 50 ms (0.4 s to 0.6 s, 7) | 0.2 s | yes | n |" in found
    assert "| p | other | b |" in found
    assert "unbounded" not in found
    assert "measured again" not in found
    assert "- memory: CPU, size cpu, torch 2, commit 9" in found
    assert "- step: CPU, size cpu, torch 2, commit 0" in found
