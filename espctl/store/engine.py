"""Opening the database, and the two kinds of transaction.

Readers BEGIN and see one snapshot; writers BEGIN IMMEDIATE. A transaction that reads first and asks for the write lock
later fails under other writers, and the driver's own default loses updates silently: it is switched off.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sqlite3
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.orm import Session

from espctl.store import backup, models, sqlite

logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())  # what fails is said by our errors, once


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
        with sqlite.translated(), Session(self.engine, autoflush=False) as session:
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
            raise sqlite.read_only(self.database)
        engine = self.engine.execution_options(immediate=True)
        with sqlite.translated(), Session(engine, autoflush=False, expire_on_commit=False) as session, session.begin():
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
    found = sqlite.revision(database)
    created = found is None
    if created:
        from espctl.store import migrate  # Alembic takes a tenth of a second to import, and is rarely needed

        migrate.upgrade(database)
    elif found != models.REVISIONS[-1]:
        raise backup.mismatch(database, found)
    locked = not sqlite.writable(database)
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


def _engine(database: Path, locked: bool) -> Engine:
    """A pool of connections to a file that exists, each with references enforced."""

    def opened() -> sqlite3.Connection:
        connection = sqlite.connect(database, not locked)
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
