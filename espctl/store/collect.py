"""From run folders into the database. Everything here may be repeated: the same folder gives the same rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Session

from esp.errors import ArtifactError, EspError
from espctl.errors import RunError
from espctl.store import folder as folders
from espctl.store import labels
from espctl.store.engine import Store
from espctl.store.models import Artifact, Evaluation, Metric, Run, Study, Trial
from espctl.store.records import EvaluationRecord, RunRecord, SyncReport

_BATCH = 100  # runs that are entered in one transaction: a commit takes longer than a run
_SCORE = ("run_id", "protocol_hash", "network", "seed")


def record_outcome(store: Store, run_folder: Path) -> RunRecord:
    """Record a run that has ended, with its metrics, artifacts and evaluations, in one transaction.

    The folder alone is enough: a run that the database does not know is entered, so a crash between the two is mended
    by calling this again.

    Raises:
        ArtifactError: the folder has no outcome yet, or a file in it is unusable.
        StoreError: the database cannot be written.
    """
    contents = folders.read(run_folder, store.home)
    if contents.outcome is None:
        raise ArtifactError(f"{run_folder / 'outcome.json'} does not exist", "let the run end, or resume it")
    metrics = folders.metrics(run_folder)
    with store.write() as session:
        _enter(session, contents)
        _replace_parts(session, contents, metrics)
        _label(session, contents)
    return contents.run


def record_evaluation(store: Store, run_id: str, evaluation: Mapping[str, Any]) -> EvaluationRecord:
    """Record one trained network, from the value of its file; a repeated one takes the place of the former.

    Raises:
        RunError: there is no such run.
        ArtifactError: the evaluation lacks a key.
    """
    record = folders.evaluation_record(run_id, evaluation)
    with store.write() as session:
        if session.get(Run, run_id) is None:
            raise RunError(f"there is no run {run_id!r}", "espctl runs ls lists the runs")
        _upsert(session, Evaluation, [asdict(record)], _SCORE)
    return record


def record_evaluations(store: Store, run_folder: Path) -> tuple[EvaluationRecord, ...]:
    """Record every file under `evaluations/` of a run folder in one transaction; enter the run when it is unknown."""
    contents = folders.read(run_folder, store.home)
    with store.write() as session:
        if session.get(Run, contents.run.id) is None:
            _enter(session, contents)
            _label(session, contents)
        _add_parts(session, contents)
    return contents.evaluations


def sync(store: Store, runs_folder: Path) -> SyncReport:
    """Make the database agree with the run folders: enter what it lacks, and renew what ended since.

    A run that the database holds as queued or running stays so while its folder has no outcome. Nothing is removed:
    runs whose folder is gone are reported as missing, folders that cannot be read as unreadable. A folder without a
    `request.json` is no run folder.
    """
    done: dict[str, list[str]] = {"added": [], "updated": [], "unchanged": []}
    unreadable: list[tuple[str, str]] = []
    paths = sorted(runs_folder.glob("*/request.json"))
    for start in range(0, len(paths), _BATCH):
        found = []
        for path in paths[start : start + _BATCH]:
            try:
                found.append(folders.read(path.parent, store.home))
            except (EspError, OSError) as error:
                if path.exists():  # else somebody has just removed the run
                    unreadable.append((path.parent.name, str(error)))
        for run_id, how in _sync_some(store, found).items():
            done[how].append(run_id)
    return SyncReport(
        tuple(done["added"]), tuple(done["updated"]), tuple(done["unchanged"]), tuple(unreadable), _missing(store)
    )


def sync_folders(store: Store, run_folders: Sequence[Path]) -> dict[str, str]:
    """Make the database agree with some run folders: run -> `added`, `updated` or `unchanged`.

    A run that another process removes meanwhile is left out.

    Raises:
        ArtifactError: a folder cannot be read.
    """
    done: dict[str, str] = {}
    for start in range(0, len(run_folders), _BATCH):
        done |= _sync_some(store, [folders.read(path, store.home) for path in run_folders[start : start + _BATCH]])
    return done


def enter_moved(store: Store, run_folder: Path, move: Callable[[], None]) -> None:
    """Move a run folder into its place and enter it, in one transaction.

    Nobody else enters the run as one that was left behind, and no run of its name begins meanwhile.

    Raises:
        ArtifactError: the folder cannot be read; it stays where it was moved to.
    """
    with store.write() as session:
        move()
        contents = folders.read(run_folder, store.home)
        _renew(session, contents, folders.metrics(run_folder) if contents.outcome is not None else [])


def _sync_some(store: Store, found: Sequence[folders.Contents]) -> dict[str, str]:
    """Bring runs up to date in one transaction; none when there is nothing to do."""
    done = {contents.run.id: "unchanged" for contents in found}
    with store.read() as session:
        stale = [contents for contents in found if _differs(session, session.get(Run, contents.run.id), contents)]
    metrics = {one.run.id: folders.metrics(one.folder) for one in stale if one.outcome is not None}
    if not stale:
        return done
    with store.write() as session:
        for contents in stale:
            if (contents.folder / "request.json").is_file():
                done[contents.run.id] = _renew(session, contents, metrics.get(contents.run.id, []))
            else:  # moved away since it was read: a row would point nowhere
                del done[contents.run.id]
    return done


def _renew(session: Session, contents: folders.Contents, metrics: list[tuple[str, int, float]]) -> str:
    """Bring one run up to date; returns whether it was `added` or `updated`."""
    known = session.get(Run, contents.run.id)
    if known is None or (contents.outcome is not None and known.outcome != contents.outcome):
        _enter(session, contents)
        _replace_parts(session, contents, metrics)
    else:
        known.folder = contents.run.folder
        _add_parts(session, contents)
    _label(session, contents)
    return "added" if known is None else "updated"


def _differs(session: Session, run: Run | None, contents: folders.Contents) -> bool:
    """Whether the folder has anything that the database has not."""
    if (
        run is None
        or run.folder != contents.run.folder
        or (contents.outcome is not None and run.outcome != contents.outcome)
    ):
        return True
    columns = [getattr(Evaluation, name) for name in EvaluationRecord.__slots__]
    scores = {EvaluationRecord(*row) for row in session.execute(select(*columns).where(Evaluation.run_id == run.id))}
    labelled = contents.labels is None or contents.labels == labels.of(session, run)
    return not labelled or not scores.issuperset(contents.evaluations)


def _missing(store: Store) -> tuple[str, ...]:
    with store.read() as session:
        rows = session.execute(select(Run.id, Run.folder).order_by(Run.id)).all()
    return tuple(run_id for run_id, folder in rows if not (store.home / folder / "request.json").is_file())


def _enter(session: Session, contents: folders.Contents) -> None:
    """The run's own row, new or renewed, but for its labels."""
    row = {name: getattr(contents.run, name) for name in RunRecord.__slots__ if name not in ("name", "note")}
    _upsert(session, Run, [{**row, "request": contents.request, "outcome": contents.outcome}], ("id",))
    if contents.trial is not None:
        _join_trial(session, contents.run.id, *contents.trial)


def _join_trial(session: Session, run_id: str, study: str, number: int) -> None:
    """A trial whose run was removed has none; the run is back."""
    own = select(Study.id).where(Study.name == study).scalar_subquery()
    alone = (Trial.study_id == own) & (Trial.number == number) & Trial.run_id.is_(None)
    session.execute(update(Trial).where(alone).values(run_id=run_id))


def _label(session: Session, contents: folders.Contents) -> None:
    """The labels as they are in the folder now: who changes them holds the lock that this transaction has."""
    found = folders.labels(contents.folder)
    if found is not None:
        labels.enter(session, session.get_one(Run, contents.run.id, populate_existing=True), found)


def _replace_parts(session: Session, contents: folders.Contents, metrics: list[tuple[str, int, float]]) -> None:
    run_id = contents.run.id
    session.execute(delete(Metric).where(Metric.run_id == run_id))
    session.execute(delete(Artifact).where(Artifact.run_id == run_id))
    if metrics:
        rows = [(run_id, *metric) for metric in metrics]  # by far the most rows, so without the ORM
        statement = "INSERT INTO metrics (run_id, name, step, value) VALUES (?, ?, ?, ?)"
        session.connection().exec_driver_sql(statement, rows)
    if contents.artifacts:
        session.execute(insert(Artifact), [asdict(artifact) for artifact in contents.artifacts])
    _add_parts(session, contents)


def _add_parts(session: Session, contents: folders.Contents) -> None:
    _upsert(session, Evaluation, [asdict(record) for record in contents.evaluations], _SCORE)


def _upsert(
    session: Session, model: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]], key: Sequence[str]
) -> None:
    """Insert rows; one whose `key` exists takes over the values and keeps its place."""
    if not rows:
        return
    session.execute(_upsert_statement(model, tuple(rows[0]), tuple(key)), list(rows))


@functools.cache
def _upsert_statement(model: type[DeclarativeBase], names: tuple[str, ...], key: tuple[str, ...]) -> Any:
    """Kept, since making it takes longer than executing it."""
    statement = insert(model)
    changed = {name: statement.excluded[name] for name in names if name not in key}
    return statement.on_conflict_do_update(index_elements=list(key), set_=changed)
