"""Studies and their trials in the database, a copy of what the folders of the studies hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from espctl.store.engine import Store
from espctl.store.models import Run, Study, Trial
from espctl.store.records import StudyRecord, TrialRecord

_STUDY = [getattr(Study, name) for name in StudyRecord.__slots__]
_TRIAL = [getattr(Trial, name) for name in TrialRecord.__slots__]


def record_study(store: Store, study: StudyRecord, trials: Sequence[TrialRecord] = ()) -> None:
    """Enter a study and some of its trials, or renew them; a run that the database does not know is left out."""
    row = asdict(study)
    statement = insert(Study).on_conflict_do_update(index_elements=["name"], set_=row)
    with store.write() as session:
        session.execute(statement, [row])
        identity = session.scalars(select(Study.id).where(Study.name == study.name)).one()
        known = _known(session, [trial.run_id for trial in trials if trial.run_id])
        rows = [
            {**asdict(trial), "study_id": identity, "run_id": trial.run_id if trial.run_id in known else None}
            for trial in trials
        ]
        if rows:
            adding = insert(Trial)
            changed = {name: adding.excluded[name] for name in TrialRecord.__slots__ if name != "number"}
            session.execute(adding.on_conflict_do_update(index_elements=["study_id", "number"], set_=changed), rows)


def list_studies(store: Store) -> list[tuple[StudyRecord, tuple[TrialRecord, ...]]]:
    """Every study with its trials, oldest first."""
    trials: dict[int, list[TrialRecord]] = {}
    with store.read() as session:
        for study_id, *row in session.execute(select(Trial.study_id, *_TRIAL).order_by(Trial.number)):
            trials.setdefault(study_id, []).append(TrialRecord(*row))
        rows = session.execute(select(Study.id, *_STUDY).order_by(Study.created, Study.id)).all()
    return [(StudyRecord(*row), tuple(trials.get(identity, ()))) for identity, *row in rows]


def keep_studies(store: Store, names: Collection[str]) -> None:
    """Forget the studies that are not among `names`; their runs stay."""
    with store.write() as session:
        session.execute(delete(Study).where(Study.name.not_in(names)))


def _known(session: Session, runs: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(runs), 10_000):
        found |= set(session.scalars(select(Run.id).where(Run.id.in_(runs[start : start + 10_000]))))
    return found
