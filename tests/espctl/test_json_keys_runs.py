"""The keys of `--json`: programs read them, so they change on purpose alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

RUN = {
    "id", "key", "kind", "method", "dataset", "fingerprint", "ipc", "network", "parametrisation", "seed", "preset",
    "state", "created", "started", "finished", "seconds", "peak_memory_bytes", "stored_numbers", "budget_numbers",
    "device", "git_commit", "version", "error", "folder", "name", "note",
}  # fmt: skip
LABELS = {"run", "name", "note", "tags"}
KEYS: dict[str, set[str]] = {
    "runs ls": RUN | {"tags", "options", "scores"},
    "runs ls --columns id,options.beta,accuracy": {"id", "options.beta", "accuracy"},
    "runs ls --group seed": {
        "method", "dataset", "ipc", "parametrisation", "network", "facts", "protocol", "evaluated", "mean", "sd", "n",
        "runs",
    },
    "runs show {run}": {"detail", "scores", "metrics"},
    "runs diff {run} {other}": {"a", "b", "differences"},
    "runs tag {run} a": LABELS,
    "runs note {run} seen": LABELS,
    "runs rename {run} star": LABELS,
    "runs rm {run}": {"run", "trash", "bytes"},
    "runs restore": {"run", "removed", "folder", "bytes"},
    "runs restore {run}": RUN,
    "runs gc --dry-run": {"items", "freed", "removed"},
    "runs sync": {"added", "updated", "unchanged", "unreadable", "missing"},
    "runs export --all -o {folder}/b": {"path", "runs", "files", "bytes", "left_out"},
    "runs import {folder}/b --check": {"source", "runs", "files", "bytes", "schema", "program"},
    "runs import {folder}/b": {"source", "added", "known", "experts", "files", "bytes"},
    "runs export --all --results {folder}/r.json": {"path", "rows", "runs"},
    "verify {run}": {"kind", "name", "files", "problems"},
    "db backup {folder}/copy.db": {"backup", "bytes"},
    "db upgrade": {"database", "before", "after", "backup", "runs"},
    "db current": {"database", "revision", "head"},
    "db check": {"database", "revision", "head", "problems"},
}  # fmt: skip


def keys(found: Any) -> set[str]:
    assert found != []
    return set(found[0] if isinstance(found, list) else found)


@pytest.mark.parametrize("command", [name for name in KEYS if name not in ("runs restore", "runs restore {run}")])
def test_keys(generated: Any, tmp_path: Path, command: str) -> None:
    first, second = (path.name for path in generated.runs("esp")[:2])
    if "import" in command:
        generated("runs export --all -o", str(tmp_path / "b"))
    words = [word.format(run=first, other=second, folder=tmp_path) for word in command.split()]
    assert keys(generated(*words, "--json").json) == KEYS[command]


def test_keys_of_the_trash(generated: Any) -> None:
    run = generated.runs("esp")[0].name
    generated("runs rm", run)
    assert keys(generated("runs restore --json").json) == KEYS["runs restore"]
    assert keys(generated("runs restore", run, "--json").json) == KEYS["runs restore {run}"]


def test_keys_of_parts(generated: Any) -> None:
    first, second = (path.name for path in generated.runs("esp")[1:3])
    difference = generated(f"runs diff {first} {second} --json").json["differences"][0]
    assert set(difference) == {"part", "name", "a", "b"}
    score = generated("runs ls --json").json[0]["scores"][0]
    assert set(score) == {"run", "method", "protocol", "network", "mean", "sd", "n", "best_mean", "best_sd"}
    shown = generated("runs show", first, "--json").json
    assert set(shown["detail"]) == {"run", "request", "outcome", "evaluations", "artifacts", "tags"}
    assert set(shown["detail"]["run"]) == RUN
