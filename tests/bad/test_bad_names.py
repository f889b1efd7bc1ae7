"""Names with newlines, quotes, `..`, right-to-left marks, terminal escapes and HTML are shown, not obeyed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NAMES = [
    "\x1b]0;owned\x07", "\x1b[2J\x1b[1;1H", "\u202egnp.exe", "a\nb\rc", "\x9b31m", "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>", "[red]markup[/red]", "../../etc/passwd", "=cmd|' /C calc'!A0", "\u2028",
    "\\begin{document}", "a\tb", "\u0000",
]  # fmt: skip
READING = [
    "runs ls", "runs show {run}", "runs diff {run} {run}", "report table1 -p {protocol}", "report table1 --trace",
    "experts ls", "data ls", "verify {run}", "doctor --fast", "query select*from+runs", "runs gc --dry-run",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.encode("ascii", "backslashreplace").decode())
def test_a_name_in_a_run_is_shown_and_not_obeyed(finished: Any, tmp_path: Path, name: str) -> None:
    project = finished.copy(tmp_path / "project")
    [folder] = project.runs("esp")
    body = json.loads((folder / "request.json").read_text())
    body["request"] |= {"dataset": f"own{name}", "method": name, "network": name, "preset": name}
    body["provenance"] |= {"version": name, "git_commit": name, "device": name}
    (folder / "request.json").write_text(json.dumps(body))
    outcome = json.loads((folder / "outcome.json").read_text())
    (folder / "outcome.json").write_text(json.dumps({**outcome, "error": name, "device": name}))
    (folder / "labels.json").write_text(json.dumps({"name": name, "note": name, "tags": [name]}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, name: 2.0}) + "\n")
    score = {"protocol": name, "protocol_hash": name, "network": name, "seed": 0, "accuracy": 0.5}
    (folder / "evaluations").mkdir(exist_ok=True)
    (folder / "evaluations/x.json").write_text(json.dumps({**score, "created": "2026-01-31T12:00:00+00:00"}))
    (project.home / "runs" / "\x1b[31m").mkdir()  # no run at all
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    for words in READING:
        listed = [word.replace("{run}", folder.name).replace("{protocol}", name) for word in words.split()]
        listed = [word.replace("*from+", " * from ") for word in listed]
        done = run(project, listed)
        assert not UNSAFE.search(done[1] + done[2]), (words, done)
        assert "Traceback" not in done[2]
        assert "unexpected" not in done[2], (words, done)
    page = tmp_path / "x.html"
    code, _, err = run(project, ["report", "html", "-o", str(page)])
    assert code == 0, err
    assert "<script>alert(1)" not in page.read_text()
    assert "<img src=x" not in page.read_text()
    assert "\x1b" not in page.read_text()


def run(project: Any, words: list[str]) -> tuple[int, str, str]:
    """The exit code and the output of a command, which may fail or not."""
    try:
        done = project(words[0], *words[1:])
    except AssertionError:
        done = project(words[0], *words[1:], code=1)
    return done.code, done.out, done.err


def test_class_names_of_a_data_set_are_shown_and_not_obeyed(finished: Any, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    names = NAMES[:-1]
    labels = np.arange(len(names)).repeat(2)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8)
    arrays: dict[str, Any] = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
    }
    path = tmp_path / "x\x1b[31m\u202e.safetensors"
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    save_file(tensors, path, metadata={"classes": json.dumps(names)})
    for words in (["data", "info"], ["data", "check"], ["data", "show", "-o", str(tmp_path / "x.png")]):
        done = project(" ".join(words[:2]), f"tensors:{path}", *words[2:])
        assert not UNSAFE.search(done.out + done.err)
    done = project("data", "ls")
    assert not UNSAFE.search(done.out + done.err)
