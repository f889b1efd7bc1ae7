"""Experts and data sets in the database: what was made, where it lies, and whether it fits a request."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from espctl.store.engine import Store
from espctl.store.filters import LAST, Filters, Where, conditions, order
from espctl.store.models import Dataset, Expert
from espctl.store.records import DatasetRecord, ExpertRecord

EXPERT_COLUMNS: tuple[str, ...] = tuple(ExpertRecord.__slots__)
_EXPERT = [getattr(Expert, name) for name in EXPERT_COLUMNS]
_DATASET = [getattr(Dataset, name) for name in DatasetRecord.__slots__]


def record_expert(store: Store, expert: ExpertRecord) -> None:
    """Record an expert; one of the same path takes the place of the former."""
    values = asdict(expert)
    changed = {name: value for name, value in values.items() if name != "path"}
    with store.write() as session:
        session.execute(insert(Expert).values(**values).on_conflict_do_update(index_elements=["path"], set_=changed))


def list_experts(
    store: Store, filters: Filters | None = None, where: Where = (), sort: str = "number"
) -> list[ExpertRecord]:
    """Experts that match; filters, comparisons and sorting as in `runs.list_runs`."""
    chosen = conditions(Expert, EXPERT_COLUMNS, filters or {}, where)
    statement = select(*_EXPERT).where(*chosen).order_by(*order(Expert, EXPERT_COLUMNS, sort))
    with store.read() as session:
        return [ExpertRecord(*row) for row in session.execute(statement)]


def delete_experts(store: Store, beginning: str) -> int:
    """Remove the experts whose path has this beginning, before their files go; returns how many there were."""
    chosen = (Expert.path >= beginning) & (Expert.path < beginning + LAST)
    with store.write() as session:
        known = list(session.scalars(select(Expert.id).where(chosen)))
        session.execute(delete(Expert).where(chosen))
    return len(known)


def record_dataset(store: Store, dataset: DatasetRecord) -> None:
    """Record a converted data set; the same name and content again renews its path."""
    values = asdict(dataset)
    changed = {name: value for name, value in values.items() if name not in ("name", "fingerprint")}
    with store.write() as session:
        statement = insert(Dataset).values(**values)
        session.execute(statement.on_conflict_do_update(index_elements=["name", "fingerprint"], set_=changed))


def list_datasets(store: Store) -> list[DatasetRecord]:
    """Converted data sets by name, the newest of a name first."""
    with store.read() as session:
        rows = session.execute(select(*_DATASET).order_by(Dataset.name, Dataset.created.desc()))
        return [DatasetRecord(*row) for row in rows]
