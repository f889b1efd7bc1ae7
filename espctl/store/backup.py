"""Copies of the database: made while others work on it, and named so that one knows what they are good for."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from esp.errors import InputError
from esp.files import aside
from espctl.errors import SchemaError, StoreError, translate
from espctl.store import models, sqlite


def default_path(database: Path, revision: str) -> Path:
    """`espctl.db.backup-0001-20260131T120000` beside the database, with a number when there is one already."""
    first = database.with_name(f"{database.name}.backup-{revision}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    names = (first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 100)))
    return next(path for path in names if not path.exists())


def copy(source: sqlite3.Connection, target: Path) -> None:
    """Copy what a connection sees into a new file, page by page; the file is whole or absent."""
    with aside(target) as temporary, contextlib.closing(sqlite3.connect(temporary)) as made:
        source.backup(made)
        made.execute("PRAGMA journal_mode = DELETE")  # one file, whatever the original has beside it


def backup(database: Path, target: Path | None = None) -> Path:
    """Copy a database into `target`, by default beside it; returns the copy. Other processes may go on writing.

    Raises:
        InputError: the target exists.
        StoreError: there is no database, or it cannot be read.
    """
    database = database.resolve()
    revision = sqlite.revision(database)
    if revision is None:
        raise StoreError(f"there is no database at {database}", "run: espctl db upgrade")
    target = (target or default_path(database, revision)).absolute()
    if target.exists():
        raise InputError(f"{target} exists already", "give another name, or move it away")
    try:
        with contextlib.closing(sqlite.connect(database, sqlite.writable(database))) as source:
            copy(source, target)
    except sqlite3.Error as error:
        raise translate(error) from error
    return target


def usable(database: Path) -> Path | None:
    """The newest copy beside a database whose schema this program knows, if there is one."""
    known = tuple(f"{database.name}.backup-{revision}-" for revision in models.REVISIONS)
    found = [path for path in database.parent.glob(f"{database.name}.backup-*") if path.name.startswith(known)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def mismatch(database: Path, found: str | None) -> SchemaError:
    """The error for a database whose schema is not this program's."""
    head = models.REVISIONS[-1]
    if found is None or found in models.REVISIONS:
        return SchemaError(
            f"the database {database} has schema {found or 'none'}, this program needs {head}", "run: espctl db upgrade"
        )
    copy, last = usable(database), _last_program(database)
    return SchemaError(
        f"the database {database} has schema {found}, which is newer than this program ({head})",
        f"use the version of espctl that made it{f' (its last run is of {last})' if last else ''}, or a newer one"
        + (f"; {copy} is a copy from before, which this version can open with paths.database" if copy else ""),
    )


def _last_program(database: Path) -> str | None:
    """The version of the program that entered the newest run, as far as a schema of which nothing is known tells."""
    try:
        with contextlib.closing(sqlite.connect(database, sqlite.writable(database))) as connection:
            row = connection.execute("SELECT version FROM runs ORDER BY created DESC LIMIT 1").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row and row[0] else None
