"""Opening the database, and the two kinds of transaction.

Readers BEGIN and see one snapshot; writers BEGIN IMMEDIATE. A transaction that reads first and asks for the write lock
later fails under other writers, and the driver's own default loses updates silently: it is switched off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sqlite3
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from espctl.errors import REBUILD, SchemaError, StoreError, translate
from espctl.store import models

logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())  # what fails is said by our errors, once
BUSY_SECONDS = 30.0
_NOT_OURS = "give another file with paths.database, or move this one away"


_snapshot: ContextVar[tuple[Store | None, Session | None]] = ContextVar("snapshot", default=(None, None))


@dataclass(frozen=True)
class Store:
    """An open database of this program's own schema.

    `home` is the folder that stored paths are relative to; `created` says that the file was made just now, so that run
    folders from before are not in it yet.
    """

    database: Path
    home: Path
    engine: Engine
    read_only: bool = False
    created: bool = False

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees the database as it was at its first statement. What it changes is discarded.

        Raises:
            StoreError: the database cannot be read.
        """
        store, shared = _snapshot.get()
        if store is self and shared is not None:
            yield shared
            return
        with _translated(), Session(self.engine, autoflush=False) as session:
            yield session

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within the block all that is read is of one moment, whatever others write meanwhile."""
        with self.read() as session:
            before = _snapshot.set((self, session))
            try:
                yield
            finally:
                _snapshot.reset(before)

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session that alone may write from here to the end of the block; keep the block short.

        Raises:
            StoreError: the database is read-only, or other writers hold it for longer than 30 seconds.
        """
        if self.read_only:
            raise read_only(self.database)
        engine = self.engine.execution_options(immediate=True)
        with _translated(), Session(engine, autoflush=False, expire_on_commit=False) as session, session.begin():
            session.connection()  # takes the lock now and not at the first statement, so the block may rely on it
            yield session

    def close(self) -> None:
        """Close the pooled connections. The store may be used again after it."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(database: Path, home: Path | None = None) -> Store:
    """Open a database; a missing or empty file becomes one of the newest schema first.

    Args:
        database: the SQLite file; its folder is made when missing.
        home: the folder that stored paths are relative to, by default the database's own.

    Raises:
        SchemaError: the schema is older or newer than this program, or the file is another program's.
        StoreError: the file cannot be opened or made.
    """
    home, database = (home or database.parent).absolute(), database.resolve()
    found = revision(database)
    created = found is None
    if created:
        from espctl.store import migrate  # Alembic takes a tenth of a second to import, and is rarely needed

        migrate.upgrade(database)
    elif found != models.REVISIONS[-1]:
        raise mismatch(database, found)
    locked = not writable(database)
    store = Store(database, home, _engine(database, locked), locked, created)
    weakref.finalize(store, _dispose, store.engine)
    return store


def _dispose(engine: Engine) -> None:
    """Close the connections; the last one to close tidies the journal away. Ctrl-C waits: nobody could hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with contextlib.suppress(KeyboardInterrupt):  # of one that is handled now, who listens has taken note
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            engine.dispose()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def revision(database: Path) -> str | None:
    """The schema revision of a file; None when there is no file, or nothing in it yet.

    Raises:
        SchemaError: it is an SQLite file, but not of this program.
        StoreError: it cannot be opened or is damaged.
    """
    if not database.exists() or (database.is_file() and database.stat().st_size == 0):
        return None
    with _translated(), contextlib.closing(connect(database, writable(database))) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        versioned = "alembic_version" in tables
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if versioned else []
    if rows:
        return str(rows[0][0])
    if tables - {"alembic_version"}:
        raise SchemaError(f"{database} is not a database of espctl", _NOT_OURS)
    return None


def mismatch(database: Path, found: str | None) -> SchemaError:
    """The error for a database whose schema is not this program's."""
    head = models.REVISIONS[-1]
    if found is None or found in models.REVISIONS:
        return SchemaError(
            f"the database {database} has schema {found or 'none'}, this program needs {head}", "run: espctl db upgrade"
        )
    from espctl.store.backup import usable

    copy, last = usable(database), _last_program(database)
    return SchemaError(
        f"the database {database} has schema {found}, which is newer than this program ({head})",
        f"use the version of espctl that made it{f' (its last run is of {last})' if last else ''}, or a newer one"
        + (f"; {copy} is a copy from before, which this version can open with paths.database" if copy else ""),
    )


def _last_program(database: Path) -> str | None:
    """The version of the program that entered the newest run, as far as a schema of which nothing is known tells."""
    try:
        with contextlib.closing(connect(database, writable(database))) as connection:
            row = connection.execute("SELECT version FROM runs ORDER BY created DESC LIMIT 1").fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row and row[0] else None


def read_only(database: Path) -> StoreError:
    """The error for writing to a database that this process may only read."""
    return StoreError(f"the database {database} is read-only", "check the owner and mode of the file and its folder")


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


def _engine(database: Path, locked: bool) -> Engine:
    """A pool of connections to a file that exists, each with references enforced."""

    def opened() -> sqlite3.Connection:
        connection = connect(database, not locked)
        connection.execute("PRAGMA foreign_keys = ON")
        if not locked:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    engine = create_engine("sqlite://", creator=opened, poolclass=QueuePool)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def writable(database: Path) -> bool:
    """Whether this process may write the file, and beside it, where the journal goes."""
    return os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error
    except (ValueError, TypeError) as error:  # of a value that is no text, no JSON or no time
        if isinstance(error, UnicodeDecodeError | json.JSONDecodeError) or "isoformat" in str(error):
            raise StoreError("the database file is damaged: it holds a value that cannot be read", REBUILD) from error
        raise
