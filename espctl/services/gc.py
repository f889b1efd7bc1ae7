"""What can be removed without losing a result: the trash, what killed processes left, checkpoints of finished runs.

A file that somebody may still be writing is not touched: not in a folder whose lock is held, and not when it changed
within the last ten minutes.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp import files
from esp.errors import ArtifactError
from espctl.errors import RunError
from espctl.services import removal
from espctl.services.project import Project
from espctl.services.removal import TRASH, idle, size

FRESH_SECONDS = 600.0
KINDS = {
    "trash": "removed run",
    "temporary": "file that a killed process left",
    "checkpoint": "checkpoint of a finished run",
    "unfinished expert": "expert that is finished, and its last save",
    "no run": "folder that holds no run",
}


@dataclass(frozen=True)
class Item:
    """A file or folder that can go: one of `KINDS`, where it is, and what removing it frees."""

    kind: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What was found, or removed; `freed` is its size in bytes."""

    items: tuple[Item, ...]
    freed: int
    removed: bool

    @property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind -> how many, and their bytes."""
        counts = Counter(item.kind for item in self.items)
        return {kind: (n, sum(i.bytes for i in self.items if i.kind == kind)) for kind, n in counts.items()}


def find(project: Project) -> Collected:
    """Everything that can go, the largest first. Nothing is changed."""
    now = time.time()
    found = [Item("trash", one.folder, one.bytes) for one in removal.trash(project)]
    found += _in_runs(project.paths.runs, now)
    found += _in_experts(project.paths.experts, now)
    kept = (project.paths.data, project.paths.database.parent)
    found += _temporary((path for folder in dict.fromkeys(kept) for path in files.unfinished(folder)), now)
    items = tuple(sorted(found, key=lambda item: (-item.bytes, str(item.path))))
    return Collected(items, sum(item.bytes for item in items), removed=False)


def remove(items: Sequence[Item]) -> Collected:
    """Remove what `find` found. An item that is in use by now is left, and not among those returned."""
    gone = []
    for item in items:
        with contextlib.suppress(FileNotFoundError, RunError):
            _remove(item)
            gone.append(item)
    return Collected(tuple(gone), sum(item.bytes for item in gone), removed=True)


def _remove(item: Item) -> None:
    if item.kind == "trash":  # renamed first: of two processes, one that restores it and one that deletes it, one wins
        gone = item.path.with_name(f".{item.path.name}.tmp")
        item.path.rename(gone)
        shutil.rmtree(gone)
    elif item.path.is_dir() and not item.path.is_symlink():
        shutil.rmtree(item.path)
    elif item.kind in ("checkpoint", "temporary") and (item.path.parent / "request.json").exists():
        with idle(item.path.parent):
            item.path.unlink()
    else:
        item.path.unlink()


def _in_runs(runs: Path, now: float) -> Iterator[Item]:
    for folder in sorted(path for path in runs.glob("*") if path.is_dir() and not path.is_symlink()):
        if folder.name == TRASH:
            yield from _temporary(files.unfinished(folder), now)
            continue
        if not (folder / "request.json").exists():
            if _settled(folder, now):
                yield Item("no run", folder, size(folder))
            continue
        if _busy(folder):
            continue
        yield from _temporary([*files.unfinished(folder), *files.unfinished(folder / "evaluations")], now)
        checkpoint = folder / "checkpoint.safetensors"
        if checkpoint.exists() and _finished(folder):
            yield Item("checkpoint", checkpoint, size(checkpoint))


def _in_experts(experts: Path, now: float) -> Iterator[Item]:
    folders = [experts, *(path for path in experts.glob("*") if path.is_dir())]
    yield from _temporary((path for folder in folders for path in files.unfinished(folder)), now)
    for partial in sorted(experts.glob("*/expert-*.partial")):
        if partial.with_suffix(".safetensors").exists() and _settled(partial, now):
            yield Item("unfinished expert", partial, size(partial))


def _temporary(paths: Iterable[Path], now: float) -> Iterator[Item]:
    for path in sorted(paths):
        if _settled(path, now):
            yield Item("temporary", path, size(path))


def _settled(path: Path, now: float) -> bool:
    """Whether nobody has changed a file, or anything in a folder, for ten minutes."""
    changed = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    with contextlib.suppress(FileNotFoundError):
        return all(now - one.lstat().st_mtime > FRESH_SECONDS for one in changed)
    return False


def _busy(folder: Path) -> bool:
    if not (folder / "lock").exists():
        return False
    try:
        with idle(folder):
            return False
    except (RunError, PermissionError):
        return True


def _finished(folder: Path) -> bool:
    try:
        outcome = files.read_json(folder / "outcome.json")
    except ArtifactError:
        return False
    return isinstance(outcome, dict) and outcome.get("state") == "finished"
