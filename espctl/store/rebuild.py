"""Setting a database aside, whatever state it is in, so that another can be made from the folders."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from espctl.errors import SchemaError, StoreError, translate
from espctl.store import backup, migrate, models, sqlite

BESIDE = ("-wal", "-shm", "-journal", "")
"""What SQLite keeps beside a file, and the file itself, last: a new one must never meet the journal of another."""


def set_aside(database: Path) -> Path | None:
    """Rename a database, with its journal, to a name of its own; returns that, or None where there was nothing.

    Raises:
        SchemaError: it is another program's, or of a newer version of this one.
        StoreError: other processes use it.
    """
    database = database.resolve()
    if not any(Path(f"{database}{end}").exists() for end in BESIDE):
        return None
    _require_ours(database)
    stamp = f"{database.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    with _unused(database):
        for end in BESIDE:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{database}{end}").rename(database.with_name(f"{stamp}{end}"))
    kept = database.with_name(stamp)
    return kept if kept.exists() else None


def _require_ours(database: Path) -> None:
    try:
        found = sqlite.revision(database)
    except SchemaError:
        raise
    except StoreError:
        return  # damaged: that is what this is for
    if found is not None and found not in models.REVISIONS:
        raise backup.mismatch(database, found)


@contextlib.contextmanager
def _unused(database: Path) -> Iterator[None]:
    """Nobody else has the file open in a transaction; as far as a damaged one can say so."""
    with contextlib.ExitStack() as stack:
        if database.exists():
            try:
                stack.enter_context(contextlib.closing(migrate.lock(database, seconds=2.0)))
            except sqlite3.Error as error:
                if "locked" in str(error):
                    raise translate(error) from error
        yield
