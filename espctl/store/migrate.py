"""Moving a database between revisions of the schema, with Alembic and without a configuration file.

Whoever migrates is alone: the connection holds SQLite's exclusive lock from before Alembic looks at the file until the
end, so two processes that start on a new file do not both make it. Each revision is one transaction.
"""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, StaticPool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from espctl.errors import StoreError, translate
from espctl.store import backup, models, sqlite

_DAMAGED = "make it anew from the run folders: espctl db rebuild"
_STALE = "the schema differs from what this version defines: make it anew from the run folders: espctl db rebuild"


@dataclass(frozen=True)
class CheckReport:
    """What `check` found: the file's revision, the newest one, and one sentence for each problem."""

    database: Path
    revision: str | None
    head: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Migrated:
    """The revision that a database had (None: it was made), and the copy of it from before, if it was changed."""

    before: str | None
    backup: Path | None


def scripts() -> Path:
    """The folder of the revisions: inside the installed package, or at the top of the source tree."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "migrations", package.parent / "migrations") if (path / "env.py").is_file())


def config(connection: Connection | None = None, folder: Path | None = None, at_once: bool = False) -> Config:
    """Alembic's configuration for the revisions in `folder`; silent, and bound to a connection.

    Each revision is a transaction, or all of them are one.
    """
    made = Config(stdout=io.StringIO(), attributes={"connection": connection, "at_once": at_once})
    made.set_main_option("script_location", str(folder or scripts()).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made


def heads(folder: Path | None = None) -> tuple[str, ...]:
    """The revisions that no other follows; one, unless two were written side by side."""
    return tuple(ScriptDirectory.from_config(config(folder=folder)).get_heads())


def upgrade(database: Path, target: str = "head", folder: Path | None = None) -> Migrated:
    """Bring a database to a revision, by default the newest; make the file, and its folder, when missing.

    One that has to change is copied first, under the lock, so that the copy is what is changed.

    Raises:
        SchemaError: the file is newer than this program, or another program's.
        StoreError: the file is in use, read-only or damaged, or a revision failed; then nothing of that one is kept.
    """
    database = database.resolve()
    database.parent.mkdir(parents=True, exist_ok=True)
    before = sqlite.revision(database)
    script = ScriptDirectory.from_config(config(folder=folder))
    if before is not None and before not in {found.revision for found in script.walk_revisions()}:
        raise backup.mismatch(database, before)
    if before is not None and not sqlite.writable(database):
        raise sqlite.read_only(database)
    wanted = script.get_current_head() if target == "head" else target
    with _alone(database, wanted) as (connection, copy):
        # A new file is made whole or not at all: nobody should have to upgrade what was never used.
        command.upgrade(config(connection, folder, at_once=before is None), target)
    return Migrated(before, copy)


def downgrade(database: Path, target: str, folder: Path | None = None) -> None:
    """Take a database back to an older revision, or to `base`. Rows of tables that did not exist then are lost."""
    with _alone(database.resolve(), target) as (connection, _):
        command.downgrade(config(connection, folder), target)


def check(database: Path, folder: Path | None = None) -> CheckReport:
    """Look for damage, dangling references, and a schema that is not the one this program defines. Changes nothing.

    Raises:
        StoreError: there is no database, or it cannot be read at all.
    """
    database = database.resolve()
    found = sqlite.revision(database)
    if found is None:
        raise StoreError(f"there is no database at {database}", "run: espctl db upgrade")
    problems = [*_damage(database), *_many_heads(folder)]
    if found != models.REVISIONS[-1]:
        problems.append(f"{(error := backup.mismatch(database, found)).message}; {error.hint}")
    elif not problems:
        problems += _differences(database, folder)
    return CheckReport(database, found, models.REVISIONS[-1], tuple(problems))


def _damage(database: Path) -> list[str]:
    with _read_only(database) as raw:
        lines = [str(row[0]) for row in raw.execute("PRAGMA integrity_check(10)")]
        dangling = raw.execute("PRAGMA foreign_key_check").fetchall()
    problems = [f"damaged: {line}; {_DAMAGED}" for line in lines if line != "ok"]
    if dangling:
        tables = ", ".join(sorted({row[0] for row in dangling}))
        problems.append(f"{len(dangling)} rows of {tables} point at a run that is gone; {_DAMAGED}")
    return problems


def _many_heads(folder: Path | None) -> list[str]:
    found = heads(folder)
    return [] if len(found) == 1 else [f"the revisions have {len(found)} heads: {', '.join(sorted(found))}"]


def _differences(database: Path, folder: Path | None) -> list[str]:
    """What Alembic would change to make the file's schema that of the models: nothing, in a sound one."""
    with _read_only(database) as raw, _alembic(raw, "BEGIN") as connection:
        try:
            command.check(config(connection, folder))
        except CommandError as error:
            return [f"{' '.join(str(error).split())}; {_STALE}"]
    return []


@contextlib.contextmanager
def _alone(database: Path, wanted: str | None) -> Iterator[tuple[Connection, Path | None]]:
    """A connection that no other process can read or write beside, with foreign keys off; and the copy made before.

    Off, because SQLite changes a table by making it anew and dropping the old one, and with foreign keys on the drop
    deletes the rows of every table that refers to it; Alembic checks the references before each commit instead.
    """
    try:
        with contextlib.closing(lock(database)) as raw:
            copy = _copy(raw, database, wanted)
            raw.execute("PRAGMA foreign_keys = OFF")
            with _alembic(raw, "BEGIN IMMEDIATE") as connection:
                yield connection, copy
            raw.execute("PRAGMA journal_mode = WAL")
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error
    except (CommandError, RuntimeError) as error:
        raise StoreError(
            f"the database {database} was not migrated: {error}", "it is as it was before that step"
        ) from error


def _copy(raw: sqlite3.Connection, database: Path, wanted: str | None) -> Path | None:
    """A copy of a locked database that has rows to lose and another revision than the wanted one."""
    if not raw.execute("SELECT 1 FROM sqlite_schema WHERE name = 'alembic_version'").fetchone():
        return None
    found = raw.execute("SELECT version_num FROM alembic_version").fetchone()
    if found is None or found[0] == wanted:
        return None
    path = backup.default_path(database, found[0])
    backup.copy(raw, path)
    return path


def lock(database: Path, seconds: float | None = None) -> sqlite3.Connection:
    """A raw connection that holds the exclusive lock until it is closed; waits for it at most so long.

    SQLite's own waiting will not do: in this mode a connection keeps the shared lock that it got on the way, so two
    that wait for each other wait until both give up. Closing it and starting again blocks nobody.
    """
    deadline = time.monotonic() + (sqlite.BUSY_SECONDS if seconds is None else seconds)
    while True:
        raw = sqlite.connect(database, can_write=True, create=True)
        try:
            raw.execute("PRAGMA busy_timeout = 0")
            raw.execute("PRAGMA locking_mode = EXCLUSIVE")
            raw.execute("BEGIN EXCLUSIVE")
            raw.execute("COMMIT")
            return raw
        except sqlite3.Error as error:
            raw.close()
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.005 + os.getpid() % 16 / 500)  # not in step with the others


@contextlib.contextmanager
def _read_only(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite.connect(database, sqlite.writable(database))) as raw:
            raw.execute("PRAGMA query_only = ON")
            yield raw
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error


@contextlib.contextmanager
def _alembic(raw: sqlite3.Connection, begin: str) -> Iterator[Connection]:
    """SQLAlchemy's view of a raw connection, on which nothing has been executed yet: Alembic must be the first."""
    made = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(made, "begin", begun)
    with made.connect() as connection:
        yield connection
