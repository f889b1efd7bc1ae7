"""The database as a file: its schema, its health, and what the run folders have that it has not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espctl.services.project import Project
from espctl.store import engine, migrate, models
from espctl.store.migrate import CheckReport
from espctl.store.records import SyncReport
from espctl.store.runs import sync


@dataclass(frozen=True)
class Revision:
    """The schema that a database has (None when there is no database yet) and the one that this program needs."""

    database: Path
    revision: str | None
    head: str


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade did: the schema before and after, and the runs that were read from their folders."""

    database: Path
    before: str | None
    after: str
    runs: SyncReport


def upgrade(project: Project) -> Upgrade:
    """Bring the database to the newest schema, or make it; then enter what the run folders have and it has not.

    Raises:
        StoreError: the database is in use, read-only, damaged, or newer than this program.
    """
    before = migrate.upgrade(project.paths.database)
    with engine.open_store(project.paths.database, project.home) as store:
        return Upgrade(store.database, before, models.REVISIONS[-1], sync(store, project.paths.runs))


def current(project: Project) -> Revision:
    """The schema of the database. Nothing is made or changed."""
    database = project.paths.database
    return Revision(database, engine.revision(database), models.REVISIONS[-1])


def check(project: Project) -> CheckReport:
    """Damage, dangling rows, and differences between the file's schema and this program's. Nothing is changed.

    Raises:
        StoreError: there is no database, or it cannot be read at all.
    """
    return migrate.check(project.paths.database)
