"""The database as a file: its schema, its health, and what the run folders have that it has not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espctl.services.project import Project
from espctl.store import backup as backups
from espctl.store import engine, migrate, models, sqlite
from espctl.store import rebuild as rebuilding
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


def _renew_studies(project: Project) -> int:
    """Enter the studies as their folders have them; returns how many there are."""
    if not any(project.paths.studies.glob("*/study.json")):
        return 0
    from espctl.services.tuning import studies  # imports Optuna and torch, which databases without studies do without

    return len(studies.views(project))


@dataclass(frozen=True)
class Rebuilt:
    """What was made from the folders, and the database from before under its new name, if there was any."""

    database: Path
    replaced: Path | None
    runs: SyncReport
    experts: int
    datasets: int
    studies: int


def rebuild(project: Project) -> Rebuilt:
    """Set the database aside, also a damaged one, and make it anew from runs, experts, data sets and studies.

    Raises:
        SchemaError: it is another program's, or of a newer version of this one.
        StoreError: other processes use it.
    """
    replaced = rebuilding.set_aside(project.paths.database)
    migrate.upgrade(project.paths.database)
    found = store_runs.sync(project.store, project.paths.runs)
    return Rebuilt(
        project.store.database, replaced, found, _experts(project), _datasets(project), _renew_studies(project)
    )


def _experts(project: Project) -> int:
    paths = sorted(project.paths.experts.glob("*/expert-*.safetensors"))
    if paths:
        from espctl.services import experts  # imports torch

        paths = [path for path in paths if experts.is_sound(path)]
        experts.enter(project, paths)
    return len(paths)


def _datasets(project: Project) -> int:
    if not any(project.paths.data.glob("*.safetensors")):
        return 0
    from espctl.services import data  # imports torch

    return data.enter(project)


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
    return Revision(database, sqlite.revision(database), models.REVISIONS[-1])


def check(project: Project) -> CheckReport:
    """Damage, dangling rows, and differences between the file's schema and this program's. Nothing is changed.

    Raises:
        StoreError: there is no database, or it cannot be read at all.
    """
    return migrate.check(project.paths.database)
