"""The database as a file: its schema, its health, and what the run folders have that it has not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espctl.services.project import Project
from espctl.store import backup as backups
from espctl.store import engine, migrate, models
from espctl.store import runs as store_runs
from espctl.store.migrate import CheckReport
from espctl.store.records import SyncReport


@dataclass(frozen=True)
class Revision:
    """The schema that a database has (None when there is no database yet) and the one that this program needs."""

    database: Path
    revision: str | None
    head: str


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade did: schema before and after, the copy made before, and runs read from their folders."""

    database: Path
    before: str | None
    after: str
    backup: Path | None
    runs: SyncReport


def upgrade(project: Project) -> Upgrade:
    """Bring the database to the newest schema, or make it; then enter what the run folders have and it has not.

    Raises:
        StoreError: the database is in use, read-only, damaged, or newer than this program.
    """
    done = migrate.upgrade(project.paths.database)
    with engine.open_store(project.paths.database, project.home) as store:
        found = Upgrade(
            store.database, done.before, models.REVISIONS[-1], done.backup, store_runs.sync(store, project.paths.runs)
        )
    _renew_studies(project)
    return found


def _renew_studies(project: Project) -> None:
    """Enter the studies as their folders have them."""
    if any(project.paths.studies.glob("*/study.json")):
        from espctl.services import studies  # imports Optuna and torch, which databases without studies do without

        studies.views(project)


def sync(project: Project) -> SyncReport:
    """Make the database agree with the run folders. Nothing is removed.

    Raises:
        StoreError: the database cannot be written.
    """
    found = store_runs.sync(project.store, project.paths.runs)
    _renew_studies(project)
    return found


def backup(project: Project, target: Path | None) -> Path:
    """Copy the database into a new file, by default beside it and named after its schema and the time.

    Raises:
        InputError: the file exists.
        StoreError: there is no database, or it cannot be read.
    """
    return backups.backup(project.paths.database, target)


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
