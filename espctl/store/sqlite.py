"""The database file as such: whether it can be written, which schema it has, and connections without a pool."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from espctl.errors import REBUILD, SchemaError, StoreError, translate

BUSY_SECONDS = 30.0
_NOT_OURS = "give another file with paths.database, or move this one away"


def connect(database: Path, can_write: bool, create: bool = False) -> sqlite3.Connection:
    """A raw connection that leaves transactions to its user."""
    mode = ("rwc" if create else "rw") if can_write else "ro"
    journal = Path(f"{database}-wal")
    if not can_write and not (journal.exists() and journal.stat().st_size):
        mode += "&immutable=1"  # else SQLite wants to write its index of the journal beside the file, and cannot
    return sqlite3.connect(
        f"{database.as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def revision(database: Path) -> str | None:
    """The schema revision of a file; None when there is no file, or nothing in it yet.

    Raises:
        SchemaError: it is an SQLite file, but not of this program.
        StoreError: it cannot be opened or is damaged.
    """
    if not database.exists() or (database.is_file() and database.stat().st_size == 0):
        return None
    with translated(), contextlib.closing(connect(database, writable(database))) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        versioned = "alembic_version" in tables
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if versioned else []
    if rows:
        return str(rows[0][0])
    if tables - {"alembic_version"}:
        raise SchemaError(f"{database} is not a database of espctl", _NOT_OURS)
    return None


def writable(database: Path) -> bool:
    """Whether this process may write the file, and beside it, where the journal goes."""
    return os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)


def read_only(database: Path) -> StoreError:
    """The error for writing to a database that this process may only read."""
    return StoreError(f"the database {database} is read-only", "check the owner and mode of the file and its folder")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours within the block."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error
    except (ValueError, TypeError) as error:  # of a value that is no text, no JSON or no time
        if isinstance(error, UnicodeDecodeError | json.JSONDecodeError) or "isoformat" in str(error):
            raise StoreError("the database file is damaged: it holds a value that cannot be read", REBUILD) from error
        raise
