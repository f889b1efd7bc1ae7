"""Removing runs and bringing them back: `rm` moves a folder into `runs/.trash`, on the same file system.

The row goes first and the folder after it: a crash in between leaves a folder that `runs sync` enters again, never a
row that points nowhere. Bringing back goes the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from esp.errors import closest_hint
from espctl.errors import RunError
from espctl.jobs import locks
from espctl.services.project import Project, find_run
from espctl.store import needs
from espctl.store import runs as store_runs
from espctl.store.collect import enter_moved
from espctl.store.records import RunRecord

TRASH = ".trash"


@dataclass(frozen=True)
class Removed:
    """A run in the trash: when it was removed, its folder there, and what removing it for good would free."""

    run: str
    removed: datetime
    folder: Path
    bytes: int


@dataclass(frozen=True)
class Gone:
    """A run that was removed; `trash` is None when its folder was gone already."""

    run: str
    trash: Path | None
    bytes: int


def remove(project: Project, names: Sequence[str], force: bool = False) -> list[Gone]:
    """Take runs out of the database and move their folders into the trash.

    Raises:
        RunError: there is no such run, a process works on one, or others need it (unless `force`).
    """
    records = list({run.id: run for run in (find_run(project, name) for name in names)}.values())
    if not force:
        require_unneeded(project, records)
    with contextlib.ExitStack() as stack:
        for record in records:  # all are checked before any is touched
            stack.enter_context(idle(project.home / record.folder))
        return [_remove(project, record) for record in records]


def require_unneeded(project: Project, records: Sequence[RunRecord]) -> None:
    """Check that no study and no run that stays needs one of these.

    Raises:
        RunError: naming who does.
    """
    for record in records:
        users = needs.users(project.store, record, {other.id for other in records})
        if users:
            raise RunError(
                f"the run {record.id} is needed: {', '.join(users[:5])}{', ...' if len(users) > 5 else ''}",
                "remove those first or together with it, or add --force",
            )


@contextlib.contextmanager
def idle(folder: Path) -> Iterator[None]:
    """Hold a run's folder, if it is there, so that no process begins to work on it.

    Raises:
        RunError: one does already.
    """
    if not folder.is_dir():
        yield
        return
    with locks.hold(folder):
        yield


def trash(project: Project) -> list[Removed]:
    """What is in the trash, the latest first."""
    found = []
    for folder in (project.paths.runs / TRASH).glob("*@*"):
        run, _, stamp = folder.name.rpartition("@")
        with contextlib.suppress(ValueError, FileNotFoundError):  # the latter of one that is restored just now
            moment = datetime.strptime(stamp, "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
            found.append(Removed(run, moment, folder, size(folder)))
    return sorted(found, key=lambda one: one.removed, reverse=True)


def restore(project: Project, name: str) -> RunRecord:
    """Bring a run back from the trash, with its labels and scores; `name` is its id, the beginning of it, or its name.

    Raises:
        RunError: it is not in the trash, several are, or a run of its id exists again.
        ArtifactError: its folder is damaged; it is back in the runs folder, but not in the database.
    """
    try:
        found = _in_trash(trash(project), name)
    except RunError:
        if record := _half_restored(project, name):
            return record
        raise
    target = project.folder_of(found.run)
    enter_moved(project.store, target, lambda: _bring_back(found, target, name))
    return store_runs.find_run(project.store, found.run)


def _bring_back(found: Removed, target: Path, name: str) -> None:
    again = RunError(f"there is a run {found.run} again", f"remove that one first, or keep {found.folder}")
    if target.exists():
        raise again
    try:
        found.folder.rename(target)
    except FileNotFoundError as error:
        raise RunError(f"there is no removed run {name!r} any more", "another process has just restored it") from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise again from error
        raise


def _half_restored(project: Project, name: str) -> RunRecord | None:
    """The run `name`, if a process moved its folder back and died before it entered it; then it is entered now."""
    added = store_runs.sync(project.store, project.paths.runs).added
    with contextlib.suppress(RunError):
        if (record := store_runs.find_run(project.store, name)).id in added:
            return record
    return None


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _remove(project: Project, record: RunRecord) -> Gone:
    folder = project.home / record.folder
    store_runs.delete_run(project.store, record.id)
    if not folder.is_dir():
        return Gone(record.id, None, 0)
    held = size(folder)
    place = folder.parent / TRASH
    place.mkdir(exist_ok=True)
    target = place / f"{record.id}@{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    folder.rename(target)
    store_runs.forget_moved(project.store, record.id)
    return Gone(record.id, target, held)


def _in_trash(removed: Sequence[Removed], name: str) -> Removed:
    """The run of the trash that is meant; of one that was removed several times, the latest."""
    latest = {one.run: one for one in reversed(removed)}
    called = {own: one for one in latest.values() if (own := _own_name(one.folder))}
    fitting = [one for run, one in latest.items() if name and run.startswith(name)]
    if one := latest.get(name) or called.get(name):
        return one
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        known = ", ".join(sorted(one.run for one in fitting)[:5])
        raise RunError(f"more than one removed run begins with {name!r}", f"give more of its id: {known}")
    hint = closest_hint(name, sorted(latest)) if latest else "the trash is empty"
    raise RunError(f"there is no removed run {name!r}", hint)


def _own_name(folder: Path) -> str | None:
    """The name that somebody gave the run of a folder; a damaged file is none."""
    try:
        found = json.loads((folder / "labels.json").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
