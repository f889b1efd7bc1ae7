"""The tables. Every constraint has a name, so that a later revision can find it.

A change here needs a new file in `migrations/versions` and its number at the end of `REVISIONS`; tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, DateTime, Dialect, Double, ForeignKey, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

REVISIONS = ("0001", "0002", "0003")
"""Revisions of the schema, oldest first; these models describe the last."""

STATES = ("queued", "running", "interrupted", "failed", "pruned", "finished")
"""What a run can be; a pruned one is of a trial that was not worth going on with."""


class Moment(TypeDecorator[datetime]):
    """A point in time: kept as UTC, since SQLite knows no time zones, and returned with its zone."""

    impl = DateTime
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        """What values are in Python."""
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; a time without a zone is taken to be UTC."""
        if value is None or value.tzinfo is None:
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], datetime | None]:
        """With its zone, read at once: a listing of thousands of runs reads tens of thousands of times."""
        return lambda value: None if value is None else datetime.fromisoformat(f"{value}+00:00")


class Base(DeclarativeBase):
    """All tables, and how their constraints are named."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Moment, float: Double, dict[str, Any]: JSON}  # noqa: RUF012 (SQLAlchemy reads it off the class)


class Dataset(Base):
    """A data set that was converted into the cache."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("name", "fingerprint"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    fingerprint: Mapped[str]
    channels: Mapped[int]
    height: Mapped[int]
    width: Mapped[int]
    classes: Mapped[int]
    train: Mapped[int]
    test: Mapped[int]
    path: Mapped[str]
    created: Mapped[datetime]


class Expert(Base):
    """One expert trajectory: a network trained on real data, a snapshot per epoch, one file."""

    __tablename__ = "experts"
    __table_args__ = (UniqueConstraint("path"), Index(None, "fingerprint", "network", "recipe_hash", "number"))

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset: Mapped[str]
    fingerprint: Mapped[str]
    network: Mapped[str]
    recipe_hash: Mapped[str]
    number: Mapped[int]
    epochs: Mapped[int]
    parameters: Mapped[int]
    dtype: Mapped[str]
    path: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int]
    accuracy: Mapped[float | None]
    created: Mapped[datetime]
    seconds: Mapped[float | None]


class Run(Base):
    """One condensation. The two indices over `created` serve the plain list; the third, reports and filters.

    `name` and `note` are what somebody called it and wrote about it, like its tags.
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'interrupted', 'failed', 'pruned', 'finished')", name="state"),
        Index(None, "created"),
        Index(None, "state", "created"),
        Index(None, "method", "created"),
        Index(None, "dataset", "method", "ipc", "created"),
        Index(None, "key"),
        Index(None, "name"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str]
    kind: Mapped[str]
    method: Mapped[str]
    dataset: Mapped[str]
    fingerprint: Mapped[str | None]
    ipc: Mapped[int]
    network: Mapped[str | None]
    parametrisation: Mapped[str | None]
    seed: Mapped[int]
    preset: Mapped[str | None]
    state: Mapped[str]
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    seconds: Mapped[float | None]
    peak_memory_bytes: Mapped[int | None]
    stored_numbers: Mapped[int | None]
    budget_numbers: Mapped[int | None]
    device: Mapped[str | None]
    git_commit: Mapped[str | None]
    version: Mapped[str | None]
    error: Mapped[str | None]
    folder: Mapped[str]
    request: Mapped[dict[str, Any]]
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    name: Mapped[str | None]
    note: Mapped[str | None]


class Metric(Base):
    """A number that a run reported at a step; thinned, `metrics.jsonl` has them all."""

    __tablename__ = "metrics"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 (SQLAlchemy reads it off the class)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]


class Evaluation(Base):
    """One network that was trained on a run's synthetic set and tested on the real test set."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("run_id", "protocol_hash", "network", "seed"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    protocol: Mapped[str]
    protocol_hash: Mapped[str]
    network: Mapped[str]
    seed: Mapped[int]
    accuracy: Mapped[float]
    best_accuracy: Mapped[float | None]
    best_epoch: Mapped[int | None]
    epochs: Mapped[int | None]
    train_loss: Mapped[float | None]
    seconds: Mapped[float | None]
    device: Mapped[str | None]
    created: Mapped[datetime]


class Artifact(Base):
    """A file that a run made."""

    __tablename__ = "artifacts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int]


class Tag(Base):
    """A word that somebody put on a run."""

    __tablename__ = "tags"
    __table_args__ = (Index(None, "tag"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)


class Study(Base):
    """A search for good options of a method; `storage` is where the search itself keeps its state."""

    __tablename__ = "studies"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    dataset: Mapped[str]
    method: Mapped[str]
    ipc: Mapped[int]
    request: Mapped[dict[str, Any]]
    storage: Mapped[str]
    created: Mapped[datetime]


class Trial(Base):
    """One choice of options that a study tried; its run may have been removed since."""

    __tablename__ = "trials"
    __table_args__ = (UniqueConstraint("study_id", "number"), Index(None, "run_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    number: Mapped[int]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id", ondelete="SET NULL"))
    state: Mapped[str]
    value: Mapped[float | None]
